"""In which order the units of a sub-layer go, what that costs, and how many of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Ladder:
    """The removal order of one sub-layer's units, one rung per unit.

    Attributes:
        order: (units,) int64, positions among the units that the sub-layer has now, first to go first.
        loss: (units + 1,) float64, nondecreasing: ``loss[k]`` is the cost of having removed the first k units
            of ``order``, ``loss[0]`` is 0. Its unit is the importance's own.
    """

    order: np.ndarray
    loss: np.ndarray

    @property
    def units(self) -> int:
        """How many units the sub-layer has now; 0 when it is gone."""
        return len(self.order)

    def kept(self, count: int) -> tuple[int, ...]:
        """Return the positions that stay when ``count`` units stay, ascending; ``count`` is 0 to ``units``."""
        return tuple(sorted(int(unit) for unit in self.order[self.units - count :]))

    def loss_at(self, count: int) -> float:
        """Return the cost of keeping only ``count`` units."""
        return float(self.loss[self.units - count])


@dataclass(frozen=True)
class Ladders:
    """One ladder per sub-layer of an encoder.

    Attributes:
        heads: the attention sub-layers', first layer first.
        neurons: the feed-forward sub-layers', first layer first.
    """

    heads: tuple[Ladder, ...]
    neurons: tuple[Ladder, ...]

    @property
    def sublayers(self) -> tuple[Ladder, ...]:
        """Attention 0, feed-forward 0, attention 1, feed-forward 1, ..."""
        return _interleaved(self.heads, self.neurons)

    def select(self, layers: Sequence[int]) -> Ladders:
        """Return the ladders of some layers, in that order."""
        return Ladders(tuple(self.heads[i] for i in layers), tuple(self.neurons[i] for i in layers))


@dataclass(frozen=True)
class Widths:
    """How many units every sub-layer keeps.

    Attributes:
        heads: attention heads, first layer first.
        neurons: feed-forward neurons, first layer first.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @property
    def sublayers(self) -> tuple[int, ...]:
        """Attention 0, feed-forward 0, attention 1, feed-forward 1, ..."""
        return _interleaved(self.heads, self.neurons)

    @classmethod
    def of_sublayers(cls, counts: Sequence[int]) -> Widths:
        """Return the widths whose ``sublayers`` are ``counts``."""
        return cls(tuple(map(int, counts[::2])), tuple(map(int, counts[1::2])))


def _interleaved(heads: Sequence[T], neurons: Sequence[T]) -> tuple[T, ...]:
    return tuple(item for pair in zip(heads, neurons, strict=True) for item in pair)
