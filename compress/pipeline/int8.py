"""INT8 in the report: what really runs on integers, why it is not faster, and what each search tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compress.artifact import Artifact
from compress.pipeline.measuring import ONNX, TORCH
from compress.pipeline.running import RunState
from compress.report import model as report

FAST_ENOUGH = 1.2
"""An INT8 artifact whose speed-up is below this is asked why."""
_MOST = 0.7
_SLOW = {"x86-sse", "x86-avx2", "x86-avx512"}


def integers(artifact: Artifact | None, placement: Mapping[str, Any]) -> report.Integers | None:
    """Return what a runtime computes on integers; None for an artifact that stores none, or where it does not tell."""
    if artifact is None or "int8" not in artifact.manifest.traits or "integer_products" not in placement:
        return None
    return report.Integers(
        mac_share=placement.get("integer_mac_share"),
        **{
            name: placement.get(name)
            for name in ("integer_products", "float_products", "attention_products", "conversions", "folded")
        },
    )


def findings(row: report.Row) -> Iterator[str]:
    """Yield why an INT8 row is not clearly faster than FP32, the gravest reason first; nothing if it is."""
    it = row.integers
    speedup = row.speedups.get(ONNX) or row.speedups.get(TORCH)
    if it is None or speedup is None or speedup.ratio >= FAST_ENOUGH:
        return
    if it.folded and not it.integer_products:
        yield (
            f"It folds back to FP32: {it.folded} products are stored in 8 bits, turned to float when it is loaded or "
            "run, and none is computed on integers."
        )
    elif it.folded:
        yield f"{it.folded} products are stored in 8 bits, but run in FP32."
    if it.mac_share is not None and it.mac_share < _MOST and it.integer_products:
        yield (
            f"Only {100 * it.mac_share:.0f} % of the linear layers' multiply-accumulates run on integers; "
            f"{it.float_products} layers stay in FP32."
        )
    if it.conversions is not None and it.conversions > 2 * max(it.integer_products, 1):
        yield (
            f"{it.conversions} nodes only convert between types, for {it.integer_products} integer products: "
            "operators without a gain of their own are quantized too, and the conversions cost more than they save."
        )
    if it.integer_products and row.isa in _SLOW:
        yield "This CPU has no VNNI: an 8-bit product takes three instructions, and gains at most about 1.7 times."
    if it.integer_products and (it.mac_share or 0.0) >= _MOST and row.latency is not None:
        yield (
            f"{100 * (it.mac_share or 0.0):.0f} % of the linear layers run on integers: what is left is the time of "
            "all other operators, which 8 bits do not shorten."
        )


def int8_searches(state: RunState) -> Iterator[report.Int8Search]:
    """Yield a record for every finished step that chose its INT8 form by measurement, in the order of the plan."""
    for step in state.plan.steps:
        outcome = state.outcomes[step.id]
        notes = outcome.artifact.manifest.notes if outcome.status == "done" and outcome.artifact is not None else {}
        if step.pass_.name == "quantize" and "search" in notes:
            yield search_record(step.id, notes)


def search_record(step: str, notes: Mapping[str, Any]) -> report.Int8Search:
    """Return the record of one search from what its manifest holds."""
    search, isa = notes["search"], notes["isa"]
    scale = 100.0 if search["percent"] else 1.0
    calibration = search.get("calibration") or {}
    return report.Int8Search(
        step=step,
        target=search["target"],
        isa=isa["name"],
        flags=tuple(isa["flags"]),
        goal=search["goal"],
        max_drop=scale * search["max_drop"],
        examples=search["examples"],
        kept=search["kept"],
        unit="percent" if search["percent"] else "plain",
        candidates=tuple(_candidate(row, scale) for row in search["candidates"]),
        forms={row["label"]: _speedup(row) for row in search["forms"]},
        not_timed=search.get("not_timed", ""),
        calibration_examples=calibration.get("examples"),
        calibration_peak_rss_bytes=calibration.get("peak_rss_bytes"),
        float_peak_rss_bytes=search["float32"].get("peak_rss_bytes"),
        reasons=tuple(_reasons(notes.get("placement", ()))),
        saturation=notes.get("saturation"),
        trail=tuple(
            report.TrailStep(
                action=it["action"],
                points=-scale * it["drop"],
                low=-scale * it["high"],
                high=-scale * it["low"],
                holds=it["holds"],
            )
            for it in notes.get("trail", ())
        ),
    )


def _candidate(row: Mapping[str, Any], scale: float) -> report.Int8Candidate:
    drop = row["drop"]
    return report.Int8Candidate(
        label=row["label"],
        speedup=row["speedup"] and _speedup(row["speedup"]),
        points=-scale * drop["value"],
        low=-scale * drop["high"],
        high=-scale * drop["low"],
        size_bytes=row["size_bytes"],
        mac_share=row["integer_share"],
        pareto=row["pareto"],
        chosen=row["chosen"],
    )


def _speedup(row: Mapping[str, Any]) -> report.Speedup:
    return report.Speedup(ratio=row["ratio"], low=row["low"], high=row["high"])


def _reasons(placement: Iterable[Mapping[str, str]]) -> Iterator[report.FloatReason]:
    """Group the nodes that stay in float32 by reason, products first: those are what could have been quantized."""
    operators: dict[str, Counter[str]] = {}
    example: dict[str, str] = {}
    for node in placement:
        operators.setdefault(node["reason"], Counter())[node["operator"]] += 1
        example.setdefault(node["reason"], node["node"])
    products = {"MatMul", "Gemm", "Gather", "Conv"}
    for reason in sorted(operators, key=lambda it: not products & set(operators[it])):
        yield report.FloatReason(
            reason=reason, operators=dict(sorted(operators[reason].items())), example=example[reason]
        )
