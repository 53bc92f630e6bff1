"""``prune``: remove heads, neurons, sub-layers and layers of an encoder, or channels of a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, MissingCapabilityError, RecipeError, did_you_mean
from compress.models.counting import (
    encoder_macs,
    head_parameters,
    layer_parameters,
    neuron_parameters,
    planned_counts,
)
from compress.models.depth import choose_layers
from compress.models.families import Dimensions, dimensions, family_of, is_convolutional
from compress.models.remote_code import CUSTOM_CODE
from compress.models.signature import torch_graph
from compress.models.sparsity import SPARSE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.pruning.importance import importances
from compress.runtimes.target import Grids, find_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded

Position = Annotated[int, Field(ge=0)]
BUDGETS = ("macs", "params", "speedup", "latency_ms", "max_drop_points")
TIMED = ("speedup", "latency_ms", "max_drop_points")
_SAMPLES = 1024


class PruneConfig(PassConfig):
    """What to reach, and how. At most one budget: macs, params, speedup, latency_ms or max_drop_points."""

    macs: float | None = Field(
        None, gt=0, lt=1, description="share of the incoming encoder's multiply-accumulates to KEEP: 0.25 is a fourth"
    )
    params: float | None = Field(
        None, gt=0, lt=1, description="share of the incoming encoder layers' parameters to KEEP, embeddings apart"
    )
    speedup: float | None = Field(
        None, gt=1, description="times as fast on `target`, deployed, as the FP32 ONNX of the dense architecture"
    )
    latency_ms: float | None = Field(None, gt=0, description="mean milliseconds of one example on `target`, deployed")
    max_drop_points: float | None = Field(
        None, ge=0, description="the fastest model that loses at most this many points of the metric on validation"
    )
    target: str = Field(
        "ort-cpu-1t",
        description="where latency is measured, and whose grid widths keep to: a built-in target, or a YAML file",
    )
    deploy: Literal["fp32", "int8", "fp16"] = Field(
        "fp32", description="precision in which latency is measured, and whose grid is kept to"
    )
    batch: int = Field(1, ge=1, description="examples that run together when latency is measured")
    layers: Annotated[int, Field(ge=1)] | list[Position] | None = Field(
        None, description="encoder layers to keep, before anything else: how many, or positions from 0; default: all"
    )
    layers_by: Literal["spacing", "importance"] = Field(
        "spacing", description="how `layers` as a number chooses: evenly from first to last, or the most important"
    )
    importance: str | None = Field(
        None, description="obs | fisher | taylor | magnitude, or a plugin's; null = obs, for convolutions fisher"
    )
    reconstruct: bool = Field(True, description="refit what stays by least squares; needs no training")
    search: int = Field(0, ge=0, description="candidates that a local search scores on real inputs; 0 = none")
    uniform: bool = Field(False, description="one feed-forward width, all heads: plain `from_pretrained` opens it")
    samples: int | None = Field(
        None, ge=1, description="training examples that it looks at, drawn by seed; null = 1,024, or all of fewer"
    )
    batch_size: int = Field(32, ge=1, description="examples per forward pass; does not change the result")
    round_to: int = Field(
        32, ge=1, description="neurons kept per layer are a multiple of this and of the target's grid; channels of 8"
    )
    min_heads: int = Field(0, ge=0, description="heads that every layer keeps at least; 0: attention may go")
    min_neurons: int = Field(0, ge=0, description="neurons that every layer keeps at least; 0: feed-forward may go")

    @property
    def budget(self) -> str | None:
        """Name of the budget that is given, if one is."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), None)

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> PruneConfig:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        if not given and self.layers is None:
            raise ValueError(f"give a budget ({', '.join(BUDGETS)}), `layers`, or both")
        return self


