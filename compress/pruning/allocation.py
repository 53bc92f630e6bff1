"""Which width every sub-layer gets within a budget: exact dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compress.errors import UsageError
from compress.pruning.costs import CostTable
from compress.pruning.ladder import Ladders, Widths


class Option(NamedTuple):
    """One width that a sub-layer may be given."""

    cost: float
    loss: float
    width: int = 0


def allocate(
    options: Sequence[Sequence[Option]], budget: float, buckets: int = 10_000, *, fixed: float = 0.0, unit: str = ""
) -> list[int]:
    """Choose one option per sub-layer so that the losses add up to least and the costs to at most the budget.

    Dynamic programming over sub-layers and discretised cost (SPDY: Frantar & Alistarh 2022, arXiv:2201.13096,
    section 3.1; ZipLM: arXiv:2302.04089, section 3.2). What the budget leaves above the cheapest options is cut
    into ``buckets`` steps and every cost above the cheapest is rounded up to whole steps, so the budget holds
    up to float rounding. The price: the result is no worse than the best choice within a budget that is
    smaller by one step per sub-layer, ``len(options) / buckets`` of that rest. Where nothing needs to be given
    up, nothing is.

    Args:
        options: for each sub-layer at least one option.
        budget: the most that ``fixed`` and the chosen costs may add up to.
        buckets: steps of the discretised budget.
        fixed: cost that is there whatever is chosen.
        unit: of the costs, for the message.

    Returns:
        The index of the chosen option of each sub-layer. Equal losses: the smaller cost.

    Raises:
        UsageError: even the cheapest options cost more than the budget.
    """
    cheapest = [min(option.cost for option in each) for each in options]
    least = fixed + sum(cheapest)
    rest = budget - least
    if rest < -1e-12 * abs(budget):
        raise UsageError(
            "The budget cannot be met: even the smallest widths cost more.",
            value=f"{budget:.6g} {unit} asked, {least:.6g} {unit} is the least possible".replace("  ", " "),
            fix="Raise the budget, lower min_heads and min_neurons, or drop whole layers.",
        )
    best = [min(range(len(each)), key=lambda i: (each[i].loss, each[i].cost)) for each in options]
    if fixed + sum(each[i].cost for each, i in zip(options, best, strict=True)) <= budget:
        return best
    step = max(rest, 0.0) / buckets
    tables = [_Steps.of(each, floor, step, buckets) for each, floor in zip(options, cheapest, strict=True)]
    return _solve(tables, buckets)


def options_from(
    ladders: Ladders, costs: CostTable, coefficients: Sequence[float] | np.ndarray | None = None, power: float = 1.0
) -> list[list[Option]]:
    """Return the options of every sub-layer: ``loss = coefficient * ladder loss ** power`` at every width.

    Args:
        ladders: of the model as it is now.
        costs: what the widths cost, and which may be chosen.
        coefficients: one factor per sub-layer; default: all 1, for losses that can be compared as they are.
        power: exponent of the ladder's loss.
    """
    factors = [1.0] * len(ladders.sublayers) if coefficients is None else coefficients
    return [
        [
            Option(costs.cost(i, width), factor * ladder.loss_at(width) ** power, width)
            for width in costs.levels(i, ladder.units)
        ]
        for i, (ladder, factor) in enumerate(zip(ladders.sublayers, factors, strict=True))
    ]


def choose_widths(
    ladders: Ladders,
    costs: CostTable,
    budget: float,
    coefficients: Sequence[float] | np.ndarray | None = None,
    *,
    power: float = 1.0,
    buckets: int = 10_000,
) -> Widths:
    """Return the widths with the smallest sum of losses whose total cost, the fixed one included, fits the budget.

    Raises:
        UsageError: even the smallest widths cost more than the budget.
    """
    options = options_from(ladders, costs, coefficients, power)
    chosen = allocate(options, budget, buckets, fixed=costs.fixed, unit=costs.unit)
    return Widths.of_sublayers([each[i].width for each, i in zip(options, chosen, strict=True)])


def uniform_widths(present: Widths, costs: CostTable, budget: float) -> Widths:
    """Return the widest model within a budget that config.json can describe: all heads, one feed-forward width.

    Args:
        present: widths that the model has now; their heads stay.
        costs: what the widths cost, and which may be chosen.
        budget: the most that the whole model may cost.

    Raises:
        UsageError: the narrowest such model costs more than the budget.
    """
    levels = [width for width in costs.levels(1, min(present.neurons)) if width > 0]
    models = [Widths(present.heads, (width,) * len(present.neurons)) for width in levels]
    within = [model for model in models if costs.total(model) <= budget]
    if not within:
        least = min(map(costs.total, models), default=costs.total(present))
        raise UsageError(
            "The budget cannot be met by narrowing the feed-forward parts alone.",
            value=f"{budget:.6g} {costs.unit} asked, {least:.6g} {costs.unit} is the least possible",
            fix="Drop layers with `layers`, raise the budget, or leave out `uniform`.",
        )
    return within[-1]


class _Steps(NamedTuple):
    """A sub-layer's options that fit and that no other beats in loss and cost, cheapest first.

    Attributes:
        places: (n,) int64, positions among the given options.
        steps: (n,) int64, cost above the cheapest option, in whole steps.
        loss: (n,) float64, strictly decreasing.
    """

    places: np.ndarray
    steps: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, options: Sequence[Option], floor: float, step: float, buckets: int) -> _Steps:
        kept: list[int] = []
        for i in sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].loss)):
            if not kept or options[i].loss < options[kept[-1]].loss:
                kept.append(i)
        above = np.array([options[i].cost - floor for i in kept])
        steps = np.ceil(above / step * (1 - 1e-12)) if step > 0 else np.where(above > 0, np.inf, 0.0)
        fits = steps <= buckets
        loss = np.array([options[i].loss for i in kept], dtype=np.float64)
        return cls(np.array(kept, dtype=np.int64)[fits], steps[fits].astype(np.int64), loss[fits])


def _solve(tables: Sequence[_Steps], buckets: int) -> list[int]:
    """Fill ``least[b]``, the smallest loss at a cost of exactly b steps, sub-layer by sub-layer; then walk back."""
    least = np.full(buckets + 1, np.inf)
    least[0] = 0.0
    history = []
    for table in tables:
        history.append(least)
        least = np.full(buckets + 1, np.inf)
        for steps, loss in zip(table.steps, table.loss, strict=True):
            np.minimum(least[steps:], history[-1][: buckets + 1 - steps] + loss, out=least[steps:])
    spent, chosen = int(np.argmin(least)), []
    for table, before in zip(reversed(tables), reversed(history), strict=True):
        fits = table.steps <= spent
        pick = int(np.argmin(before[spent - table.steps[fits]] + table.loss[fits]))
        spent -= int(table.steps[pick])
        chosen.append(int(table.places[pick]))
    return chosen[::-1]
