"""The choice of widths against brute force, and its bounds on random cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UsageError
from compress.pruning.importance import Scores
from compress.pruning.selection import Costs, LayerUnits, achieved_ratio, choose_widths


def random_scores(seed: int, layers: int, heads: int, neurons: int) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(
        tuple(rng.exponential(size=heads) for _ in range(layers)),
        tuple(rng.exponential(size=neurons) * 0.3 for _ in range(layers)),
    )


def value(scores: Scores, kept: list[LayerUnits]) -> float:
    pairs = zip(scores.heads, scores.neurons, kept, strict=True)
    return float(sum(h[list(u.heads)].sum() + n[list(u.neurons)].sum() for h, n, u in pairs))


def brute_force(scores: Scores, costs: Costs, ratio: float, round_to: int) -> float:
    """Best value over every number of heads and blocks in every layer; the best units of a layer stay."""
    layers, heads, neurons = len(scores.heads), len(scores.heads[0]), len(scores.neurons[0])
    budget = int(ratio * layers * (heads * costs.head + neurons * costs.neuron))
    best_heads = [np.concatenate([[0], np.cumsum(np.sort(s)[::-1])]) for s in scores.heads]
    best_neurons = [np.concatenate([[0], np.cumsum(np.sort(s)[::-1])]) for s in scores.neurons]
    choices = list(itertools.product(range(1, heads + 1), range(round_to, neurons + 1, round_to)))
    best = -1.0
    for plan in itertools.product(choices, repeat=layers):
        if sum(h * costs.head + n * costs.neuron for h, n in plan) <= budget:
            best = max(best, sum(best_heads[i][h] + best_neurons[i][n] for i, (h, n) in enumerate(plan)))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ratio", [0.4, 0.55, 0.8])
def test_equals_brute_force(seed: int, ratio: float) -> None:
    scores, costs = random_scores(seed, layers=2, heads=4, neurons=12), Costs(head=13, neuron=3)
    kept = choose_widths(scores, costs, ratio, round_to=2, min_neurons=2)
    assert value(scores, kept) == pytest.approx(brute_force(scores, costs, ratio, 2))
    assert achieved_ratio(scores, costs, kept) <= ratio


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 4),
    heads=st.integers(1, 6),
    blocks=st.integers(1, 6),
    ratio=st.floats(0.3, 0.99),
)
def test_bounds(seed: int, layers: int, heads: int, blocks: int, ratio: float) -> None:
    round_to = 8
    scores, costs = random_scores(seed, layers, heads, blocks * round_to), Costs(head=50, neuron=5)
    total = layers * (heads * costs.head + blocks * round_to * costs.neuron)
    least = layers * (costs.head + round_to * costs.neuron)
    if int(ratio * total) < least:
        with pytest.raises(UsageError, match="cannot go that far"):
            choose_widths(scores, costs, ratio, round_to=round_to, min_neurons=1)
        return
    kept = choose_widths(scores, costs, ratio, round_to=round_to, min_neurons=1)
    assert ratio - (costs.head + round_to * costs.neuron) / total <= achieved_ratio(scores, costs, kept) <= ratio
    for units, head_scores, neuron_scores in zip(kept, scores.heads, scores.neurons, strict=True):
        assert len(units.heads) >= 1
        assert len(units.neurons) % round_to == 0
        assert units.heads == tuple(sorted(set(units.heads)))
        gone = sorted(set(range(heads)) - set(units.heads))
        assert not gone or head_scores[list(units.heads)].min() >= head_scores[gone].max()
        lost = sorted(set(range(len(neuron_scores))) - set(units.neurons))
        assert not lost or neuron_scores[list(units.neurons)].min() >= neuron_scores[lost].max()


def test_floors_hold_and_a_width_that_is_no_multiple_stays_whole() -> None:
    scores = Scores((np.array([9.0, 8.0]), np.array([0.0, 0.0])), (np.full(20, 5.0), np.zeros(20)))
    kept = choose_widths(scores, Costs(10, 1), 0.85, round_to=8, min_heads=1, min_neurons=9)
    assert [len(units.neurons) for units in kept] == [20, 16]
    assert [len(units.heads) for units in kept] == [2, 1]


def test_ties_are_broken_towards_the_first_layer_every_time() -> None:
    scores = Scores((np.ones(4), np.ones(4)), (np.ones(32), np.ones(32)))
    kept = choose_widths(scores, Costs(8, 1), 0.6, round_to=8, min_neurons=8)
    assert kept == choose_widths(scores, Costs(8, 1), 0.6, round_to=8, min_neurons=8)
    assert len(kept[0].neurons) >= len(kept[1].neurons)
