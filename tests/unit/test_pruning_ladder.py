"""Ladders and widths: what stays at every width, and the order of the sub-layers."""

from __future__ import annotations

import numpy as np

from compress.pruning.ladder import Ladder, Ladders, Widths


def ladder(*order: int) -> Ladder:
    return Ladder(np.array(order, dtype=np.int64), np.arange(len(order) + 1, dtype=np.float64) ** 2)


def test_the_last_of_the_order_stay_longest() -> None:
    one = ladder(2, 0, 3, 1)
    assert [one.kept(count) for count in range(5)] == [(), (1,), (1, 3), (0, 1, 3), (0, 1, 2, 3)]
    assert [one.loss_at(count) for count in range(5)] == [16, 9, 4, 1, 0]


def test_a_ladder_without_units_keeps_none_at_no_cost() -> None:
    none = ladder()
    assert (none.units, none.kept(0), none.loss_at(0)) == (0, (), 0.0)


def test_sublayers_alternate_attention_and_feed_forward() -> None:
    ladders = Ladders((ladder(0), ladder(0, 1)), (ladder(0, 1, 2), ladder()))
    assert [one.units for one in ladders.sublayers] == [1, 3, 2, 0]
    assert [one.units for one in ladders.select([1]).sublayers] == [2, 0]
    widths = Widths((1, 0), (3, 2))
    assert widths.sublayers == (1, 3, 0, 2)
    assert Widths.of_sublayers(widths.sublayers) == widths
