"""What every registered task promises. A new task needs one line in ``EXAMPLES`` and no other change here."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import DataError
from compress.tasks.base import Task, task_from, tasks

TEXTS = ("the film was great", "a dull train , not slow", "she was fine and i was good")
IMAGES = tuple(np.full((8, 8), level, dtype=np.uint8) for level in (0, 100, 255))


@dataclass(frozen=True)
class Example:
    """A task, the labels of three examples, outputs that are all right, and outputs that are all wrong.

    ``unknown`` is a label that the task must refuse; None where any label will do.
    """

    options: dict[str, Any]
    labels: tuple[Any, ...]
    right: np.ndarray
    wrong: np.ndarray
    unknown: Any = None
    family: str = "bert"
    """Of the tiny model that reads the rows."""


TEXT = {"name": "text-classification", "max_length": 8}
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "image-classification": (
        Example(
            {
                "name": "image-classification",
                "labels": ["bad", "fine", "good"],
                "problem": "single_label",
                "max_length": 1,
            },
            ("good", "bad", "fine"),
            np.array([[-1, 0, 2], [2, 1, 0], [0, 3, 1]]),
            np.array([[2, 0, -1], [0, 1, 2], [3, 0, 1]]),
            "grand",
            "vit",
        ),
    ),
    "text-classification": (
        Example(
            {**TEXT, "labels": ["bad", "fine", "good"], "problem": "single_label"},
            ("good", "bad", "fine"),
            np.array([[-1, 0, 2], [2, 1, 0], [0, 3, 1]]),
            np.array([[2, 0, -1], [0, 1, 2], [3, 0, 1]]),
            "grand",
        ),
        Example(
            {**TEXT, "labels": ["bad", "slow"], "problem": "multi_label"},
            (["slow"], ["bad", "slow"], []),
            np.array([[-2, 1], [3, 1], [-1, -1]]),
            np.array([[2, 1], [3, -1], [-1, 1]]),
            ["grand"],
        ),
        Example(
            {**TEXT, "labels": [], "problem": "regression"},
            (0.5, -1.0, 2.0),
            np.array([[0.5], [-1.0], [2.0]]),
            np.array([[2.5], [1.0], [-2.0]]),
        ),
    ),
}
if module := os.environ.get("MCOMPRESS_EXAMPLES"):  # of a plug-in, see docs/plugins.md
    offered = importlib.import_module(module).TASKS
    EXAMPLES |= {name: tuple(Example(**example) for example in examples) for name, examples in offered.items()}
CASES = [(name, number) for name in tasks for number in range(len(EXAMPLES.get(name, ())))]


@pytest.fixture(params=CASES, ids=[f"{name}-{number}" for name, number in CASES])
def example(request: pytest.FixtureRequest) -> Example:
    name, number = request.param
    return EXAMPLES[name][number]


@pytest.fixture
def task(example: Example) -> Task:
    return task_from(example.options)


@pytest.fixture
def folder(example: Example, tiny_classifier: Callable[..., Path], tiny_images: Callable[..., Path]) -> Path:
    return tiny_images(example.family) if example.family == "vit" else tiny_classifier(example.family)


def rows(labels: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Three examples with every column that any task reads."""
    return [
        {"text": text, "text_pair": None, "image": image, "label": label}
        for text, image, label in zip(TEXTS, IMAGES, labels, strict=True)
    ]


def float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


@pytest.mark.parametrize("name", list(tasks))
def test_task_has_an_example_and_says_what_it_reads(name: str) -> None:
    assert EXAMPLES.get(name), (
        f"The task {name!r} is registered but has no example. Add EXAMPLES[{name!r}] = (Example(...),) "
        "in tests/contract/test_task_contract.py and this suite covers it."
    )
    cls = tasks.get(name)
    assert cls.name == name
    assert cls.columns
    assert cls.__doc__


def test_options_round_trip(task: Task, example: Example) -> None:
    dumped = task.dump()
    assert json.loads(json.dumps(dumped)) == dumped == example.options
    assert task_from(dumped) == task
    assert (task.labels, task.max_length) == (tuple(example.options["labels"]), example.options["max_length"])


