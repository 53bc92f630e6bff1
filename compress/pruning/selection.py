"""Which heads and neurons to keep: a pure function of importances and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from compress.errors import UsageError
from compress.pruning.importance import Scores


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of one unit; the same in every layer, because the hidden size is."""

    head: int
    neuron: int


@dataclass(frozen=True)
class LayerUnits:
    """Units that a layer keeps: positions among those it has now, ascending."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class _Item:
    """A head, or a block of neurons that go or stay together."""

    kind: Literal["head", "neuron"]
    layer: int
    units: tuple[int, ...]
    value: float
    cost: int


def choose_widths(
    importance: Scores,
    costs: Costs,
    keep_ratio: float,
    *,
    round_to: int = 32,
    min_heads: int = 1,
    min_neurons: int = 32,
) -> list[LayerUnits]:
    """Choose the units whose importances add up to most, within a share of the encoder's MACs.

    For every number of heads, the most important heads stay and the most important blocks of neurons fill
    the rest of the budget; the best of these is kept (the exact search of Kwon et al. 2022, section 4.1).
    It is exact when every width is a multiple of ``round_to``: then all heads cost the same, and all blocks.

    Args:
        importance: of every unit.
        costs: of one head and one neuron.
        keep_ratio: share of the MACs of all units that may stay, 0 to 1.
        round_to: the number of neurons that a layer keeps is a multiple of this, or all of them.
        min_heads: heads that every layer keeps at least.
        min_neurons: neurons that every layer keeps at least, rounded up to a multiple of ``round_to``.

    Returns:
        For each layer what it keeps. The MACs used lie within one block and one head below the budget.

    Raises:
        UsageError: the minima alone cost more than ``keep_ratio`` allows.
    """
    budget = int(keep_ratio * _total(importance, costs))
    needed_heads, free_heads = _head_items(importance, costs, min_heads)
    needed_blocks, free_blocks = _neuron_items(importance, costs, round_to, min_neurons)
    needed = needed_heads + needed_blocks
    left = budget - sum(item.cost for item in needed)
    if left < 0:
        least = sum(item.cost for item in needed) / _total(importance, costs)
        raise UsageError(
            "Pruning cannot go that far: the heads and neurons that every layer keeps already cost more.",
            value=f"macs {keep_ratio:.3f}; min_heads {min_heads}, min_neurons {min_neurons} need {least:.3f}",
            fix="Raise macs, or lower min_heads, min_neurons or round_to, or drop layers with `layers`.",
        )
    chosen = max(_candidates(free_heads, free_blocks, left), key=lambda items: sum(item.value for item in items))
    return [_collect([*needed, *chosen], layer) for layer in range(len(importance.heads))]


def achieved_ratio(importance: Scores, costs: Costs, kept: Sequence[LayerUnits]) -> float:
    """Return the share of the units' MACs that a choice keeps."""
    used = sum(len(units.heads) * costs.head + len(units.neurons) * costs.neuron for units in kept)
    return used / _total(importance, costs)


def _total(importance: Scores, costs: Costs) -> int:
    heads, neurons = sum(map(len, importance.heads)), sum(map(len, importance.neurons))
    return heads * costs.head + neurons * costs.neuron


def _head_items(importance: Scores, costs: Costs, least: int) -> tuple[list[_Item], list[_Item]]:
    needed, free = [], []
    for layer, scores in enumerate(importance.heads):
        order = np.argsort(-scores, kind="stable")
        items = [_Item("head", layer, (int(unit),), float(scores[unit]), costs.head) for unit in order]
        needed += items[:least]
        free += items[least:]
    return needed, sorted(free, key=_density)


def _neuron_items(importance: Scores, costs: Costs, round_to: int, least: int) -> tuple[list[_Item], list[_Item]]:
    needed, free = [], []
    for layer, scores in enumerate(importance.neurons):
        order = np.argsort(-scores, kind="stable")
        blocks = [order[i : i + round_to] for i in range(0, len(order), round_to)]
        items = [
            _Item("neuron", layer, tuple(map(int, block)), float(scores[block].sum()), costs.neuron * len(block))
            for block in blocks
        ]
        first = max(1, -(-least // round_to))
        needed += items[:first]
        free += items[first:]
    return needed, sorted(free, key=_density)


def _density(item: _Item) -> float:
    """Sort key: most importance per multiply-accumulate first; ties keep their order, first layer first."""
    return -item.value / item.cost


def _candidates(heads: Sequence[_Item], blocks: Sequence[_Item], budget: int) -> list[list[_Item]]:
    """Return, for every number of heads that fits, those heads and the blocks that fill the rest."""
    head_costs = [0, *accumulate(item.cost for item in heads)]
    out = []
    for count, cost in enumerate(head_costs):
        if cost <= budget:
            out.append([*heads[:count], *_fill(blocks, budget - cost)])
    return out


def _fill(blocks: Sequence[_Item], budget: int) -> list[_Item]:
    """Take blocks in order; one that does not fit ends its layer, so that a layer keeps its best ones."""
    taken, closed = [], set()
    for block in blocks:
        if block.layer in closed:
            continue
        if block.cost <= budget:
            taken.append(block)
            budget -= block.cost
        else:
            closed.add(block.layer)
    return taken


def _collect(items: Sequence[_Item], layer: int) -> LayerUnits:
    heads, neurons = (
        tuple(sorted(unit for item in items if (item.layer, item.kind) == (layer, kind) for unit in item.units))
        for kind in ("head", "neuron")
    )
    return LayerUnits(heads, neurons)
