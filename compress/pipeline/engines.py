"""Engines in the report: what was built, and what in an engine makes it slower than it could be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.pipeline.running import RunState
from compress.report.engine_model import Engine, EngineLayers

COSTLY = ("refit", "strip_plan", "version_compatible", "exclude_lean_runtime")
MANY = 0.1
"""Conversions above this share of an engine's layers are said to be many."""
FEW = 0.5
"""An INT8 engine with a smaller share of INT8 layers is asked why."""
_FUSABLE = ("int8", "fp8", "fp16", "bf16")


def engine_records(state: RunState) -> Iterator[Engine]:
    """Yield a record for every engine of every finished ``build`` step, the dynamic one of a step first."""
    for step in state.plan.steps:
        outcome = state.outcomes[step.id]
        artifact = outcome.artifact
        if artifact is not None and outcome.status == "done" and "engines" in artifact.manifest.notes:
            for graph, noted in artifact.manifest.notes["engines"].items():
                yield record(step.id, graph, artifact.manifest.notes, noted)


def record(step: str, graph: str, built: Mapping[str, Any], noted: Mapping[str, Any]) -> Engine:
    """Return the record of one engine.

    Args:
        step: id of the step.
        graph: ``model`` for the dynamic engine, ``model@8x128`` for one of a single shape.
        built: the sidecar of the step's dynamic engine; the others differ in their shapes only.
        noted: of this engine: seconds, bytes, profile, and what the inspector found or why it found nothing.
    """
    _, _, sizes = graph.partition("@")
    found = noted.get("inspection")
    layers = None if found is None else EngineLayers.model_validate({k: v for k, v in found.items() if k != "detailed"})
    engine = Engine(
        step=step,
        shape=tuple(int(size) for size in sizes.split("x")) if sizes else (),
        profile=next(iter(noted["profile"].values()), {}),
        options=_options(built),
        timing_cache=_timing_cache(built.get("timing_cache")),
        size_bytes=noted["bytes"],
        seconds=noted["seconds"],
        inspected=layers,
        not_inspected=noted.get("not_inspected", ""),
        **{name: built[name] for name in ("library", "version", "device", "precision", "float_precision")},
        **{name: built.get(name) for name in ("compute_capability", "driver")},
    )
    return engine.model_copy(update={"findings": tuple(findings(engine, detailed=bool(found and found["detailed"])))})


def findings(engine: Engine, *, detailed: bool = True) -> Iterator[str]:
    """Yield what makes an engine slower than it could be, the gravest first.

    Args:
        engine: its record.
        detailed: whether the inspector told the types of the layers.
    """
    it = engine.inspected
    if engine.precision == "int8" and engine.float_precision not in _FUSABLE:
        yield (
            f"The layers that are not quantized run in {engine.float_precision}: cast them to FP16, or INT8 gains "
            "little."
        )
    if it is None:
        return
    computing = sum(it.precisions.values())
    if engine.precision == "int8" and detailed and computing and it.precisions.get("int8", 0) < FEW * computing:
        yield f"Only {it.precisions.get('int8', 0)} of {computing} layers that compute read INT8."
    if it.fused_attention < it.attention:
        where = f"{it.attention - it.fused_attention} of {it.attention} attention blocks"
        why = "" if engine.float_precision in _FUSABLE else "; kernels for a whole block exist for FP16, BF16 and INT8"
        yield f"Attention is not fused: {where} run as several kernels{why}."
    conversions = {"layout": it.reformats, "type": it.casts, "quantization": it.quantizers}
    if sum(conversions.values()) > MANY * it.layers:
        parts = ", ".join(f"{count} of {what}" for what, count in conversions.items() if count)
        yield f"{sum(conversions.values())} of {it.layers} layers only convert ({parts})."


def _options(built: Mapping[str, Any]) -> tuple[str, ...]:
    level = built.get("hardware_compatibility", "none")
    chosen = tuple(name for name in COSTLY if built.get(name))
    return chosen if level == "none" else (*chosen, f"hardware_compatibility: {level}")


def _timing_cache(noted: Mapping[str, Any] | None) -> str:
    if noted is None:
        return ""
    return "used" if noted["used"] else f"not used: {noted['reason']}"
