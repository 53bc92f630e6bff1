from __future__ import annotations

import numpy as np
import pytest

from compress.bench.statistics import wilson_interval
from compress.pipeline.scores import accuracy_of, classes_of, difference
from compress.tasks.base import Score


def score(outcomes, metric: str = "accuracy") -> Score:
    values = np.array(outcomes, dtype=np.float64)
    return Score(metric, float(values.mean()), "higher", values, {})


def words(a, b, metric: str = "accuracy") -> str:
    return difference("model", score(a, metric), score(b, metric)).text


def test_a_difference_is_beyond_the_interval_absent_or_not_resolvable():
    right = [1.0] * 80 + [0.0] * 20
    assert words([0.0] * 100, right) == "80.00 points higher than the reference, beyond the interval"
    assert words(right, [0.0] * 100) == "80.00 points lower than the reference, beyond the interval"
    assert words(right, right) == "no difference found at N = 100"
    assert words(right, [1.0] * 81 + [0.0] * 19).startswith("not resolvable at N = 100; about ")


def test_the_verdict_names_what_it_is_compared_with():
    text = difference("half", score([0.0] * 50), score([1.0] * 50), "half").text
    assert text == "100.00 points higher than half, beyond the interval"


def test_an_error_metric_gets_the_count_of_examples_for_its_own_spread():
    rng = np.random.default_rng(0)
    first = rng.normal(10.0, 30.0, 50)
    second = first + rng.normal(1.5, 40.0, 50)
    change = second - first
    needed = int(words(first, second, "mae").split("about ")[1].split()[0].replace(",", ""))
    assert needed == pytest.approx((2.8016 * change.std(ddof=1) / change.mean()) ** 2, rel=0.01)
    assert words(first, first + 2.0, "mae") == "2.0000 higher than the reference, beyond the interval"


def test_calibration_is_of_the_softmax_and_only_for_one_label():
    logits = np.array([[0.0, 0.0], [np.log(3.0), 0.0], [0.0, np.log(3.0)], [0.0, np.log(3.0)]])
    found = accuracy_of(score([1, 1, 1, 0]), logits)
    assert found.calibration_error == pytest.approx(0.25 * 0.5 + 0.75 * abs(2 / 3 - 0.75))
    assert accuracy_of(score([1, 1, 1, 0])).calibration_error is None
    assert accuracy_of(score([1, 1, 1, 0], "exact_match"), logits).calibration_error is None
    assert accuracy_of(score([1, 1, 1, 0]), np.full((4, 2), np.nan)).calibration_error is None


ANSWERS = np.repeat([0, 1, 2], [40, 40, 20])
LABELS = ("kept", "broken", "mended", "absent")


def test_classes_come_worst_first_and_know_what_is_beyond_chance():
    before = score([1.0] * 38 + [0.0] * 2 + [1.0] * 40 + [1.0] * 10 + [0.0] * 10)
    after = score([1.0] * 37 + [0.0] * 3 + [1.0] * 20 + [0.0] * 20 + [1.0] * 12 + [0.0] * 8)
    found = classes_of(LABELS, ANSWERS, after, before)
    assert [piece.label for piece in found] == ["broken", "kept", "mended"]
    assert [piece.text for piece in found] == [
        "lower than the reference, beyond chance among 3 classes",
        "lower by the estimate, within chance among 3 classes",
        "higher by the estimate, within chance among 3 classes",
    ]
    worst = found[0]
    assert (worst.n, worst.right, worst.value, worst.reference, worst.points) == (40, 20, 0.5, 1.0, -50.0)
    assert (worst.low, worst.high) == wilson_interval(20, 40)[1:]
    assert worst.points_low < -50 < worst.points_high < 0


def test_among_many_classes_a_few_examples_are_chance():
    """Six lost and none won: p = 0.03 for one class alone, and nothing to speak of among seventy-seven."""
    answers = np.repeat(np.arange(77), 15)
    labels = [f"class {i}" for i in range(77)]
    before, after = np.ones(77 * 15), np.ones(77 * 15)
    after[:6] = 0.0
    worst = classes_of(labels, answers, score(after), score(before))[0]
    assert (worst.label, worst.text) == ("class 0", "lower by the estimate, within chance among 77 classes")
    alone = classes_of(labels, answers[:15], score(after[:15]), score(before[:15]))[0]
    assert alone.text == "lower than the reference, beyond chance"


def test_seventy_seven_equal_classes_seldom_yield_a_finding():
    rng, answers, findings = np.random.default_rng(0), np.repeat(np.arange(77), 15), 0
    for _ in range(60):
        before, after = (score(rng.random(77 * 15) < 0.9) for _ in range(2))
        findings += any(
            "beyond" in piece.text for piece in classes_of([str(i) for i in range(77)], answers, after, before)
        )
    assert findings / 60 <= 0.1


def test_the_reference_itself_has_classes_without_a_difference():
    found = classes_of(LABELS, ANSWERS, score([1.0] * 60 + [0.0] * 40), None)
    assert [(piece.label, piece.reference, piece.text) for piece in found] == [
        ("mended", None, ""),
        ("broken", None, ""),
        ("kept", None, ""),
    ]


def test_other_tasks_have_no_classes():
    assert classes_of(LABELS, ANSWERS, score([1.0] * 100, "exact_match"), None) == ()
    assert classes_of((), ANSWERS, None, None) == ()
