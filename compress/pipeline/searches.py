"""What each search for a latency asked, predicted and measured, beside what this run measured of its model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from compress.bench.protocol import Measurement
from compress.bench.timing_statistics import ratio_of_totals
from compress.models.families import dimensions
from compress.pipeline.lineage import family, precision, same_widths
from compress.pipeline.measuring import Measured
from compress.pipeline.planning import onnx_baseline
from compress.pipeline.running import RunState
from compress.pipeline.timings import speedup_record
from compress.report import model as report

TIMED = {"speedup", "latency_ms"}
"""Budgets that are a time; an accuracy is the other goal that is searched for by latency."""


def widths(notes: Mapping[str, Any]) -> report.Widths | None:
    """Return the widths that a manifest's notes hold, if its pass pruned an encoder."""
    if not {"layers", "heads", "neurons", "dense"} <= set(notes):
        return None
    dense = notes["dense"]
    return report.Widths(
        layers=notes["layers"],
        heads=notes["heads"],
        neurons=notes["neurons"],
        full_layers=dense["layers"],
        full_heads=dense["heads"],
        full_neurons=dense["neurons"],
    )


def latency_searches(state: RunState, measured: Measured) -> Iterator[report.LatencySearch]:
    """Yield a record for every finished step that timed pruned encoders, in the order of the plan."""
    cells = {(m.subject, m.target): m for m in measured.measurements}
    for step in state.plan.steps:
        outcome = state.outcomes[step.id]
        if outcome.status != "done" or outcome.artifact is None:
            continue
        notes = outcome.artifact.manifest.notes
        search = notes.get("search", {})
        if "predicted_speedup" not in search or widths(notes) is None:
            continue
        low, high = search["interval"]
        found = _Comparison.of(state, cells, step.id, notes)
        yield report.LatencySearch(
            step=step.id,
            target=search["target"],
            deploy=search["deploy"],
            budget=search["budget"],
            predicted=search["predicted_speedup"],
            searched=report.Speedup(ratio=search["measured_speedup"], low=low, high=high),
            attempts=len(search["attempts"]),
            drift=max((row["dense_ms"] / search["table"]["dense_ms"] - 1 for row in search["attempts"]), key=abs),
            **found.record(search["budget"], search["predicted_speedup"]),
        )


class _Comparison(NamedTuple):
    """The measured descendant of a ``prune`` step and the dense model beside it, or why there is none."""

    artifact: str | None = None
    row: Measurement | None = None
    dense: Measurement | None = None
    reason: str = ""

    @classmethod
    def of(
        cls, state: RunState, cells: Mapping[tuple[str, str], Measurement], step: str, notes: Mapping[str, Any]
    ) -> _Comparison:
        search = notes["search"]
        target, deploy = search["target"], search["deploy"]
        if search.get("batch_size", 1) != 1:
            return cls(reason=f"searched in batches of {search['batch_size']}; this report times one input at a time")
        made = [id_ for id_ in same_widths(state, step) if precision(state, id_) == deploy]
        timed = [id_ for id_ in made if (id_, target) in cells and _is_timed(cells[id_, target])]
        if not timed:
            return cls(reason=f"no {deploy} model made from it was measured on {target}")
        artifact = max(timed, key=lambda id_: (id_ in state.plan.leaves, timed.index(id_)))
        row = cells[artifact, target]
        dense = cells.get((onnx_baseline(state.plan) or "", target))
        if dense is None or not _is_timed(dense):
            return cls(artifact, row, reason=f"the dense FP32 ONNX model was not measured on {target}")
        if why := _another_dense(state, step, notes):
            return cls(artifact, row, reason=why)
        return cls(artifact, row, dense)

    def record(self, budget: Mapping[str, float], predicted: float) -> dict[str, Any]:
        """Return the fields of the report that come from the measurement."""
        if self.row is None:
            return {"reason": self.reason}
        ms = float(self.row.flat_ms.mean())
        fields: dict[str, Any] = {"artifact": self.artifact, "measured_ms": ms, "reason": self.reason}
        if self.dense is None:
            return fields
        ratio = ratio_of_totals(self.dense.samples_ms, self.row.samples_ms)
        against = report.Baseline(step=self.dense.subject, target=self.dense.target)
        fields |= {
            "measured": speedup_record(ratio, against),
            "error": ratio.value / predicted - 1.0,
        }
        if not TIMED & set(budget):
            return fields
        asked = budget["speedup"] if "speedup" in budget else ratio.value * ms / budget["latency_ms"]
        verdict = "pass" if ratio.low >= asked else "fail" if ratio.high < asked else "unresolved"
        return fields | {"met": ratio.value >= asked, "verdict": verdict}


def _is_timed(measurement: Measurement) -> bool:
    return measurement.status == "ok" and bool(measurement.samples_ms)


def _another_dense(state: RunState, step: str, notes: Mapping[str, Any]) -> str:
    """Say why the search's dense model is not the one that this report measures; empty if it is."""
    reference = state.artifact(state.plan.reference)
    if family(state, step) == "student":
        return "the search counts from the student's own dense form"
    config = None if reference is None else reference.path / "config.json"
    if reference is None or config is None or not config.is_file() or "pruned" in reference.manifest.traits:
        return "the search counts from the dense form of a model that was pruned before this recipe"
    size = dimensions(json.loads(config.read_text(encoding="utf-8")))
    searched = (len(notes["layers"]), notes["dense"]["heads"], notes["dense"]["neurons"])
    if searched != (size.layers, size.heads, size.neurons):
        return f"the search counts from a dense model of {searched[0]} layers, this report from one of {size.layers}"
    return ""
