"""Throughput, measured on its own: a sweep over batch sizes and streams, point by point over all artifacts.

Throughput is never taken as 1 / latency. At each point every child first runs one untimed pass over full batches of
inputs of similar length; then the repetitions of all children alternate, as the rounds of the latencies do, so that
the rows of one target can be divided by one another. A point that fails, for want of memory for example, leaves a
reason, and larger ones are then not tried on that artifact.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.bench.launch import ENDED, ChildError
from compress.bench.rounds import rotated
from compress.bench.settings import LEAST_REPEATS, THROUGHPUT_REPEATS, MeasureSettings

if TYPE_CHECKING:
    from compress.bench.lane import Lane
    from compress.bench.protocol import Emit


def measure_throughput(lanes: Sequence[Lane], sequence: Sequence[int], settings: MeasureSettings, emit: Emit) -> None:
    """Sweep the children that are still alive; ``throughputs`` of each lane's facts gets one entry per point."""
    opened = [lane for lane in lanes if lane.child is not None]
    for lane in opened:
        if lane.child is not None and not lane.child.alive:
            lane.not_measured["throughput"] = ENDED
    swept = [_Swept(lane) for lane in opened if "throughput" not in lane.not_measured]
    if not swept:
        return
    share = settings.throughput_seconds / THROUGHPUT_REPEATS
    batches = sorted({*settings.throughput_batches, settings.throughput_batch})
    points = [(batch, streams) for streams in sorted({1, *settings.throughput_streams}) for batch in batches]
    lengths = swept[0].lane.subject.encoded.lengths[list(sequence)]
    limit = _affordable(swept, share, len(sequence))
    for number, (batch, streams) in enumerate(points):
        groups = [[sequence[i] for i in group] for group in full_batches(lengths, batch, limit)]
        ready = [one for one in swept if one.prepare(batch, streams, groups)]
        for turn in range(THROUGHPUT_REPEATS):
            for one in rotated(ready, turn):
                one.repeat(share, settings.throughput_seconds)
        emit("measuring: throughput", number + 1, len(points))
    for one in swept:
        one.state(settings.throughput_batch)


def full_batches(lengths: np.ndarray, batch: int, limit: int) -> list[list[int]]:
    """Return groups of ``batch`` positions of similar length, shortest first; every group is full.

    Positions are spread evenly over the order by length, some of them taken twice where the last group would not be
    full, so that every point of a sweep has the same distribution of lengths.

    Args:
        lengths: (n,) tokens of each input.
        limit: inputs that are wanted, rounded up to whole groups.
    """
    order = np.argsort(lengths, kind="stable")
    count = -(-limit // batch) * batch
    spread = order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]
    return [[int(i) for i in spread[at : at + batch]] for at in range(0, count, batch)]


def _affordable(swept: Sequence[_Swept], seconds: float, inputs: int) -> int:
    """Return how many inputs the slowest artifact gets through in that time, one after another; all of them at most."""
    means = [np.mean([ms for launch in one.lane.samples for row in launch for ms in row] or [0.0]) for one in swept]
    slowest_s = float(max(means)) / 1e3
    return inputs if slowest_s * inputs <= seconds else max(1, int(seconds / slowest_s))


class _Swept:
    """One lane on its way through the sweep."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._points: list[dict[str, Any]] = []
        self._failed: dict[int, int] = {}
        lane.facts["throughputs"] = self._points

    def prepare(self, batch: int, streams: int, groups: Sequence[Sequence[int]]) -> bool:
        """Make the point's entry and get the child ready; False where it cannot run, which the entry explains."""
        point: dict[str, Any] = {"batch": batch, "streams": streams, "per_s": [], "seconds": 0.0}
        self._points.append(point)
        if self.lane.child is None or not self.lane.child.alive:
            point["reason"] = "not tried: the measuring process ended at an earlier point"
        elif streams in self._failed:
            point["reason"] = f"not tried: batch {self._failed[streams]} failed"
        else:
            answer = self._ask("throughput_prepare", groups=groups, streams=streams)
            if "cannot" in answer:
                point["reason"] = answer["cannot"]
        return "reason" not in point

    def repeat(self, seconds: float, most: float) -> None:
        """Add one repetition to the newest point, unless enough of them used up ``most`` seconds."""
        point = self._points[-1]
        if "reason" not in point and (point["seconds"] < most or len(point["per_s"]) < LEAST_REPEATS):
            answer = self._ask("throughput", seconds=seconds)
            if answer:
                point["per_s"].append(answer["per_s"])
                point["seconds"] += answer["seconds"]

    def state(self, batch: int) -> None:
        """Set the single figure that rows state: the mean of the repetitions at this batch size, one stream."""
        for point in self._points:
            if (point["batch"], point["streams"]) == (batch, 1) and "reason" not in point:
                self.lane.facts |= {"throughput_per_s": statistics.fmean(point["per_s"]), "throughput_batch": batch}

    def _ask(self, op: str, **job: Any) -> dict[str, Any]:
        """Ask the child. A failure is the point's reason only: single inputs were served in full."""
        point = self._points[-1]
        try:
            return self.lane.child.ask(op, **job) if self.lane.child else {}
        except ChildError as error:
            point["reason"] = error.reason.partition(": ")[2] or error.reason
            self._failed[point["streams"]] = point["batch"]
            return {}
