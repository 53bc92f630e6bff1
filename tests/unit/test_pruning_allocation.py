"""The dynamic programming against brute force: the optimum, its budget, the price of rounding, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UsageError
from compress.models.families import Dimensions
from compress.pruning.allocation import Option, allocate, choose_widths, options_from, uniform_widths
from compress.pruning.costs import CostTable, macs_table
from compress.pruning.ladder import Ladder, Ladders, Widths

SIZE = Dimensions(layers=2, hidden=32, heads=4, neurons=64, positions=16)
PRESENT = Widths((4, 4), (64, 64))


def brute_force(options: list[list[Option]], budget: float) -> float:
    """Return the smallest sum of losses within a budget; infinite when nothing fits."""
    plans = itertools.product(*options)
    return min((sum(o.loss for o in p) for p in plans if sum(o.cost for o in p) <= budget), default=np.inf)


def random_ladders(seed: int) -> Ladders:
    rng = np.random.default_rng(seed)

    def ladder(units: int) -> Ladder:
        return Ladder(rng.permutation(units), np.concatenate([[0.0], np.cumsum(rng.exponential(size=units))]))

    return Ladders(tuple(ladder(4) for _ in range(2)), tuple(ladder(64) for _ in range(2)))


whole_numbers = st.lists(
    st.lists(st.builds(Option, st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=5), min_size=1, max_size=5
)
fractions = st.lists(
    st.lists(st.builds(Option, st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=5), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(options=whole_numbers, budget=st.integers(0, 120))
def test_equals_brute_force_where_the_steps_are_whole(options: list[list[Option]], budget: int) -> None:
    least = sum(min(o.cost for o in each) for each in options)
    if budget < least:
        assert brute_force(options, budget) == np.inf
        with pytest.raises(UsageError, match="even the smallest widths") as caught:
            allocate(options, budget)
        assert f"{budget} asked, {least} is the least possible" in caught.value.value
        return
    chosen = allocate(options, budget, buckets=max(1, int(budget - least)))
    picked = [each[i] for each, i in zip(options, chosen, strict=True)]
    assert sum(o.cost for o in picked) <= budget
    assert sum(o.loss for o in picked) == brute_force(options, budget)


@settings(max_examples=200, deadline=None)
@given(options=fractions, share=st.floats(0, 1.1), buckets=st.sampled_from([10, 100, 10_000]))
def test_the_budget_holds_and_rounding_costs_at_most_a_step_per_sublayer(
    options: list[list[Option]], share: float, buckets: int
) -> None:
    least, most = (sum(f(o.cost for o in each) for each in options) for f in (min, max))
    budget = least + share * (most - least)
    picked = [each[i] for each, i in zip(options, allocate(options, budget, buckets), strict=True)]
    assert sum(o.cost for o in picked) <= budget * (1 + 1e-9) + 1e-9
    tighter = (budget - len(options) * (budget - least) / buckets) * (1 - 1e-9) - 1e-9
    assert brute_force(options, budget * (1 + 1e-9) + 1e-9) <= sum(o.loss for o in picked) + 1e-9
    assert sum(o.loss for o in picked) <= brute_force(options, tighter) + 1e-9


def test_equal_losses_take_the_smaller_cost() -> None:
    same = [Option(3.0, 1.0), Option(1.0, 1.0), Option(2.0, 1.0)]
    assert allocate([same, same], 10.0) == [1, 1]
    assert allocate([same, [Option(0.0, 5.0), Option(4.0, 0.0), Option(5.0, 0.0)]], 5.5) == [1, 1]


def test_a_budget_that_everything_fits_or_only_the_least_fits() -> None:
    options = [[Option(0.1, 1.0), Option(0.3, 0.0)]] * 3
    assert allocate(options, 0.3 + 0.3 + 0.3) == [1, 1, 1]
    assert allocate(options, 0.1 + 0.1 + 0.1) == [0, 0, 0]
    assert allocate([[Option(0.0, 1.0), Option(1.0, 0.0)]], 1e-18) == [0]  # 1e19 steps away: more than int64 holds


def test_options_are_the_levels_with_weighted_losses() -> None:
    ladders, costs = random_ladders(0), macs_table(SIZE, grid=32, min_heads=3)
    options = options_from(ladders, costs, [1.0, 2.0, 1.0, 1.0], power=2.0)
    assert [[o.width for o in each] for each in options] == [[3, 4], [0, 32, 64]] * 2
    assert options[1][1].loss == pytest.approx(2.0 * ladders.neurons[0].loss[32] ** 2)
    assert options[1][1].cost == costs.neurons[32]
    assert options[3][2].loss == 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_widths_equal_brute_force_over_all_combinations(seed: int, share: float) -> None:
    ladders, costs = random_ladders(seed), macs_table(SIZE, grid=8, fixed=1e5)
    budget = share * costs.total(PRESENT)
    widths = choose_widths(ladders, costs, budget)
    assert costs.total(widths) <= budget
    loss = sum(ladder.loss_at(w) for ladder, w in zip(ladders.sublayers, widths.sublayers, strict=True))
    assert loss == pytest.approx(brute_force(options_from(ladders, costs), budget - costs.fixed), rel=1e-3)


def test_a_budget_below_the_fixed_cost_is_refused_with_the_unit() -> None:
    costs = CostTable("ms", 2.0, {0: 0.5, 4: 1.0}, {0: 0.25, 64: 1.0})
    with pytest.raises(UsageError) as caught:
        choose_widths(random_ladders(0), costs, 3.0)
    assert caught.value.value == "3 ms asked, 3.5 ms is the least possible"


def test_uniform_keeps_all_heads_and_the_widest_common_width() -> None:
    costs = CostTable("ms", 1.0, {0: 0.0, 4: 1.0}, {0: 0.0, 16: 1.0, 32: 2.0, 64: 4.0})
    assert uniform_widths(PRESENT, costs, 11.0) == PRESENT
    assert uniform_widths(PRESENT, costs, 10.9) == Widths((4, 4), (32, 32))
    assert uniform_widths(Widths((4, 4), (64, 24)), costs, 11.0) == Widths((4, 4), (24, 24))
    with pytest.raises(UsageError, match="narrowing") as caught:
        uniform_widths(PRESENT, costs, 4.9)
    assert "5 ms is the least possible" in caught.value.value
