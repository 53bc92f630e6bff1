"""What every width of a sub-layer costs: in milliseconds, multiply-accumulates or parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from compress.errors import DataError, UsageError
from compress.models.counting import head_macs, head_parameters, layer_parameters, neuron_macs, neuron_parameters
from compress.models.families import Dimensions
from compress.pruning.ladder import Widths

Unit = Literal["ms", "MACs", "parameters"]


@dataclass(frozen=True)
class CostTable:
    """Cost of a sub-layer at every width that may be chosen; the same for all layers of an encoder.

    Attributes:
        unit: of all costs.
        fixed: cost of everything but the sub-layers: embeddings, head, and what a layer costs without its units.
        heads: attention heads kept -> cost of the attention sub-layer.
        neurons: feed-forward neurons kept -> cost of the feed-forward sub-layer.
        min_heads: fewer heads are not chosen, though their cost may be known.
        min_neurons: fewer neurons are not chosen.
    """

    unit: Unit
    fixed: float
    heads: Mapping[int, float]
    neurons: Mapping[int, float]
    min_heads: int = 0
    min_neurons: int = 0

    @property
    def sublayers(self) -> tuple[Mapping[int, float], Mapping[int, float]]:
        """The costs of (attention, feed-forward); a sub-layer's are at its index modulo 2."""
        return self.heads, self.neurons

    def levels(self, sublayer: int, present: int) -> tuple[int, ...]:
        """Return the widths that a sub-layer may be given, ascending; staying as it is is one of them.

        Args:
            sublayer: its index in the order attention 0, feed-forward 0, attention 1, ...
            present: how many units it has now.
        """
        least = (self.min_heads, self.min_neurons)[sublayer % 2]
        smaller = [width for width in self.sublayers[sublayer % 2] if least <= width < present]
        return (*sorted(smaller), present)

    def cost(self, sublayer: int, width: int) -> float:
        """Return the cost of a sub-layer at a width; between two known widths on the line that joins them."""
        table = self.sublayers[sublayer % 2]
        if width in table:
            return table[width]
        known = sorted(table)
        return float(np.interp(width, known, [table[k] for k in known]))

    def total(self, widths: Widths) -> float:
        """Return the cost of a whole model."""
        return self.fixed + sum(self.cost(i, width) for i, width in enumerate(widths.sublayers))

    def scale(self, factor: float) -> CostTable:
        """Return the table with every cost multiplied, the fixed one too."""
        return replace(
            self,
            fixed=self.fixed * factor,
            heads={width: cost * factor for width, cost in self.heads.items()},
            neurons={width: cost * factor for width, cost in self.neurons.items()},
        )

    def at_least(self, min_heads: int = 0, min_neurons: int = 0) -> CostTable:
        """Return the table with other minima."""
        return replace(self, min_heads=min_heads, min_neurons=min_neurons)

    def every(self, heads: int) -> CostTable:
        """Return the table with only those numbers of heads that are multiples of ``heads``, and the dense one."""
        dense = max(self.heads)
        return replace(self, heads={w: cost for w, cost in self.heads.items() if w % heads == 0 or w == dense})

    def dumps(self) -> str:
        """Return the JSON form; ``CostTable.loads`` gives an equal table."""
        widths = {name: sorted(table.items()) for name, table in (("heads", self.heads), ("neurons", self.neurons))}
        rest = {name: getattr(self, name) for name in ("unit", "fixed", "min_heads", "min_neurons")}
        return json.dumps(rest | widths, indent=1)

    @classmethod
    def loads(cls, text: str) -> CostTable:
        """Read what ``dumps`` wrote.

        Raises:
            DataError: the text is not a cost table.
        """
        try:
            record = json.loads(text)
            heads, neurons = ({int(width): float(cost) for width, cost in record[n]} for n in ("heads", "neurons"))
            unit, fixed = record["unit"], float(record["fixed"])
            minima = int(record["min_heads"]), int(record["min_neurons"])
        except (ValueError, TypeError, KeyError) as error:
            raise _unreadable(f"{type(error).__name__}: {error}") from error
        if unit not in get_args(Unit) or not heads or not neurons:
            raise _unreadable(f"unit {unit!r}, {len(heads)} widths of heads, {len(neurons)} of neurons")
        return cls(unit, fixed, heads, neurons, *minima)


def macs_table(
    size: Dimensions, grid: int = 32, *, fixed: float = 0.0, min_heads: int = 0, min_neurons: int = 0
) -> CostTable:
    """Return the multiply-accumulates of every width, for an input of 128 tokens.

    Args:
        size: of the dense encoder.
        grid: see ``neuron_levels``.
        fixed: multiply-accumulates outside the encoder's layers.
        min_heads: fewest heads that may be chosen; 0 lets whole sub-layers go.
        min_neurons: fewest neurons that may be chosen.
    """
    return CostTable(
        "MACs",
        fixed,
        {width: float(width * head_macs(size)) for width in range(size.heads + 1)},
        {width: float(width * neuron_macs(size)) for width in neuron_levels(size.neurons, grid)},
        min_heads,
        min_neurons,
    )


def parameters_table(
    size: Dimensions, grid: int = 32, *, outside: float = 0.0, min_heads: int = 0, min_neurons: int = 0
) -> CostTable:
    """Return the parameters of every width; what a layer keeps without its units is part of ``fixed``.

    Args:
        size: of the dense encoder.
        grid: see ``neuron_levels``.
        outside: parameters outside the encoder's layers.
        min_heads: fewest heads that may be chosen; 0 lets whole sub-layers go.
        min_neurons: fewest neurons that may be chosen.
    """
    units = size.heads * head_parameters(size) + size.neurons * neuron_parameters(size)
    return CostTable(
        "parameters",
        outside + size.layers * (layer_parameters(size) - units),
        {width: float(width * head_parameters(size)) for width in range(size.heads + 1)},
        {width: float(width * neuron_parameters(size)) for width in neuron_levels(size.neurons, grid)},
        min_heads,
        min_neurons,
    )


def neuron_levels(neurons: int, grid: int) -> Sequence[int]:
    """Return the feed-forward widths on a grid: 0, its multiples, and the dense width whether on it or not.

    Args:
        neurons: the dense width.
        grid: widths are multiples of this.

    Raises:
        UsageError: the grid is not positive.
    """
    if grid < 1:
        raise UsageError("The grid of widths is not positive.", value=grid, fix="Give 1 or more; 32 suits most CPUs.")
    return [*range(0, neurons, grid), neurons]


def _unreadable(why: str) -> DataError:
    return DataError(
        "The table of costs cannot be read.", value=why, fix="Delete it; it is measured again when needed."
    )
