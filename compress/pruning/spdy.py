"""Search for the widths that a measured loss prefers: measured curves, dynamic programming, local search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite

import numpy as np

from compress.pruning.allocation import choose_widths
from compress.pruning.costs import CostTable
from compress.pruning.ladder import Ladder, Ladders, Widths

Score = Callable[[Widths], float]
"""Measured loss of the model with these widths; lower is better."""
Count = Callable[[int, int], None]
"""Called with (scores computed, scores that are computed at most)."""

REDRAWS = 20
"""Draws of coefficients per score: most small changes lead to widths that were scored before."""


@dataclass(frozen=True)
class SearchResult:
    """The best candidate that a search has seen.

    Attributes:
        widths: within the budget.
        score: its measured loss.
        coefficients: those that lead the dynamic programming to it, one per sub-layer.
        evaluated: how many different widths were scored.
    """

    widths: Widths
    score: float
    coefficients: tuple[float, ...]
    evaluated: int


def search(
    ladders: Ladders,
    costs: CostTable,
    budget: float,
    score: Score,
    *,
    start: Sequence[float] | None = None,
    starts: int = 0,
    steps: int = 20,
    share: float = 0.1,
    spread: float = 0.5,
    power: float = 1.0,
    seed: int = 0,
    count: Count | None = None,
) -> SearchResult:
    """Search coefficients of the sub-layers' losses for the candidate with the smallest measured loss.

    SPDY (Frantar & Alistarh 2022, arXiv:2201.13096, section 3.2): the losses of the ladders are added up with
    one coefficient per sub-layer; dynamic programming turns coefficients into the best widths within the
    budget, and these are scored for real. The start is scored first, then random coefficients, then the best
    ones with a share of them changed, kept whenever the score falls. Coefficients are changed by log-normal
    factors. Widths that were seen before are not scored again; other coefficients are drawn instead.

    Args:
        ladders: what removal costs. With measured ones (``sensitivity_curves``) the first candidate is nearly as
            good as what the local search finds; with others it takes many starts and steps.
        costs: of all widths that may be chosen.
        budget: the most that a whole candidate may cost; every one that is scored keeps it.
        score: measured loss. The fewer examples it looks at, the sooner more steps only fit these.
        start: coefficients to begin with; default: all 1.
        starts: random coefficients that are scored before the local search.
        steps: scores of the local search.
        share: of the coefficients that one step changes; at least one is.
        spread: standard deviation of the logarithm of a change; random starts take twice as much.
        power: exponent of the ladders' losses.
        seed: of all draws.
        count: progress.

    Raises:
        UsageError: even the smallest widths cost more than the budget.
    """
    rng = np.random.default_rng(seed)
    trials = _Trials(ladders, costs, budget, score, power, 1 + starts + steps, count)
    size = len(ladders.sublayers)
    begin = np.ones(size) if start is None else np.asarray(start, dtype=np.float64)
    trials.take(begin)
    for _ in range(starts):
        trials.redraw(lambda: begin * rng.lognormal(0.0, 2 * spread, size))
    for _ in range(steps):
        trials.redraw(lambda: trials.coefficients * _some(rng, size, share, spread))
    return SearchResult(trials.widths, trials.score, tuple(map(float, trials.coefficients)), len(trials.seen))


def sensitivity_curves(
    ladders: Ladders,
    costs: CostTable,
    score: Score,
    removed: Sequence[float] = (0.5, 0.75, 1.0),
    count: Count | None = None,
) -> Ladders:
    """Measure what removal costs in every sub-layer alone, and return ladders with these losses.

    Every sub-layer is scored at a few widths with all others whole. Between them the loss follows the
    ladder's own: linear in it from one measured point to the next, and never falling.

    Args:
        ladders: in which order units go, and how their loss rises.
        costs: which widths may be chosen; the closest ones are measured.
        score: measured loss of a candidate.
        removed: shares of a sub-layer's units, ascending.
        count: progress.

    Returns:
        Ladders of the same orders. Their losses are rises of the score, so they can be added up.
    """
    whole = [ladder.units for ladder in ladders.sublayers]
    plans = [_measured_widths(costs, i, units, removed) for i, units in enumerate(whole)]
    total, done = 1 + sum(map(len, plans)), 0

    def measure(widths: Sequence[int]) -> float:
        nonlocal done
        value, done = score(Widths.of_sublayers(widths)), done + 1
        if count is not None:
            count(done, total)
        return value

    base = measure(whole)
    curves = []
    for i, (ladder, widths) in enumerate(zip(ladders.sublayers, plans, strict=True)):
        losses = [measure([*whole[:i], width, *whole[i + 1 :]]) - base for width in widths]
        curves.append(Ladder(ladder.order, _through(ladder, widths, losses)))
    return Ladders(tuple(curves[::2]), tuple(curves[1::2]))


class _Trials:
    """Candidates that were scored, and the best of them."""

    def __init__(
        self,
        ladders: Ladders,
        costs: CostTable,
        budget: float,
        score: Score,
        power: float,
        total: int,
        count: Count | None,
    ) -> None:
        self._choose: Callable[[np.ndarray], Widths] = partial(choose_widths, ladders, costs, budget, power=power)
        self._measure, self._total, self._count = score, total, count
        self.seen: set[Widths] = set()
        self.score = inf

    def take(self, coefficients: np.ndarray) -> bool:
        """Score the candidate of some coefficients; return False when its widths were scored before."""
        widths = self._choose(coefficients)
        if widths in self.seen:
            return False
        self.seen.add(widths)
        measured = self._measure(widths)
        value = measured if isfinite(measured) else inf
        if len(self.seen) == 1 or value < self.score:
            self.widths, self.score, self.coefficients = widths, value, coefficients
        if self._count is not None:
            self._count(len(self.seen), self._total)
        return True

    def redraw(self, draw: Callable[[], np.ndarray]) -> None:
        """Draw coefficients until their candidate is a new one; give up after ``REDRAWS``."""
        for _ in range(REDRAWS):
            if self.take(draw()):
                return


def _some(rng: np.random.Generator, size: int, share: float, spread: float) -> np.ndarray:
    """Return (size,) float64: log-normal factors at a random share of the places, 1 elsewhere."""
    factors = np.ones(size)
    places = rng.choice(size, max(1, round(share * size)), replace=False)
    factors[places] = rng.lognormal(0.0, spread, len(places))
    return factors


def _measured_widths(costs: CostTable, sublayer: int, units: int, removed: Sequence[float]) -> list[int]:
    """Return the widths closest to the shares of units that go, descending, without the present one."""
    levels = np.array(costs.levels(sublayer, units)[:-1])
    if not len(levels):
        return []
    return sorted({int(levels[np.abs(levels - units * (1 - r)).argmin()]) for r in removed}, reverse=True)


def _through(ladder: Ladder, widths: Sequence[int], losses: Sequence[float]) -> np.ndarray:
    """Return (units + 1,) float64: the ladder's loss, bent so that it goes through measured points."""
    units = ladder.units
    gone = [0, *(units - width for width in widths)]
    values = np.maximum.accumulate([0.0, *losses])
    along = np.linspace(0.0, 1.0, units + 1)
    if ladder.loss[-1] > 0:
        along = ladder.loss / ladder.loss[-1] + 1e-6 * along
    return np.interp(along, along[gone], values)
