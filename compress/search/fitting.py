"""From timed models to the cost of every width of a sub-layer: robust totals, least squares, and a curve over sums.

Sums of costs of sub-layers predict models of about the same size well. Over a wide range they do not: the weights of a
large model have to come from memory, those of a small one stay in the processor's caches. The curve joins the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.pruning.ladder import Widths

_TOLERANCE = 1e-10
_SMOOTHNESS = 0.08
"""Weight of a change of slope by the mean slope, beside a relative error of a model's total: what noise is expected."""
_KNOTS = 8
"""Ranges of the curve, equal in the logarithm of the sums."""


@dataclass(frozen=True)
class Fit:
    """Costs in the unit of the totals.

    Attributes:
        fixed: of a model without layers.
        heads, neurons: measured width -> cost of the sub-layer; at 0 it is that of a removed one, which keeps a
            bias, a residual connection and a LayerNorm.
        errors: for each variant the fitted total over the measured one, minus 1.
    """

    fixed: float
    heads: Mapping[int, float]
    neurons: Mapping[int, float]
    errors: tuple[float, ...]


def quiet_totals(samples: np.ndarray) -> np.ndarray:
    """Return (variants,) totals over the inputs whose ratios no other load on the machine can bend.

    Every input counts with its fastest round, since interruptions only ever add time, and add more to longer runs.
    All totals are then raised by one factor to the level of a typical round.

    Args:
        samples: (variants, rounds, inputs) ms.
    """
    fastest: np.ndarray = samples.min(axis=1).sum(axis=1)
    typical = np.median(samples, axis=1).sum(axis=1)
    return fastest * float(np.median(typical / fastest))


@dataclass(frozen=True)
class Curve:
    """Joins sums of costs and totals of models by straight lines; beyond its ends the last ratio holds.

    Attributes:
        sums: ascending.
        totals: nondecreasing, one for each sum.
    """

    sums: tuple[float, ...]
    totals: tuple[float, ...]

    def total(self, cost_sum: float) -> float:
        """Return the predicted total of a model whose costs add up to ``cost_sum``."""
        return _along(cost_sum, self.sums, self.totals)

    def cost_sum(self, total: float) -> float:
        """Return the sum of costs whose predicted total is ``total``."""
        return _along(total, self.totals, self.sums)


def fit_curve(sums: np.ndarray, totals: np.ndarray) -> Curve:
    """Return the curve through the typical ratio of totals to sums in each of a few ranges of the sums.

    Args:
        sums: (variants,) positive; what the costs of a model add up to.
        totals: (variants,) what it took.
    """
    logs = np.log(sums)
    share = (logs - logs.min()) / max(float(np.ptp(logs)), _TOLERANCE)
    places = np.minimum((share * _KNOTS).astype(int), _KNOTS - 1)
    knots = [
        (float(np.exp(logs[places == place].mean())), float(np.median(totals[places == place] / sums[places == place])))
        for place in sorted(set(places.tolist()))
    ]
    heights = np.maximum.accumulate([cost_sum * ratio for cost_sum, ratio in knots])
    rising = [i for i in range(len(knots)) if i == 0 or heights[i] > heights[i - 1]]
    return Curve(tuple(knots[i][0] for i in rising), tuple(float(heights[i]) for i in rising))


