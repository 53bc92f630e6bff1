"""The rows of a report: one per step and target, with accuracy, speed-ups and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.bench.protocol import Measurement
from compress.bench.statistics import (
    Interval,
    PairedDifference,
    mean_interval,
    needed_n,
    paired_difference,
    percentile,
    ratio_of_totals,
    wilson_interval,
)
from compress.pipeline.int8 import findings, integers
from compress.pipeline.lineage import family
from compress.pipeline.measuring import ONNX, TORCH, Baseline, Measured
from compress.pipeline.running import RunState
from compress.quantization.isa import isa_name
from compress.report import model as report
from compress.runtimes.target import Target
from compress.tasks.base import Score

PERCENT = {"accuracy", "exact_match", "micro_f1"}
"""Metrics that are fractions and are shown in percent; others keep their unit."""


def build_rows(state: RunState, measured: Measured) -> list[report.Row]:
    """Return the rows in the order in which they were measured."""
    by_cell = {(m.subject, m.target): m for m in measured.measurements}
    targets = {target.name: target for target in measured.targets}
    scores = {cell: score_of(state, m, measured.answers) for cell, m in by_cell.items()}
    reference = _reference_cell(measured, by_cell)
    rows = []
    for cell, measurement in by_cell.items():
        target = targets[measurement.target]
        group = measured.baselines.get((target.device, target.threads), ())
        speedups = {
            b.name: _speedup(b, by_cell.get((b.step, b.target.name)), measurement)
            for b in group
            if (b.step, b.target.name) in by_cell
        }
        row = _row(state, measurement, target, scores[cell], {k: v for k, v in speedups.items() if v is not None})
        if reference is not None and row.status == "ok":
            row = row.model_copy(update=_against(state, by_cell, scores, reference, cell))
        rows.append(row.model_copy(update={"findings": tuple(findings(row))}))
    return _mark_pareto(rows)


def _reference_cell(measured: Measured, by_cell: dict[tuple[str, str], Measurement]) -> tuple[str, str] | None:
    """The uncompressed model whose answers all rows are paired with: torch if it was run, else ONNX."""
    for name in (TORCH, ONNX):
        for group in measured.baselines.values():
            for baseline in group:
                cell = (baseline.step, baseline.target.name)
                if baseline.name == name and cell in by_cell and by_cell[cell].status == "ok":
                    return cell
    return None


def score_of(state: RunState, measurement: Measurement, answers: np.ndarray | None) -> Score | None:
    """Return the score of a measured artifact on the exact target, if it gave outputs and the split has labels."""
    if measurement.outputs is None or answers is None:
        return None
    return state.task.score(measurement.outputs, answers)


def _row(
    state: RunState, m: Measurement, target: Target, score: Score | None, speedups: dict[str, report.Speedup]
) -> report.Row:
    planned = state.outcomes[m.subject]
    return report.Row(
        step=m.subject,
        target=m.target,
        status=m.status,
        reason=m.reason,
        evidence=target.evidence,
        isa=isa_name() if target.device == "cpu" else None,
        deliverable=m.subject in state.plan.leaves and planned.delivered,
        family=family(state, m.subject),
        accuracy=None if score is None else _accuracy(score),
        latency=_latency(m),
        speedups=speedups,
        throughput_per_s=m.throughput_per_s,
        throughput_batch=m.throughput_batch,
        load_ms=m.load_ms,
        first_ms=m.first_ms,
        peak_rss_bytes=m.peak_rss_bytes,
        import_rss_bytes=m.import_rss_bytes,
        size_bytes=m.size_bytes,
        parameters=m.parameters,
        integers=integers(state.artifact(m.subject), m.placement),
        warnings=tuple(m.warnings),
        not_measured={"throughput": m.warnings[-1]} if m.status == "ok" and m.throughput_per_s is None else {},
    )


def _accuracy(score: Score) -> report.Accuracy:
    percent = score.metric in PERCENT
    n = len(score.outcomes)
    interval = wilson_interval(round(score.outcomes.sum()), n) if percent else mean_interval(score.outcomes)
    return report.Accuracy(
        metric=score.metric,
        unit="percent" if percent else "plain",
        direction=score.direction,
        value=score.value,
        low=interval.low,
        high=interval.high,
        n=n,
        right=round(score.outcomes.sum()) if percent else None,
    )


def _against(
    state: RunState,
    by_cell: dict[tuple[str, str], Measurement],
    scores: dict[tuple[str, str], Score | None],
    reference: tuple[str, str],
    cell: tuple[str, str],
) -> dict[str, Any]:
    base, score = scores[reference], scores[cell]
    first, second = by_cell[reference].outputs, by_cell[cell].outputs
    if cell == reference or base is None or score is None or first is None or second is None:
        return {}
    return {
        "agreement": float(state.task.agree(first, second).mean()),
        "difference": difference(reference[0], base, score),
    }


def difference(baseline: str, base: Score, score: Score) -> report.Difference:
    """Return ``score`` minus ``base``, paired on the same examples; ``baseline`` is the step that ``base`` is of."""
    percent = score.metric in PERCENT
    scale = 100.0 if percent else 1.0
    paired = paired_difference(base.outcomes, score.outcomes)
    return report.Difference(
        baseline=baseline,
        unit="percent" if percent else "plain",
        points=scale * paired.value,
        low=scale * paired.low,
        high=scale * paired.high,
        p_value=paired.p_value,
        text=_resolved(paired, base, score),
    )


def _resolved(paired: PairedDifference, base: Score, score: Score) -> str:
    if paired.low > 0 or paired.high < 0:
        return "a real difference"
    if paired.value == 0:
        return "no difference found"
    text = f"not resolvable at N = {paired.n:,}"
    if paired.only_a is None:
        return text
    discordant = float(np.mean(base.outcomes != score.outcomes))
    return f"{text}; about {needed_n(max(discordant, abs(paired.value)), paired.value):,} examples would"


def _latency(m: Measurement) -> report.Latency | None:
    if m.status != "ok" or not m.samples_ms:
        return None
    samples = np.asarray(m.samples_ms, dtype=np.float64)  # (launches, rounds, inputs)
    totals = samples.sum(axis=2).reshape(-1)
    flat = m.flat_ms
    return report.Latency(
        p50_ms=percentile(flat, 50),
        p90_ms=percentile(flat, 90),
        mean_ms=float(flat.mean()),
        cv=float(totals.std(ddof=1) / totals.mean()) if len(totals) > 1 else None,
        inputs=samples.shape[2],
        rounds=samples.shape[0] * samples.shape[1],
    )


def _speedup(place: Baseline, baseline: Measurement | None, m: Measurement) -> report.Speedup | None:
    if baseline is None or baseline.status != "ok" or m.status != "ok" or not m.samples_ms or not baseline.samples_ms:
        return None
    against = report.Baseline(step=place.step, target=place.target.name)
    if baseline is m:
        return report.Speedup(ratio=1.0, against=against)
    ratio: Interval = ratio_of_totals(baseline.samples_ms, m.samples_ms)
    return report.Speedup(ratio=ratio.value, low=ratio.low, high=ratio.high, against=against)


def _mark_pareto(rows: Sequence[report.Row]) -> list[report.Row]:
    """Mark the rows of each target that no other row beats in both accuracy and median latency."""

    def position(row: report.Row) -> tuple[float, float] | None:
        if row.status != "ok" or row.latency is None or row.accuracy is None:
            return None
        worth = row.accuracy.value if row.accuracy.direction == "higher" else -row.accuracy.value
        return (-row.latency.p50_ms, worth)

    out = []
    for row in rows:
        here = position(row)
        rivals = [position(other) for other in rows if other is not row and other.target == row.target]
        out.append(row.model_copy(update={"pareto": here is not None and not any(_beats(p, here) for p in rivals)}))
    return out


def _beats(rival: tuple[float, float] | None, here: tuple[float, float]) -> bool:
    return rival is not None and rival != here and rival[0] >= here[0] and rival[1] >= here[1]
