"""The rows of a report: one per step and target, with accuracy, speed-ups and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.bench.measurement import Measurement
from compress.pipeline.costs import costs_of, missing_of
from compress.pipeline.emulated import isa_of, part_of, twin_of
from compress.pipeline.gpu import on_the_cpu
from compress.pipeline.half import half_findings, is_for_gpus
from compress.pipeline.int8 import findings, integers
from compress.pipeline.lineage import family
from compress.pipeline.measuring import ONNX, TORCH, Measured
from compress.pipeline.running import RunState
from compress.pipeline.scores import accuracy_of, classes_of, difference, score_of
from compress.pipeline.timings import end_to_end_of, latency_of, speedups_of
from compress.report import model as report
from compress.runtimes.target import Target
from compress.tasks.base import Score


def build_rows(state: RunState, measured: Measured) -> list[report.Row]:
    """Return the rows in the order in which they were measured."""
    by_cell = {(m.subject, m.target): m for m in measured.measurements}
    targets = {target.name: target for target in measured.targets}
    scores = {cell: score_of(state, m, measured.answers) for cell, m in by_cell.items()}
    reference = _reference_cell(measured, by_cell)
    rows = []
    for cell, measurement in by_cell.items():
        target = targets[measurement.target]
        group = measured.baselines.get(target.group, ())
        row = _row(state, measurement, target, scores[cell])
        if row.status == "ok":
            times = {
                "speedups": speedups_of(measurement, group, by_cell),
                "end_to_end": end_to_end_of(measurement, group, by_cell),
            }
            row = row.model_copy(update=times)
        if reference is not None and row.status == "ok":
            row = row.model_copy(update=_against(state, measured, by_cell, scores, reference, cell))
        if (
            row.step in (*state.plan.leaves, state.plan.reference)
            and measured.answers is not None
            and measurement.examples is None
        ):
            base = None if reference is None or cell == reference else scores[reference]
            classes = classes_of(state.task.labels, measured.answers, scores[cell], base)
            row = row.model_copy(update={"classes": classes})
        row = row.model_copy(update={"twin": twin_of(state.task, measurement, by_cell.values())})
        artifact = state.artifact(row.step)
        why = () if is_for_gpus(artifact) else findings(row)
        half = half_findings(row, artifact, target)
        rows.append(row.model_copy(update={"findings": (*why, *half, *on_the_cpu(measurement, target))}))
    return mark_pareto(rows)


def _reference_cell(measured: Measured, by_cell: dict[tuple[str, str], Measurement]) -> tuple[str, str] | None:
    """The uncompressed model whose answers all rows are paired with: torch if it was run, else ONNX."""
    for name in (TORCH, ONNX):
        for group in measured.baselines.values():
            for baseline in group:
                cell = (baseline.step, baseline.target.name)
                if baseline.name == name and cell in by_cell and by_cell[cell].status == "ok":
                    return cell
    return None


def _row(state: RunState, m: Measurement, target: Target, score: Score | None) -> report.Row:
    planned = state.outcomes[m.subject]
    return report.Row(
        step=m.subject,
        target=m.target,
        status=m.status,
        reason=m.reason,
        evidence=target.evidence,
        isa=isa_of(target, m),
        deliverable=m.subject in state.plan.leaves and planned.delivered,
        family=family(state, m.subject),
        accuracy=None if score is None else accuracy_of(score, m.outputs),
        latency=latency_of(m),
        **costs_of(m),
        integers=integers(state.artifact(m.subject), m.placement),
        warnings=tuple(m.warnings),
        not_measured=missing_of(m),
    )


def _against(
    state: RunState,
    measured: Measured,
    by_cell: dict[tuple[str, str], Measurement],
    scores: dict[tuple[str, str], Score | None],
    reference: tuple[str, str],
    cell: tuple[str, str],
) -> dict[str, Any]:
    base, score = scores[reference], scores[cell]
    first, second = by_cell[reference].outputs, by_cell[cell].outputs
    if by_cell[cell].examples is not None and first is not None and measured.answers is not None:
        first = part_of(first, by_cell[cell])
        base = state.task.score(first, part_of(measured.answers, by_cell[cell]))
    if cell == reference or base is None or score is None or first is None or second is None:
        return {}
    return {
        "agreement": float(state.task.agree(first, second).mean()),
        "difference": difference(reference[0], base, score),
    }


def mark_pareto(rows: Sequence[report.Row]) -> list[report.Row]:
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
