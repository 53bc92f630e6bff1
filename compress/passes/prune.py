"""``prune``: remove attention heads, feed-forward neurons and whole layers of a BERT-family encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, RecipeError, did_you_mean
from compress.models.counting import (
    count_macs,
    count_parameters,
    encoder_macs,
    head_macs,
    head_parameters,
    layer_parameters,
    neuron_macs,
    neuron_parameters,
    planned_counts,
)
from compress.models.depth import choose_layers, drop_layers
from compress.models.families import dimensions, family_of
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.pruning.importance import importances

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.pruning.importance import Scores

Position = Annotated[int, Field(ge=0)]


class PruneConfig(PassConfig):
    """What to remove. At least one of ``macs`` and ``layers`` is given."""

    macs: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the incoming encoder's multiply-accumulates (128 tokens) to KEEP: 0.25 is a fourth",
    )
    layers: Annotated[int, Field(ge=1)] | list[Position] | None = Field(
        None, description="encoder layers to keep: how many, or their positions from 0; default: all"
    )
    layers_by: Literal["spacing", "importance"] = Field(
        "spacing", description="how `layers` as a number chooses: evenly from first to last, or the most important"
    )
    importance: str = Field("fisher", description="fisher | magnitude, or what a plugin registers")
    samples: int = Field(512, ge=1, description="training examples for the importance, drawn by seed")
    batch_size: int = Field(32, ge=1, description="examples per forward pass; does not change the result")
    round_to: int = Field(32, ge=1, description="neurons kept per layer are a multiple of this")
    min_heads: int = Field(1, ge=1, description="heads that every layer keeps at least")
    min_neurons: int = Field(32, ge=1, description="neurons that every layer keeps at least")

    @model_validator(mode="after")
    def _asks_for_something(self) -> PruneConfig:
        if self.macs is None and self.layers is None:
            raise ValueError("give `macs` (share to keep), `layers`, or both")
        return self


class Prune(Pass):
    """Ranks units by importance, keeps the best within a share of the MACs, removes the rest physically."""

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    Config: ClassVar[type[PassConfig]] = PruneConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    adds: ClassVar[frozenset[str]] = frozenset({"pruned"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: PruneConfig) -> Plan:
        if config.importance not in importances:
            raise RecipeError(
                f"Unknown importance {config.importance!r}.", fix=did_you_mean(config.importance, importances)
            )
        info = inputs["model"]
        traits = info.traits | self.adds
        if not info.config:
            return Plan(f"prune by {config.importance}", replace(info, traits=traits, parameters=None, macs=None))
        size = dimensions(info.config)
        parameters, macs = planned_counts(info.config)
        dense = encoder_macs(size)
        outside = macs - dense
        encoder = (info.macs or macs) - outside
        kept = size.layers if config.layers is None else len(choose_layers(config.layers, size.layers))
        after = int(encoder * min(kept / size.layers, config.macs or 1.0))
        units = size.heads * head_parameters(size) + size.neurons * neuron_parameters(size)
        norms = layer_parameters(size) - units
        gone = int(size.layers * units * (encoder - after) / dense) + (size.layers - kept) * norms
        planned = replace(
            info,
            traits=traits,
            config={**info.config, family_of(info.config["model_type"]).layers_key: kept},
            parameters=(info.parameters or parameters) - gone,
            macs=outside + after,
        )
        share = f"{after / encoder:.0%} of the encoder's MACs in {kept} of {size.layers} layers"
        return Plan(f"keep {share}, by {config.importance}", planned)

    def apply(self, inputs: Mapping[str, Artifact], config: PruneConfig, context: Context) -> Artifact:
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch

        source = inputs["model"]
        model = load_torch(source.path, context.task).to(context.device)
        with limit_threads(context.threads):
            scores = _score(model, source, config, context)
        before = count_macs(model)
        notes = _remove(model, scores, config)
        model.to("cpu")
        save_torch(model, context.out, tokenizer_from=source.path)
        macs = count_macs(model)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=macs,
            notes=notes | {"macs_before": before, "macs_after": macs},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _score(model: PreTrainedModel, source: Artifact, config: PruneConfig, context: Context) -> Scores:
    method = importances.get(config.importance)()
    examples = _sample(source, config, context)

    def count(done: int, total: int) -> None:
        context.emit(f"{config.importance} importance", done, total)

    return method.score(model, context.task, examples, config.batch_size, count)


def _sample(source: Artifact, config: PruneConfig, context: Context) -> Encoded:
    """Draw ``samples`` labelled training rows by seed and encode them."""
    rows = [row for row in context.data["train"].rows if row.get("label") is not None]
    if len(rows) < config.samples:
        raise DataError(
            "The training split has fewer labelled rows than the importance asks for.",
            value=f"{config.samples} samples of {len(rows)} rows",
            fix="Lower `samples` of the prune step.",
        )
    chosen = np.random.default_rng(context.seed).choice(len(rows), config.samples, replace=False)
    return context.task.encode(source.path, [rows[i] for i in sorted(chosen)])


def _remove(model: PreTrainedModel, scores: Scores, config: PruneConfig) -> dict[str, Any]:
    """Drop layers, then heads and neurons, in place; return what to put on record."""
    from compress.models.families import encoder_layers
    from compress.models.structure import kept_heads
    from compress.pruning.selection import Costs, achieved_ratio, choose_widths
    from compress.pruning.surgery import prune_heads_and_neurons

    size = dimensions(model.config.to_dict())
    costs = Costs(head_macs(size), neuron_macs(size))
    before = _units_macs(scores, costs)
    layers = tuple(range(size.layers))
    if config.layers is not None:
        ranked = scores.layer_sums() if config.layers_by == "importance" else None
        layers = choose_layers(config.layers, size.layers, ranked)
        drop_layers(model, layers)
        scores = scores.select(layers)
    rest = _units_macs(scores, costs) / before
    ratio = 1.0
    if config.macs is not None and config.macs < rest:
        widths = choose_widths(
            scores,
            costs,
            config.macs / rest,
            round_to=config.round_to,
            min_heads=config.min_heads,
            min_neurons=config.min_neurons,
        )
        ratio = achieved_ratio(scores, costs, widths)
        prune_heads_and_neurons(model, widths)
    after = encoder_layers(model)
    return {
        "layers": list(layers),
        "heads": [layer.heads for layer in after],
        "kept_heads": [list(kept_heads(layer)) for layer in after],
        "neurons": [layer.neurons for layer in after],
        "kept_macs": rest * ratio,
        "importance": config.importance,
        "samples": config.samples,
    }


def _units_macs(scores: Scores, costs: Any) -> int:
    return sum(map(len, scores.heads)) * int(costs.head) + sum(map(len, scores.neurons)) * int(costs.neuron)