def test_encoding_is_deterministic_and_keeps_real_lengths(task: Task, example: Example, folder: Path) -> None:
    first, second = (task.encode(folder, rows(example.labels)) for _ in range(2))
    assert len(first) == len(TEXTS)
    assert list(first.inputs) == list(second.inputs)
    if not first.fixed:
        assert len(set(first.lengths)) > 1
        assert max(first.lengths) <= task.max_length
    specs = {spec.name: spec for spec in task.inputs(folder)}
    assert list(first.inputs) == list(specs)
    for name, arrays in first.inputs.items():
        for a, b in zip(arrays, second.inputs[name], strict=True):
            assert a.dtype == specs[name].dtype
            assert len(a.shape) == len(specs[name].shape) - 1
            np.testing.assert_array_equal(a, b)
    assert first.targets is not None
    assert second.targets is not None
    np.testing.assert_array_equal(first.targets, second.targets)
    one_by_one = [task.encode(folder, [row]).lengths[0] for row in rows(example.labels)]
    assert one_by_one == list(first.lengths)


def test_rows_without_labels_have_no_targets(task: Task, folder: Path) -> None:
    bare = [{name: cell for name, cell in row.items() if name != "label"} for row in rows((None,) * len(TEXTS))]
    assert task.encode(folder, bare).targets is None


def test_golden_rows_are_few_fixed_and_encodable(task: Task, folder: Path) -> None:
    first, second = (task.encode(folder, task.golden_rows(folder)) for _ in range(2))
    assert 1 <= len(first) <= 8
    for name, arrays in first.inputs.items():
        for a, b in zip(arrays, second.inputs[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_unknown_label_is_refused(task: Task, example: Example, folder: Path) -> None:
    if example.unknown is None:
        pytest.skip("every number is a label")
    with pytest.raises(DataError, match="does not know") as caught:
        task.encode(folder, rows((*example.labels[:2], example.unknown)))
    assert "grand" in caught.value.value


def test_score_is_best_when_all_is_right(task: Task, example: Example, folder: Path) -> None:
    targets = task.encode(folder, rows(example.labels)).targets
    assert targets is not None
    best, worst = (task.score(float32(outputs), targets) for outputs in (example.right, example.wrong))
    for score in (best, worst):
        assert score.outcomes.shape == (len(TEXTS),)
        assert score.outcomes.dtype == np.float64
        assert score.value == pytest.approx(score.outcomes.mean())
        if score.direction == "higher":
            assert 0.0 <= score.value <= 1.0
        assert (score.metric, score.direction) == (task.metric, task.direction)
    assert (best.value, worst.value) == (1.0, 0.0) if best.direction == "higher" else best.value == 0.0 < worst.value


def test_agreement_is_with_itself_and_not_with_the_opposite(task: Task, example: Example) -> None:
    right, wrong = float32(example.right), float32(example.wrong)
    assert task.agree(right, right).dtype == np.bool_
    assert task.agree(right, right).tolist() == [True] * len(TEXTS)
    assert not task.agree(right, wrong).any()


def test_predictions_are_plain_values_one_an_example(task: Task, example: Example) -> None:
    answers = task.predictions(float32(example.right))
    assert len(answers) == len(TEXTS)
    assert json.loads(json.dumps(answers)) == answers
    if task.labels:
        assert [answer["label"] for answer in answers] == list(example.labels)


def test_losses_prefer_what_is_right(task: Task, example: Example, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    targets = torch.from_numpy(task.encode(folder, rows(example.labels)).targets)
    right, wrong = (torch.from_numpy(float32(outputs)) for outputs in (example.right, example.wrong))
    assert 0 <= task.loss(right, targets) < task.loss(wrong, targets)
    assert task.divergence(right, right, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert task.divergence(wrong, right, 2.0) > 0


def test_config_options_fit_the_outputs(task: Task, example: Example) -> None:
    assert task.config_options()["num_labels"] == example.right.shape[1]
