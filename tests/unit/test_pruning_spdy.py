"""The coefficient search against brute force, its budget, its cache, and the curves that it begins with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.errors import UsageError
from compress.models.families import Dimensions, dimensions
from compress.models.loading import load_torch
from compress.pruning.candidates import CandidateScorer
from compress.pruning.costs import CostTable, macs_table
from compress.pruning.importance import importances
from compress.pruning.ladder import Ladder, Ladders, Widths
from compress.pruning.spdy import search, sensitivity_curves
from compress.tasks.text_classification import TextClassification

SIZE = Dimensions(layers=2, hidden=32, heads=4, neurons=64, positions=16)
COSTS = macs_table(SIZE, grid=16)
DENSE = COSTS.total(Widths((4, 4), (64, 64)))
TRUE = (0.2, 5.0, 1.0, 0.5)
"""What the sub-layers are really worth in the made-up losses below; their ladders all look alike."""


def look_alikes() -> Ladders:
    def ladder(units: int) -> Ladder:
        return Ladder(np.arange(units), np.linspace(0, 1, units + 1) ** 2)

    return Ladders((ladder(4), ladder(4)), (ladder(64), ladder(64)))


def true_loss(widths: Widths) -> float:
    shares = [1 - w / ladder.units for w, ladder in zip(widths.sublayers, look_alikes().sublayers, strict=True)]
    return sum(worth * share**2 for worth, share in zip(TRUE, shares, strict=True)) + 0.3 * shares[0] * shares[2]


def best_of_all(costs: CostTable, budget: float, score: Callable[[Widths], float]) -> float:
    """Return the smallest score of all combinations of widths within a budget."""
    levels = [costs.levels(i, units) for i, units in enumerate((4, 64, 4, 64))]
    plans = map(Widths.of_sublayers, itertools.product(*levels))
    return min(score(widths) for widths in plans if costs.total(widths) <= budget)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_finds_the_optimum_over_all_combinations(share: float) -> None:
    result = search(look_alikes(), COSTS, share * DENSE, true_loss, starts=20, steps=100)
    assert result.score == pytest.approx(best_of_all(COSTS, share * DENSE, true_loss))
    assert result.score == true_loss(result.widths)


def test_measured_curves_need_few_steps_more() -> None:
    curves = sensitivity_curves(look_alikes(), COSTS, true_loss)
    for share in (0.3, 0.5, 0.7):
        best = best_of_all(COSTS, share * DENSE, true_loss)
        assert search(curves, COSTS, share * DENSE, true_loss, steps=0).score <= 1.5 * best
        assert search(curves, COSTS, share * DENSE, true_loss, steps=20).score == pytest.approx(best)


def test_a_random_model_is_pruned_as_brute_force_would(tiny_classifier: Callable[..., Path]) -> None:
    torch.set_num_threads(1)
    folder, task = tiny_classifier("bert"), TextClassification(("bad", "fine", "good"), max_length=32)
    model = load_torch(folder, task)
    texts = ("the film was great", "a dull , slow film .", "i works", "cancel my order , please : good") * 2
    examples = task.encode(folder, [{"text": text, "label": "fine"} for text in texts])
    ranking = importances.get("obs")().rank(model, task, examples, 8)
    costs = macs_table(dimensions(model.config.to_dict()), grid=32)
    scorer = CandidateScorer(model, task, ranking, examples)
    cached: dict[Widths, float] = {}

    def score(widths: Widths) -> float:
        assert costs.total(widths) <= 0.5 * DENSE
        return cached.setdefault(widths, cached[widths] if widths in cached else scorer(widths))

    curves = sensitivity_curves(ranking.ladders, costs, scorer)
    result = search(curves, costs, 0.5 * DENSE, score, steps=80)
    assert result.score == pytest.approx(best_of_all(costs, 0.5 * DENSE, score))
    assert result.evaluated <= 81


def test_every_candidate_keeps_the_budget_and_is_scored_once() -> None:
    seen: list[Widths] = []
    progress: list[tuple[int, int]] = []

    def score(widths: Widths) -> float:
        seen.append(widths)
        return true_loss(widths)

    result = search(look_alikes(), COSTS, 0.4 * DENSE, score, starts=5, steps=30, count=lambda *at: progress.append(at))
    assert all(COSTS.total(widths) <= 0.4 * DENSE for widths in seen)
    assert len(set(seen)) == len(seen) == result.evaluated <= 36
    assert progress == [(i + 1, 36) for i in range(len(seen))]
    with pytest.raises(UsageError, match="least possible"):
        search(look_alikes(), COSTS.at_least(2, 32), 0.4 * DENSE, score)


def test_the_same_seed_gives_the_same_result() -> None:
    first, second = (search(look_alikes(), COSTS, 0.4 * DENSE, true_loss, starts=3, steps=9, seed=4) for _ in range(2))
    assert first == second
    assert search(look_alikes(), COSTS, 0.4 * DENSE, true_loss, steps=0, start=TRUE).coefficients == TRUE


def test_a_score_that_is_no_number_never_wins() -> None:
    values = iter([float("nan"), 3.0, float("nan"), 2.0, float("inf")])
    result = search(look_alikes(), COSTS, 0.5 * DENSE, lambda widths: next(values), steps=4)
    assert result.score == 2.0


def test_nothing_to_give_up_needs_one_score() -> None:
    result = search(look_alikes(), COSTS, DENSE, true_loss)
    assert (result.widths, result.evaluated, result.score) == (Widths((4, 4), (64, 64)), 1, 0.0)


def test_curves_go_through_what_was_measured_and_never_fall() -> None:
    table = {0: 0.9, 16: 0.4, 32: 0.5, 48: 0.1}

    def score(widths: Widths) -> float:
        return 0.05 + table.get(widths.neurons[1], 0.0)

    progress: list[tuple[int, int]] = []
    shares = (0.25, 0.5, 0.75, 1.0)
    curves = sensitivity_curves(look_alikes(), COSTS, score, shares, lambda *at: progress.append(at))
    losses = curves.neurons[1].loss
    assert losses[[0, 16, 32, 48, 64]] == pytest.approx([0.0, 0.1, 0.5, 0.5, 0.9])
    assert (np.diff(losses) >= 0).all()
    assert losses[24] == pytest.approx(0.1 + 0.4 * (24**2 - 16**2) / (32**2 - 16**2), rel=1e-4)
    assert curves.heads[0].loss == pytest.approx(np.zeros(5))
    assert curves.neurons[1].order.tolist() == list(range(64))
    assert progress[-1] == (17, 17)


def test_curves_of_sublayers_that_cannot_shrink_are_not_measured() -> None:
    ladders = Ladders((Ladder(np.arange(2), np.arange(3.0)),), (Ladder(np.arange(0), np.zeros(1)),))
    seen: list[Widths] = []

    def score(widths: Widths) -> float:
        seen.append(widths)
        return float(2 - widths.heads[0])

    curves = sensitivity_curves(ladders, COSTS.at_least(min_heads=1), score)
    assert seen == [Widths((2,), (0,)), Widths((1,), (0,))]
    assert curves.heads[0].loss == pytest.approx([0.0, 1.0, 1.0])
    assert curves.neurons[0].loss.tolist() == [0.0]
