"""When rounds end, and who goes first in each: time budget, precision target, rotation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from compress.bench.settings import (
    END_TO_END_ROUNDS,
    END_TO_END_SHARE,
    MINIMUM_ROUNDS,
    PRECISE_ROUNDS,
    MeasureSettings,
)
from compress.bench.timing_statistics import ratio_of_totals, student_t

Item = TypeVar("Item")
Series = list[list[list[float]]]
"""[launch][round][input] in ms."""
RESAMPLES = 1_000
"""Of the intervals that decide when to stop: they need no third digit."""


def rotated(items: Sequence[Item], number: int) -> Iterator[Item]:
    """Yield the items of round ``number``: A B C, B C A, C A B, A B C, ..."""
    shift = number % max(1, len(items))
    yield from (*items[shift:], *items[:shift])


def half_width(reference: Series | None, samples: Series) -> float:
    """Return the relative half-width of the interval of a ratio: (high - low) / 2 over the ratio.

    Args:
        reference: what ``samples`` are compared with; None: with a constant, which gives the precision of their own
            total.
    """
    if reference is None:
        reference = [[[1.0] for _ in launch] for launch in samples]
    ratio = ratio_of_totals(reference, samples, resamples=RESAMPLES)
    return (ratio.high - ratio.low) / (2 * ratio.value)


def half_widths(series: Sequence[Series]) -> list[float]:
    """Return the half-width of each series against the first; of a single one against a constant."""
    if len(series) == 1:
        return [half_width(None, series[0])]
    return [half_width(series[0], other) for other in series[1:]]


def launch_share(launches: int) -> float:
    """Return how much wider the interval of one launch may be than that of all together.

    The mean of k launches is sqrt(k) times as precise as one of them, but its interval is formed from k values only:
    it takes Student's t with k - 1 degrees of freedom where a launch of many rounds takes the normal quantile. 1 for
    one launch, 0.79 for three, 1.58 for five.
    """
    if launches == 1:
        return 1.0
    return math.sqrt(launches) * NormalDist().inv_cdf(0.975) / student_t(0.95, launches - 1)


@dataclass
class Pace:
    """The time of one group, shared by its launches, and what ended the rounds of each.

    A launch that ends early leaves its time to those after it. Each launch carries an equal share of the precision,
    see ``launch_share``.

    Args:
        clock: seconds.
        second_clock: whether time is kept for end-to-end rounds.
    """

    settings: MeasureSettings
    clock: Callable[[], float]
    second_clock: bool = False
    spent: float = 0.0
    timed_out: bool = False
    capped: bool = False
    _launch: int = -1
    _start: float = 0.0
    _banked: float = 0.0
    _allowed: float = 0.0
    _running: bool = False

    def begin(self) -> None:
        """Begin the rounds of the next launch."""
        self._launch += 1
        self._allowed = (self.settings.seconds - self.spent) / max(1, self.settings.launches - self._launch)
        self._banked = 0.0
        self.resume()

    def pause(self) -> None:
        """Stop the time for what is no round."""
        self._banked += self.clock() - self._start
        self._running = False

    def resume(self) -> None:
        self._start, self._running = self.clock(), True

    def end(self) -> None:
        """End the rounds of this launch, on both clocks."""
        self.spent += self._passed()

    def ends(self, done: int, series: Callable[[], Sequence[Series]]) -> bool:
        """Say whether the model-only rounds of this launch are over.

        Args:
            done: rounds that were run.
            series: gives the samples of every living row up to now, the group's first one first.
        """
        if done >= self.settings.rounds:
            self.capped = self.settings.precision is None or not self._precise(series())
            return True
        if done >= PRECISE_ROUNDS and self._precise(series()):
            return True
        share = 1 - END_TO_END_SHARE if self.second_clock else 1.0
        if done >= MINIMUM_ROUNDS and self._passed() >= self._allowed * share:
            self.timed_out = True
            return True
        return False

    def second_ends(self, done: int) -> bool:
        """Say whether the end-to-end rounds of this launch are over; one is run however little time there is."""
        return done >= END_TO_END_ROUNDS or (done >= 1 and self._passed() >= self._allowed)

    def why(self) -> str:
        """Say what kept the rounds from being more."""
        if self.timed_out:
            return "the time for this group was used up"
        if self.capped:
            return f"no more than {self.settings.rounds} per launch are run"
        return "its launches differ from one another"

    def _passed(self) -> float:
        return self._banked + (self.clock() - self._start if self._running else 0.0)

    def _precise(self, series: Sequence[Series]) -> bool:
        if self.settings.precision is None:
            return False
        now = [each[-1:] for each in series if each and each[-1]]
        share = self.settings.precision * launch_share(self.settings.launches)
        return bool(now) and all(width <= share for width in half_widths(now))


def missed_precision(series: Sequence[Series], pace: Pace) -> list[str]:
    """Return one warning for each series of a finished group; empty where the precision was reached.

    Args:
        series: one of every row of the group, its first row first; rows without samples are empty.
    """
    wanted, out = pace.settings.precision, [""] * len(series)
    timed = [i for i, each in enumerate(series) if any(each)]
    if wanted is None or not timed:
        return out
    widths = half_widths([series[i] for i in timed])
    for i, width in zip(timed if len(timed) == 1 else timed[1:], widths, strict=True):
        if width > wanted:
            rounds = sum(len(launch) for launch in series[i])
            reached = f"±{100 * width:.2g} %" if math.isfinite(width) else "no interval"
            after = f"after {rounds} round{'s' * (rounds > 1)}"
            out[i] = f"precision of ±{100 * wanted:.2g} % not reached: {reached} {after}, {pace.why()}"
    return out
