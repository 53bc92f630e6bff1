"""The waterfall: what each stage on the way to an artifact gained, target by target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.pipeline.lineage import ancestry, precision
from compress.pipeline.measuring import ONNX, TORCH, Measured
from compress.pipeline.planning import PlannedStep
from compress.pipeline.running import RunState
from compress.report.model import Row, Stage, Verdict
from compress.runtimes.target import Target

_WORDS = {
    "build": "build the engine",
    "distill": "distil",
    "export": "export",
    "factorize": "factorize",
    "finetune": "fine-tune",
    "prune": "prune",
    "qat": "train with int8 in sight",
    "shrink": "shrink",
    "trim": "trim the vocabulary",
}


def stages(state: RunState, measured: Measured, rows: Sequence[Row], verdict: Verdict) -> Iterator[Stage]:
    """Yield the stages of every target, first to last, from the uncompressed model to the artifact to ship.

    Where the verdict ships nothing, or not on this target, the last deliverable that was measured there stands at
    the end. A PyTorch stage that was not run on the target itself has the time of its plain ONNX form, if that was.
    """
    by_cell = {(row.step, row.target): row for row in rows if row.status == "ok" and row.latency is not None}
    for target in measured.targets:
        here = [row.step for row in rows if row.deliverable and (row.step, target.name) in by_cell]
        ready = [step for step in state.plan.leaves if step in here]
        if ready:
            last = verdict.step if verdict.step in ready else ready[-1]
            yield from _told(state, _waypoints(state, measured, target, by_cell, last), target)


@dataclass(frozen=True)
class _Waypoint:
    step: str
    what: str
    row: Row | None
    """Where its time and accuracy come from: its own, or that of its plain ONNX form."""
    reason: str = ""


def _waypoints(
    state: RunState, measured: Measured, target: Target, by_cell: Mapping[tuple[str, str], Row], last: str
) -> list[_Waypoint]:
    """Return the model's baselines on this target, then the steps after the reference."""
    chain = [step for step in reversed(list(ancestry(state, last)))]
    before = state.plan.reference
    ids = [step.id for step in chain]
    chain = chain[ids.index(before) + 1 :] if before in ids else chain
    group = {b.name: b for b in measured.baselines.get(target.group, ())}
    found = []
    for name, what in ((TORCH, "the model in PyTorch"), (ONNX, "export of the model")):
        baseline = group.get(name)
        row = by_cell.get((baseline.step, baseline.target.name)) if baseline else None
        at_home = baseline is not None and (name == TORCH or (baseline.step, target.name) in by_cell)
        if baseline is not None and row is not None and at_home and baseline.step not in [step.id for step in chain]:
            found.append(_Waypoint(baseline.step, what, by_cell.get((baseline.step, target.name), row)))
    if not found:
        row = by_cell.get((before, target.name))
        reason = "" if row else f"the uncompressed model was not measured beside {target.name}"
        found.append(_Waypoint(before, "the model", row, reason))
    return found + [_waypoint(state, step, target, by_cell) for step in chain]


def _waypoint(state: RunState, step: PlannedStep, target: Target, by_cell: Mapping[tuple[str, str], Row]) -> _Waypoint:
    what = _what(state, step)
    if row := by_cell.get((step.id, target.name)):
        return _Waypoint(step.id, what, row)
    for other in state.plan.steps:
        row = by_cell.get((other.id, target.name))
        if row and other.pass_.name == "export" and other.parents.get("model") == step.id:
            return _Waypoint(step.id, f"{what} (timed as {other.id})", row)
    artifact = state.artifact(step.id)
    if artifact is not None and artifact.kind == "torch":
        return _Waypoint(
            step.id, what, None, f"a PyTorch model: no plain ONNX form of it was measured on {target.name}"
        )
    return _Waypoint(step.id, what, None, f"not measured on {target.name}")


def _what(state: RunState, step: PlannedStep) -> str:
    name = step.pass_.name
    if name in {"quantize", "cast"}:
        return f"{name} to {precision(state, step.id)}"
    return _WORDS.get(name, name.replace("_", " "))


def _told(state: RunState, waypoints: Sequence[_Waypoint], target: Target) -> Iterator[Stage]:
    """Yield the stages; gains are over the stage before that has a number of the kind."""
    first_ms = before_ms = before_value = first_size = None
    for waypoint in waypoints:
        row, artifact = waypoint.row, state.artifact(waypoint.step)
        ms = row.latency.mean_ms if row and row.latency else None
        size = artifact.size_bytes if artifact is not None else None
        accuracy = row.accuracy if row else None
        facts: dict[str, Any] = {"latency_ms": ms, "size_bytes": size}
        if accuracy is not None:
            facts |= {"accuracy": accuracy.value, "unit": accuracy.unit}
            if before_value is not None:
                facts["points"] = (100.0 if accuracy.unit == "percent" else 1.0) * (accuracy.value - before_value)
            before_value = accuracy.value
        if ms is not None:
            facts |= {"gain": before_ms and before_ms / ms, "speedup": first_ms and first_ms / ms}
            first_ms, before_ms = first_ms or ms, ms
        if size is not None:
            first_size = first_size or size
            facts["size_ratio"] = size / first_size
        yield Stage(step=waypoint.step, target=target.name, what=waypoint.what, reason=waypoint.reason, **facts)
