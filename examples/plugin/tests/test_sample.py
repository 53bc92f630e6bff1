"""The plug-in's own tests: what the contract suite of mcompress cannot know."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from mcompress_sample.ordinal import OrdinalClassification, median_levels, quadratic_kappa
from mcompress_sample.palette import palette_of
from mcompress_sample.reference import OnnxReference

from compress.errors import ModelError
from compress.runtimes.target import Target


def test_palette_is_the_best_split_of_a_few_numbers() -> None:
    weights = np.array([[0.0, 0.1, 0.2], [1.0, 1.2, 3.0]], dtype=np.float32)
    values, indices = palette_of(weights, 3)
    ordered = np.sort(weights.ravel())
    splits = [np.split(ordered, cuts) for cuts in itertools.combinations(range(1, 6), 2)]
    least = min(sum(float(((part - part.mean()) ** 2).sum()) for part in split) for split in splits)
    assert float(((values[indices] - weights) ** 2).sum()) == pytest.approx(least, rel=1e-5)
    assert (indices.dtype, indices.shape) == (np.uint8, weights.shape)


def test_palette_keeps_every_value_where_there_is_room() -> None:
    weights = np.random.default_rng(0).choice(np.linspace(-1, 1, 9, dtype=np.float32), (16, 16))
    values, indices = palette_of(weights, 9)
    np.testing.assert_array_equal(values[indices], weights)
    assert len(palette_of(np.full((4, 4), 0.5, dtype=np.float32), 256)[0]) == 1


def test_the_median_has_the_smallest_expected_distance() -> None:
    outputs = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    chances = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    expected = chances @ np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    np.testing.assert_array_equal(median_levels(outputs), expected.argmin(axis=1))
    assert (median_levels(outputs) != outputs.argmax(axis=1)).any()


def test_kappa_is_one_less_the_disagreement_over_that_of_chance() -> None:
    """Chance is every pairing of a true level with a found one."""
    rng = np.random.default_rng(2)
    truth, found = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    chance = np.mean([(a - b) ** 2 for a, b in itertools.product(truth, found)])
    assert quadratic_kappa(truth, found, 4) == pytest.approx(1 - np.mean((truth - found) ** 2) / chance)
    assert quadratic_kappa(truth[:1], truth[:1], 4) == 1.0


def test_a_far_miss_costs_more_than_a_near_one() -> None:
    torch = pytest.importorskip("torch")
    task = OrdinalClassification(("1", "2", "3"))
    near, far = (torch.tensor([row], dtype=torch.float32) for row in ([0, 5, 0], [5, 0, 0]))
    assert task.loss(near, torch.tensor([2])) < task.loss(far, torch.tensor([2]))
    score = task.score(np.concatenate([near.numpy(), far.numpy()]), np.array([2, 2]))
    assert (score.value, score.outcomes.tolist(), score.extra["accuracy"]) == (1.5, [1.0, 2.0], 0.0)


def test_other_problems_are_refused() -> None:
    with pytest.raises(ModelError, match="one label per text"):
        OrdinalClassification.parse({"labels": [], "problem": "regression", "max_length": 8})


@dataclass
class Case:
    changes: dict[str, object]
    reason: str


@pytest.mark.parametrize(
    "case",
    [
        Case({"device": "cuda"}, "on a CPU"),
        Case({"isa": "avx2", "evidence": "proxy"}, "cannot be capped"),
        Case({"precision": "bf16"}, "precision inside"),
        Case({}, ""),
    ],
)
def test_what_the_reference_cannot_do_it_says(case: Case) -> None:
    target = Target.model_validate({"name": "x", "runtime": "onnx-reference", **case.changes})
    assert case.reason in OnnxReference().available(target).reason
