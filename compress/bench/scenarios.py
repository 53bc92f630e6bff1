"""MLPerf-style scenarios, driven by MLCommons' LoadGen in the measuring child: single-stream, offline, server.

They are no MLPerf results: a run lasts seconds where MLPerf demands ten minutes, on inputs and models of the user's.
For the server scenario the highest rate of a Poisson process is searched for at which LoadGen calls the run valid,
that is, at which it is 99 % sure that the 99th percentile keeps the bound (its early-stopping rule, which takes 459
queries at least). Every step of the search is run on all artifacts before the next, at rates of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.bench.launch import ENDED, ChildError
from compress.bench.loadgen import MODULE, QUERIES, STRETCH
from compress.bench.settings import MeasureSettings

if TYPE_CHECKING:
    from compress.bench.lane import Lane
    from compress.bench.protocol import Emit

SERVER_RUNS = 6
"""Runs of the search for a rate: the interval that holds it shrinks to 1/64."""
OFFLINE_RUNS = 2
"""A second run where the first, of as many samples as the throughput let expect, ended too soon."""
MISSING = "LoadGen is not installed: pip install 'mcompress[loadgen]'"


class RateSearch:
    """Bisection between the lowest rate that can be judged and what one server could answer without a pause.

    Args:
        capacity: queries per second that keep the server busy all the time: no higher rate can be sustained.
        least: rate below which a run cannot have the queries that it needs.
        runs: how many are allowed.
    """

    def __init__(self, capacity: float, least: float, runs: int = SERVER_RUNS) -> None:
        self._met, self._missed, self._left = least, capacity, runs

    @property
    def next(self) -> float | None:
        """The rate to try; None when the search is over."""
        return (self._met + self._missed) / 2 if self._left > 0 and self._met < self._missed else None

    def add(self, rate: float, met: bool) -> None:
        self._left -= 1
        if met:
            self._met = rate
        else:
            self._missed = rate


def measure_scenarios(lanes: Sequence[Lane], sequence: Sequence[int], settings: MeasureSettings, emit: Emit) -> None:
    """Run the scenarios that are asked for on every child that is still alive, into ``scenarios`` of its facts."""
    if not settings.scenarios:
        return
    for lane in lanes:
        if lane.child is not None and not lane.child.alive:
            lane.not_measured["scenarios"] = ENDED
    driven = [_Driven(lane, sequence, settings) for lane in lanes if lane.child is not None and lane.child.alive]
    if not driven:
        return
    bound_ms = settings.server_latency_ms or derived_bound_ms([one.p99_ms for one in driven])
    for scenario in settings.scenarios:
        for one in driven:
            one.begin(scenario, bound_ms, "given" if settings.server_latency_ms else "derived")
        steps = {"server": SERVER_RUNS, "offline": OFFLINE_RUNS}.get(scenario, 1)
        for step in range(steps):
            for one in driven:
                one.step()
            emit(f"measuring: {scenario}", step + 1, steps)


def derived_bound_ms(p99_ms: Sequence[float]) -> float:
    """Return twice the largest 99th percentile of single inputs, rounded up to two digits.

    One bound for all artifacts of a group, which the slowest can keep at some rate.
    """
    raw = 2 * max(p99_ms)
    scale = 10.0 ** (math.floor(math.log10(raw)) - 1) if raw > 0 else 1.0
    return float(f"{math.ceil(round(raw / scale, 6)) * scale:.6g}")


class _Driven:
    """One lane on its way through the scenarios."""

    def __init__(self, lane: Lane, sequence: Sequence[int], settings: MeasureSettings) -> None:
        self.lane, self._sequence, self._seconds = lane, list(sequence), settings.scenario_seconds
        samples = np.array([ms for launch in lane.samples for row in launch for ms in row])
        self.p99_ms, self._capacity = float(np.percentile(samples, 99)), 1e3 / float(samples.mean())
        self._batch, self._best_rate = _best_point(lane.facts.get("throughputs", ())) or (1, self._capacity)

    def begin(self, scenario: str, bound_ms: float, bound: str) -> None:
        """Make the scenario's entry, with the reason where it cannot be run."""
        batch = self._batch if scenario == "offline" else 1
        self._entry: dict[str, Any] = {"scenario": scenario, "batch": batch, "bound_ms": 0.0, "runs": []}
        self.lane.facts.setdefault("scenarios", []).append(self._entry)
        self._search: RateSearch | None = None
        if scenario == "server":
            self._entry |= {"bound_ms": bound_ms, "bound": bound}
            self._search = RateSearch(self._capacity, QUERIES["server"] / (STRETCH * self._seconds))
        if find_spec(MODULE) is None:
            self._entry["reason"] = MISSING
        elif scenario == "server" and self.p99_ms > bound_ms:
            self._entry["reason"] = (
                f"the 99th percentile of single inputs, {self.p99_ms:.3g} ms, is above the bound of {bound_ms:g} ms"
            )
        elif self._search is not None and self._search.next is None:
            needed = math.ceil(QUERIES["server"] / (STRETCH * self._capacity / 2))
            self._entry["reason"] = f"too slow for a 99th percentile in this time: set scenario_seconds to {needed}"

    def step(self) -> None:
        """Run the scenario once; a server at the next rate of its search."""
        rate = self._rate()
        if "reason" in self._entry or rate is None:
            return
        if self.lane.child is None or not self.lane.child.alive:
            self._entry["reason"] = ENDED
            return
        job = {key: self._entry[key] for key in ("scenario", "batch", "bound_ms")}
        try:
            run = self.lane.child.ask("scenario", **job, indices=self._sequence, seconds=self._seconds, rate=rate)
        except ChildError as error:
            self._entry["reason"] = error.reason
            self.lane.warnings.append(error.reason)
            return
        self._entry["runs"].append(run)
        if self._search is not None:
            self._search.add(rate, run["valid"])

    def _rate(self) -> float | None:
        """Samples per second: of the server's search, or those that LoadGen is told to expect; None = run no more."""
        runs = self._entry["runs"]
        if self._search is not None:
            return self._search.next
        if not runs:
            return self._best_rate if self._entry["scenario"] == "offline" else self._capacity
        return None if runs[-1]["valid"] or not runs[-1]["per_s"] else float(runs[-1]["per_s"])


def _best_point(points: Sequence[dict[str, Any]]) -> tuple[int, float] | None:
    """Return batch size and inputs per second of the sweep's best point with one stream."""
    single = [point for point in points if "reason" not in point and point["streams"] == 1]
    return max(
        [(point["batch"], float(np.mean(point["per_s"]))) for point in single], key=lambda rate: rate[1], default=None
    )
