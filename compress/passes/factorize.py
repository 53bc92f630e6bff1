"""``factorize``: word embeddings and linears as products of two thin matrices, where that makes the model smaller."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact, hash_json
from compress.data.calibration import stratified_indices, stratum
from compress.errors import DataError
from compress.models.counting import TOKENS
from compress.models.families import dimensions
from compress.models.remote_code import CUSTOM_CODE
from compress.models.sparsity import SPARSE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan, library_versions
from compress.passes.trim import require_text
from compress.runtimes.base import runtimes
from compress.runtimes.target import find_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.pruning.factorization import Decision


class FactorizeConfig(PassConfig):
    """What to factor, and how far. ``factorize: {}`` gives the word embeddings rank 128; distil afterwards."""

    embeddings: int | None = Field(128, ge=1, description="rank of the word embeddings; null = leave them")
    smoothing: float = Field(1.0, gt=0, description="added to the number of times that each token occurs in train")
    linears: float | None = Field(
        None, gt=0, lt=1, description="share of its weights that a linear of the encoder keeps; null = leave them"
    )
    max_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="linears: share of the variance of the outputs that may go; the least rank within it, and a "
        "linear that then needs more than the share `linears` (default: all) of its weights stays dense",
    )
    goal: Literal["size", "latency"] = Field(
        "size", description="what a factored matrix must lower: weights, or also the time measured on `target`"
    )
    target: str = Field("ort-cpu-1t", pattern=r"^[^/\\]+$", description="goal latency: built-in target to measure on")
    deploy: Literal["fp32", "int8", "fp16"] = Field("fp32", description="goal latency: precision to measure in")
    samples: int = Field(512, ge=1, description="training examples whose inputs weigh the linears, drawn by seed")
    batch_size: int = Field(32, ge=1, description="examples per forward pass; does not change the result")

    @model_validator(mode="after")
    def _asks_for_something(self) -> FactorizeConfig:
        if self.embeddings is None and self.linears is None and self.max_error is None:
            raise ValueError("give `embeddings` (a rank), `linears` (a share), `max_error`, or several")
        return self


class Factorize(Pass):
    """Factors matrices so that training inputs notice least, and only those that get smaller by it."""

    name: ClassVar[str] = "factorize"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "torch", "transformers")
    Config: ClassVar[type[PassConfig]] = FactorizeConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    forbids: ClassVar[frozenset[str]] = frozenset({SPARSE, CUSTOM_CODE})
    adds: ClassVar[frozenset[str]] = frozenset({"factorized"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: FactorizeConfig) -> Plan:
        info = inputs["model"]
        require_text(info, self.name)
        linears = "linears" in _parts(config)
        parts = [] if config.embeddings is None else [f"word embeddings at rank {config.embeddings}"]
        parts += ["linears"] * linears
        where = f", where that is faster on {config.target}" if config.goal == "latency" else ""
        parameters, macs = (None, None) if linears else (info.parameters, info.macs)
        if config.embeddings is not None and info.config:
            rows, width = int(info.config["vocab_size"]), dimensions(info.config).hidden
            saved = rows * width - config.embeddings * (rows + width)
            gains = saved > 0 and not info.config.get("embedding_size")
            parameters = parameters - saved if parameters is not None and gains else parameters
            macs = macs + TOKENS * config.embeddings * width if macs is not None and gains else macs
        planned = replace(info, traits=info.traits | self.adds, parameters=parameters, macs=macs)
        return Plan(f"factor {' and '.join(parts)}{where}", planned, _missing(config))

    def apply(self, inputs: Mapping[str, Artifact], config: FactorizeConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch
        from compress.models.signature import torch_graph

        source = inputs["model"]
        model = load_torch(source.path, context.task)
        with limit_threads(context.threads):
            model, decisions, notes = _choose(model, source, config, context)
        save_torch(model, context.out, tokenizer_from=source.path)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=notes
            | {
                "factored": {d.path: d.record() for d in decisions if d.factored},
                "left": {d.path: d.reason for d in decisions if not d.factored},
            },
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _parts(config: FactorizeConfig) -> tuple[str, ...]:
    """Return what is asked for: embeddings, linears, or both."""
    linears = config.linears is not None or config.max_error is not None
    return (*(["embeddings"] if config.embeddings is not None else []), *(["linears"] if linears else []))


def _choose(
    model: PreTrainedModel, source: Artifact, config: FactorizeConfig, context: Context
) -> tuple[PreTrainedModel, list[Decision], dict[str, Any]]:
    """Return the factored model, what was done to each part of it, and the times if they decided."""
    parts = _parts(config)
    if config.goal == "size":
        decisions = _factor(model, parts, source, config, context)
        return model, decisions, {}
    combinations = [parts[:1], parts[1:], parts] if len(parts) > 1 else [parts]
    variants = {" and ".join(names): copy.deepcopy(model) for names in combinations}
    decided = {
        name: _factor(variant, names, source, config, context)
        for (name, variant), names in zip(variants.items(), combinations, strict=True)
    }
    best, times = _fastest(variants, model, source, config, context)
    notes = {"target": config.target, "deploy": config.deploy, "times": times, "chosen": best or "none"}
    kept = [] if best is None else decided[best]
    done = {decision.path for decision in kept}
    slower = [d.leave(f"not faster on {config.target}") for d in decided[" and ".join(parts)] if d.path not in done]
    return model if best is None else variants[best], [*kept, *slower], notes


def _fastest(
    variants: Mapping[str, PreTrainedModel],
    whole: PreTrainedModel,
    source: Artifact,
    config: FactorizeConfig,
    context: Context,
) -> tuple[str | None, dict[str, Any]]:
    from compress.search.factoring import fastest, time_variants

    context.emit(f"timing {len(variants) + 1} models on {config.target}")
    decisive = {"model": source.digest, "train": context.data["train"].digest, "config": config.model_dump(mode="json")}
    times = time_variants(
        variants,
        whole,
        source.path,
        context.task,
        context.task.encode(source.path, context.data["train"].rows),
        find_target(config.target),
        config.deploy,
        context.store,
        hash_json(
            decisive | {"seed": context.seed, "versions": library_versions((*Factorize.libraries, "onnxruntime"))}
        ),
    )
    return fastest(times), {name: vars(speedup) for name, speedup in times.items()}


def _factor(
    model: PreTrainedModel, parts: Sequence[str], source: Artifact, config: FactorizeConfig, context: Context
) -> list[Decision]:
    """Factor some parts of a model in place."""
    from compress.pruning.factorization import factor_embedding, factor_linears

    decisions: list[Decision] = []
    if "embeddings" in parts and config.embeddings is not None:
        context.emit("factoring the word embeddings")
        texts = context.task.encode(source.path, context.data["train"].rows)
        decisions.append(factor_embedding(model, texts, config.embeddings, config.smoothing))
    if "linears" in parts:
        context.emit("factoring linears")
        sample = _sample(source, config, context)
        decisions += factor_linears(
            model, sample, share=config.linears, max_error=config.max_error, batch_size=config.batch_size
        )
    return decisions


def _missing(config: FactorizeConfig) -> tuple[str, ...]:
    """Return why models cannot be timed on the target here."""
    if config.goal == "size":
        return ()
    target = find_target(config.target)
    found = runtimes.get(target.runtime)().available(target)
    return () if found.ok else (found.reason,)


def _sample(source: Artifact, config: FactorizeConfig, context: Context) -> Encoded:
    rows = context.data["train"].rows
    if len(rows) < config.samples:
        raise DataError(
            "The training split has fewer rows than `factorize` asks for.",
            value=f"{config.samples} samples of {len(rows)} rows",
            fix="Lower `samples` of the factorize step.",
        )
    chosen = stratified_indices([stratum(row) for row in rows], config.samples, context.seed)
    return context.task.encode(source.path, [rows[i] for i in chosen])
