"""Meet a goal: a share, a speed-up, a latency or a loss of accuracy, checked on the pruned model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.structure import is_dense
from compress.pruning.costs import CostTable
from compress.pruning.ladder import Widths
from compress.runtimes.target import Target
from compress.search.cutting import Cutter, Emit
from compress.search.deploy import Precision, Speedup, deploy, measure_speedup
from compress.search.latency import LatencyTable
from compress.search.probe import build_probe
from compress.store import Store
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.artifact import Artifact

ATTEMPTS = 5
"""Models that are built and timed for one latency goal, at most."""
OVERSHOOT = 1.04
"""A model that is faster than asked by more than this factor is tried larger."""
MARGIN = 1.02
"""How much faster than needed the table is asked to be, since a model that misses by a hair has to be cut again."""
HALVINGS = 6
"""Models that are built and scored for an accuracy goal."""


@dataclass(frozen=True)
class Shrunk:
    """A pruned model and how it was found; ``notes`` are the manifest's."""

    model: PreTrainedModel
    widths: Widths
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencyGoal:
    """A budget of time on a target.

    Attributes:
        speedup: over the FP32 ONNX of the dense architecture; or
        latency_ms: mean milliseconds of one example.
    """

    speedup: float | None = None
    latency_ms: float | None = None

    def allowed_ms(self, dense_ms: float) -> float:
        """Return the milliseconds that the pruned model may take where the dense one takes ``dense_ms``."""
        return self.latency_ms if self.latency_ms is not None else dense_ms / float(self.speedup or 1.0)

    def dump(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Bench:
    """Times pruned models as they will be deployed, beside the dense FP32 model.

    Attributes:
        folder: of the incoming model: its configuration and tokenizer.
        task: of the model.
        encoded: the user's examples; some stand for their lengths.
        target, precision: where and how the pruned model will run.
        batch_size: examples that run together.
        store: gives working folders.
        emit: progress sink.
    """

    folder: Path
    task: Task
    encoded: Encoded
    target: Target
    precision: Precision
    batch_size: int
    store: Store
    emit: Emit

    @contextmanager
    def against(self, model: PreTrainedModel) -> Iterator[Callable[[PreTrainedModel], Speedup]]:
        """Give a function that times a model beside the dense form of ``model``, which is exported once."""
        with self.store.workspace() as work:
            config = model.config.to_dict() | {"num_labels": model.config.num_labels}
            dense = model if is_dense(model) else build_probe(config)
            baseline = deploy(dense, self.folder, self.task, "fp32", work / "dense")
            yield lambda pruned: self._time(pruned, baseline, work)

    def _time(self, pruned: PreTrainedModel, baseline: Artifact, work: Path) -> Speedup:
        import shutil

        place = work / "candidate"
        self.emit("exporting a candidate to time it")
        candidate = deploy(pruned, self.folder, self.task, self.precision, place, target=self.target)
        (timed,) = measure_speedup(
            [candidate],
            baseline,
            self.encoded,
            self.target,
            work=work,
            batch_size=self.batch_size,
            emit=self.emit,
        )
        shutil.rmtree(place)
        return timed


def shrink_to_cost(cutter: Cutter, costs: CostTable, budget: float) -> Shrunk:
    """Return the best model whose cost by the table is at most ``budget``."""
    widths = cutter.choose(costs, budget)
    return Shrunk(cutter.cut(widths), widths)


def shrink_to_latency(cutter: Cutter, table: LatencyTable, goal: LatencyGoal, bench: Bench) -> Shrunk:
    """Return the largest model found that meets the goal as measured, not as predicted.

    The table chooses widths for the goal; the model is cut, deployed and timed beside the dense one. When it
    misses, or is faster than asked by more than ``OVERSHOOT``, what is asked of the table is corrected by what
    was measured and the next model is built.

    Raises:
        UsageError: the smallest widths are too slow, or no attempt met the goal.
    """
    wanted_ms = goal.allowed_ms(table.dense_fp32_ms) / MARGIN
    attempts: list[_Attempt] = []
    with bench.against(cutter.model) as time:
        while len(attempts) < ATTEMPTS:
            widths = cutter.choose(table.costs, table.budget(wanted_ms))
            if any(attempt.widths == widths for attempt in attempts):
                break
            timed = time(cutter.cut(widths, refit=False))
            attempt = _Attempt(wanted_ms, widths, table.predict_ms(widths), timed, goal)
            attempts.append(attempt)
            bench.emit(attempt.describe())
            if attempt.met and (attempt.slack <= OVERSHOOT or widths == cutter.present):
                break
            wanted_ms = _corrected(attempts)
    met = [attempt for attempt in attempts if attempt.met]
    if not met:
        closest = max(attempts, key=lambda attempt: attempt.slack)
        raise UsageError(
            "No pruned model met the latency goal when it was timed.",
            value=f"{goal.dump()}; the closest of {len(attempts)}: {closest.describe()}",
            fix="Time on an idle machine, ask for less, drop layers with `layers`, or deploy int8.",
        )
    best = min(met, key=lambda attempt: attempt.slack)
    return Shrunk(cutter.cut(best.widths), best.widths, _notes(goal, table, attempts, best, bench))


def shrink_to_accuracy(
    cutter: Cutter, table: LatencyTable, score: Callable[[PreTrainedModel], float], max_drop: float, bench: Bench
) -> Shrunk:
    """Return the fastest model found whose validation score is worse by at most ``max_drop``; it is timed at the end.

    Bisects the logarithm of the predicted latency: ``HALVINGS`` models are built and scored.

    Args:
        cutter: of the model.
        table: predicts latencies.
        score: validation score of a model in points, higher is better.
        max_drop: allowed difference to the incoming model's score, in points.
        bench: times the model.

    Raises:
        UsageError: not even the largest model that was tried stays within the drop.
    """
    own = score(cutter.model)
    smallest = Widths.of_sublayers([table.costs.levels(i, w)[0] for i, w in enumerate(cutter.present.sublayers)])
    full, least = table.predict_ms(cutter.present), table.predict_ms(smallest)
    low, high = 0.0, math.log(full / max(least, 1e-9 * full))
    best: Shrunk | None = None
    tried = []
    for number in range(HALVINGS):
        factor = math.exp((low + high) / 2)
        shrunk = shrink_to_cost(cutter, table.costs, table.budget(max(full / factor, least)))
        drop = own - score(shrunk.model)
        tried.append({"predicted_ms": table.predict_ms(shrunk.widths), "drop_points": drop})
        bench.emit(f"{factor:.2f} times as fast: {-drop:+.2f} points on validation", number + 1, HALVINGS)
        if drop <= max_drop:
            best, low = shrunk, math.log(factor)
        else:
            high = math.log(factor)
    if best is None:
        lost = ", ".join(format(row["drop_points"], ".2f") for row in tried)
        raise UsageError(
            "Every pruned model that was tried loses more than allowed.",
            value=f"{max_drop:g} points allowed; lost {lost}",
            fix="Allow more, or recover with a `distill` step after a milder goal.",
        )
    with bench.against(cutter.model) as time:
        goal = LatencyGoal()
        chosen = _Attempt(full, best.widths, table.predict_ms(best.widths), time(best.model), goal)
    notes = _notes(goal, table, [chosen], chosen, bench)
    return Shrunk(best.model, best.widths, notes | {"budget": {"max_drop_points": max_drop}, "candidates": tried})


@dataclass(frozen=True)
class _Attempt:
    """One model that was cut and timed."""

    wanted_ms: float
    widths: Widths
    predicted_ms: float
    timed: Speedup
    goal: LatencyGoal

    @property
    def slack(self) -> float:
        """How much faster than allowed the model is; below 1 it misses the goal."""
        return self.goal.allowed_ms(self.timed.dense_ms) / self.timed.ms

    @property
    def met(self) -> bool:
        return self.slack >= 1.0

    def describe(self) -> str:
        timed = self.timed
        return f"timed {timed.ms:.2f} ms, {timed.value:.2f} times as fast as dense FP32 ({timed.dense_ms:.2f} ms)"


def _corrected(attempts: list[_Attempt]) -> float:
    """Return the next latency to ask of the table: between a miss and a hit, else corrected by the last one timed."""
    misses = [attempt.wanted_ms for attempt in attempts if not attempt.met]
    hits = [attempt.wanted_ms for attempt in attempts if attempt.met]
    last = attempts[-1]
    if misses and hits:
        return math.sqrt(max(hits) * min(misses))
    return last.predicted_ms * last.slack / MARGIN


def _notes(
    goal: LatencyGoal, table: LatencyTable, attempts: list[_Attempt], best: _Attempt, bench: Bench
) -> dict[str, Any]:
    """Return what the report compares: prediction and measurement of every attempt, of the chosen one first."""

    def row(attempt: _Attempt) -> dict[str, Any]:
        timed = attempt.timed
        return {
            "predicted_ms": attempt.predicted_ms,
            "predicted_speedup": table.dense_fp32_ms / attempt.predicted_ms,
            "measured_ms": timed.ms,
            "measured_speedup": timed.value,
            "interval": [timed.low, timed.high],
            "dense_ms": timed.dense_ms,
            "met": attempt.met,
        }

    return {
        "budget": goal.dump(),
        "target": bench.target.name,
        "deploy": bench.precision,
        "batch_size": bench.batch_size,
        "table": {"dense_ms": table.dense_fp32_ms, "worst_fit": table.worst_fit, "variants": table.variants},
        **row(best),
        "attempts": [row(attempt) for attempt in attempts],
    }