def fit_costs(variants: Sequence[Widths], totals: np.ndarray, smoothness: float = _SMOOTHNESS) -> Fit:
    """Solve for costs whose sums are the totals, with the least squared relative error.

    More units never cost less: a cost is a sum of steps from one measured width to the next, and the steps are
    solved for by nonnegative least squares. Where noise allows either, the cost of one more unit is the same
    from one step to the next. Removed sub-layers of both kinds cost the same.

    Args:
        variants: widths of the models that were measured, of any number of layers; every width of interest occurs.
        totals: (variants,) their costs.
        smoothness: weight of changes of slope; 0 = none.
    """
    heads = sorted({0, *(h for v in variants for h in v.heads)})
    neurons = sorted({0, *(n for v in variants for n in v.neurons)})
    rows = [_row(variant, heads, neurons) for variant in variants]
    design = np.array(rows, dtype=np.float64)
    weights = 1 / totals[:, None]
    wanted = np.ones(len(totals))
    steps = nonnegative_least_squares(design * weights, wanted)
    if smoothness:
        bends = smoothness * np.concatenate(
            [_bends(steps, heads, 2), _bends(steps, neurons, 1 + len(heads))]  # slopes of the first solution scale them
        )
        steps = nonnegative_least_squares(
            np.concatenate([design * weights, bends]), np.concatenate([wanted, np.zeros(len(bends))])
        )
    of_heads = steps[1] + np.concatenate([[0.0], np.cumsum(steps[2 : 1 + len(heads)])])
    of_neurons = steps[1] + np.concatenate([[0.0], np.cumsum(steps[1 + len(heads) :])])
    return Fit(
        float(steps[0]),
        dict(zip(heads, map(float, of_heads), strict=True)),
        dict(zip(neurons, map(float, of_neurons), strict=True)),
        tuple(float(error) for error in design @ steps / totals - 1),
    )


def _row(variant: Widths, heads: Sequence[int], neurons: Sequence[int]) -> list[int]:
    """Return how often each unknown counts: fixed, removed sub-layer, every step of heads, every step of neurons."""
    of_heads = [sum(h >= width for h in variant.heads) for width in heads[1:]]
    of_neurons = [sum(n >= width for n in variant.neurons) for width in neurons[1:]]
    return [1, len(variant.sublayers), *of_heads, *of_neurons]


def _bends(steps: np.ndarray, widths: Sequence[int], first: int) -> np.ndarray:
    """Return (bends, unknowns): each row times the unknowns is a change of slope, divided by the mean slope.

    The step from no unit to the first ones is left out: it holds what a sub-layer costs whatever its width.

    Args:
        steps: (unknowns,) a first solution.
        widths: of one kind, ascending from 0.
        first: index of the first unknown of this kind, the step from 0.
    """
    gaps = np.diff(widths)[1:]
    count = len(gaps)
    own = slice(first + 1, first + 1 + count)
    mean = float(steps[own].sum() / gaps.sum()) if count else 0.0
    if count < 2 or mean <= 0:
        return np.zeros((0, len(steps)))
    slopes = np.zeros((count, len(steps)))
    slopes[np.arange(count), np.arange(own.start, own.stop)] = 1 / (gaps * mean)
    return np.asarray(np.diff(slopes, axis=0))


def _along(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    if x <= xs[0]:
        return x * ys[0] / xs[0]
    if x >= xs[-1]:
        return x * ys[-1] / xs[-1]
    return float(np.interp(x, xs, ys))


def nonnegative_least_squares(design: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return x >= 0 with the smallest ``|design @ x - wanted|`` (Lawson and Hanson 1974, algorithm NNLS).

    Args:
        design: (rows, unknowns) float64.
        wanted: (rows,) float64.
    """
    count = design.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    for _ in range(3 * count):
        slope = design.T @ (wanted - design @ x)
        slope[free] = -np.inf
        enters = int(slope.argmax())
        if slope[enters] <= _TOLERANCE:
            break
        free[enters] = True
        trial = _solve(design, wanted, free)
        while (trial[free] < 0).any():
            blocking = free & (trial < 0)
            step = np.min(x[blocking] / (x[blocking] - trial[blocking]))
            x += step * (trial - x)
            free &= x > _TOLERANCE
            x[~free] = 0.0
            trial = _solve(design, wanted, free)
        x = trial
    return x


def _solve(design: np.ndarray, wanted: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return the least-squares solution in which only the free unknowns are not zero."""
    x = np.zeros(design.shape[1])
    x[free] = np.linalg.lstsq(design[:, free], wanted, rcond=None)[0]
    return x