class Prune(Pass):
    """Ranks units, finds the widths that cost least accuracy within the budget, removes the rest physically."""

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    Config: ClassVar[type[PassConfig]] = PruneConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    forbids: ClassVar[frozenset[str]] = frozenset({SPARSE, CUSTOM_CODE})
    adds: ClassVar[frozenset[str]] = frozenset({"pruned"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train", "validation")

    def plan(self, inputs: Mapping[str, ModelInfo], config: PruneConfig) -> Plan:
        info = inputs["model"]
        traits = info.traits | self.adds
        if is_convolutional(info.config):
            return _plan_channels(info, traits, config)
        name = config.importance or "obs"
        if name not in importances:
            raise RecipeError(f"Unknown importance {name!r}.", fix=did_you_mean(name, importances))
        missing = _missing(config)
        if not info.config:
            return Plan(_summary(config, name), replace(info, traits=traits, parameters=None, macs=None), missing)
        size = dimensions(info.config)
        kept = size.layers if config.layers is None else len(choose_layers(config.layers, size.layers))
        shapes = {**info.config, family_of(info.config["model_type"]).layers_key: kept}
        planned = replace(info, traits=traits, config=shapes, parameters=None, macs=None)
        share = config.macs or config.params
        if share is not None or config.budget is None:
            planned = _predict(planned, info, size, kept, config)
        layers = "" if kept == size.layers else f", {kept} of {size.layers} layers"
        return Plan(_summary(config, name) + layers, planned, missing)

    def reads(self, config: PruneConfig) -> tuple[str, ...]:
        return self.uses if config.max_drop_points is not None else ("train",)

    def settle(self, config: PruneConfig) -> dict[str, Any]:
        """A budget of time belongs to the machine that it is measured on; widths keep to the grid of the target."""
        target = find_target(config.target)
        if config.budget not in TIMED:
            return {"grid": target.grid.model_dump(mode="json")} if target.grid != Grids() else {}
        from compress.search.latency import machine

        return {"machine": machine(), "target": target.model_dump(mode="json")}

    def apply(self, inputs: Mapping[str, Artifact], config: PruneConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch

        source = inputs["model"]
        model = load_torch(source.path, context.task).to(context.device)
        before = count_macs(model)
        with limit_threads(context.threads):
            prune = _prune_channels if is_convolutional(model.config.to_dict()) else _prune_encoder
            pruned, notes = prune(model, source, config, context)
        pruned.to("cpu")
        save_torch(pruned, context.out, tokenizer_from=source.path)
        macs = count_macs(pruned)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(pruned),
            macs=macs,
            notes=notes | {"macs_before": before, "macs_after": macs},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _summary(config: PruneConfig, importance: str) -> str:
    wanted = {
        "macs": lambda x: f"keep {x:.0%} of the encoder's MACs",
        "params": lambda x: f"keep {x:.0%} of the encoder's parameters",
        "speedup": lambda x: f"{x:g} times as fast in {config.deploy} on {config.target}",
        "latency_ms": lambda x: f"{x:g} ms in {config.deploy} on {config.target}",
        "max_drop_points": lambda x: f"as fast as {x:g} points allow, in {config.deploy} on {config.target}",
    }
    if config.budget is None:
        return "drop layers"
    grid = f", widths for {config.target}" if find_target(config.target).grid != Grids() else ""
    return f"{wanted[config.budget](getattr(config, config.budget))}, by {importance}{grid}"


def _missing(config: PruneConfig) -> tuple[str, ...]:
    """Say what the target of a timed budget lacks here."""
    if config.budget not in TIMED:
        return ()
    from compress.search.deploy import require_onnx_target

    try:
        require_onnx_target(find_target(config.target))
    except MissingCapabilityError as error:
        return (f"{error.what} ({error.value})",)
    return ()


def _plan_channels(info: ModelInfo, traits: frozenset[str], config: PruneConfig) -> Plan:
    from compress.pruning.channels import missing_torch_pruning

    if config.macs is None or config.layers is not None:
        raise RecipeError(
            "A convolutional network is pruned to a share of its multiply-accumulates.",
            value=", ".join(name for name in (*BUDGETS, "layers") if getattr(config, name) is not None),
            fix="Write `prune: {macs: 0.5}`.",
        )
    summary = f"keep {config.macs:.0%} of the MACs in fewer channels, by {config.importance or 'fisher'}"
    return Plan(summary, replace(info, traits=traits, parameters=None, macs=None), missing_torch_pruning())


def _predict(planned: ModelInfo, info: ModelInfo, size: Dimensions, kept: int, config: PruneConfig) -> ModelInfo:
    """Fill in the counts that a share of MACs or parameters, or a number of layers, leads to."""
    parameters, macs = planned_counts(info.config)
    dense = encoder_macs(size)
    outside = macs - dense
    encoder = (info.macs or macs) - outside
    after = int(encoder * min(kept / size.layers, config.macs or config.params or 1.0))
    units = size.heads * head_parameters(size) + size.neurons * neuron_parameters(size)
    norms = layer_parameters(size) - units
    gone = int(size.layers * units * (encoder - after) / dense) + (size.layers - kept) * norms
    return replace(planned, parameters=(info.parameters or parameters) - gone, macs=outside + after)


def _prune_channels(
    model: PreTrainedModel, source: Artifact, config: PruneConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    from compress.passes.shrink import target_grid
    from compress.pruning.convolution import prune_channels, recalibrate_batchnorm

    examples, importance = _sample(source, config, context), config.importance or "fisher"
    pruned = prune_channels(
        model,
        context.task,
        examples,
        keep_macs=float(config.macs or 1.0),
        importance=importance,
        round_to=math.lcm(min(config.round_to, 8), target_grid(config).channels),
        batch_size=config.batch_size,
        count=lambda done, total: context.emit(f"{importance} importance", done, total),
    )
    recalibrate_batchnorm(model, examples)
    return model, {**pruned.notes(), "importance": importance, "samples": len(examples)}


def _prune_encoder(
    model: PreTrainedModel, source: Artifact, config: PruneConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Drop layers, then shrink the rest to the budget; return the model and what to put on record."""
    from compress.models.families import encoder_layers
    from compress.models.structure import kept_heads
    from compress.models.uniform import absorb
    from compress.passes.shrink import shrink

    examples = _sample(source, config, context)
    size = dimensions(model.config.to_dict())
    layers, shrunk = shrink(model, source, examples, config, context)
    after = encoder_layers(shrunk.model)
    notes = {
        "layers": list(layers),
        "heads": [layer.heads for layer in after],
        "kept_heads": [list(kept_heads(layer)) for layer in after],
        "neurons": [layer.neurons for layer in after],
        "dense": {"layers": size.layers, "heads": size.heads, "neurons": size.neurons},
        "importance": config.importance or "obs",
        "samples": len(examples),
    }
    if shrunk.notes:
        notes["search"] = shrunk.notes
    if config.uniform:
        absorb(shrunk.model)
    return shrunk.model, notes


def _sample(source: Artifact, config: PruneConfig, context: Context) -> Encoded:
    """Draw labelled training rows by seed and encode them."""
    rows = [row for row in context.data["train"].rows if row.get("label") is not None]
    if not rows:
        raise DataError("The training split has no labelled row to prune by.", fix="Give `data.train` a label column.")
    count = min(config.samples or _SAMPLES, len(rows))
    chosen = np.random.default_rng(context.seed).choice(len(rows), count, replace=False)
    return context.task.encode(source.path, [rows[i] for i in sorted(chosen)])
