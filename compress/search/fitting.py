"""From timed models to the cost of every width of a sub-layer: robust totals, then constrained least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.pruning.ladder import Widths

_TOLERANCE = 1e-10


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


def fit_costs(variants: Sequence[Widths], totals: np.ndarray) -> Fit:
    """Solve for costs whose sums are the totals, with the least squared relative error.

    More units never cost less: a cost is a sum of steps from one measured width to the next, and the steps are
    solved for by nonnegative least squares. Removed sub-layers of both kinds cost the same.

    Args:
        variants: widths of the models that were measured, of any number of layers; every width of interest occurs.
        totals: (variants,) their costs.
    """
    heads = sorted({0, *(h for v in variants for h in v.heads)})
    neurons = sorted({0, *(n for v in variants for n in v.neurons)})
    rows = [_row(variant, heads, neurons) for variant in variants]
    design = np.array(rows, dtype=np.float64)
    weights = 1 / totals[:, None]
    steps = nonnegative_least_squares(design * weights, np.ones(len(totals)))
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
