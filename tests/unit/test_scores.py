from __future__ import annotations

import numpy as np

from compress.bench.statistics import paired_difference
from compress.pipeline.scores import _resolved
from compress.tasks.base import Score


def score(outcomes) -> Score:
    values = np.array(outcomes, dtype=np.float64)
    return Score("m", float(values.mean()), "higher", values, {})


def words(a, b) -> str:
    first, second = score(a), score(b)
    return _resolved(paired_difference(first.outcomes, second.outcomes), first, second)


def test_a_difference_is_real_absent_or_not_resolvable():
    right = [1.0] * 80 + [0.0] * 20
    assert words([0.0] * 100, right) == "a real difference"
    assert words(right, right) == "no difference found"
    assert words(right, [1.0] * 81 + [0.0] * 19).startswith("not resolvable at N = 100; about ")


def test_an_error_metric_gets_no_count_of_examples_from_a_test_of_shares():
    rng = np.random.default_rng(0)
    first = rng.normal(10.0, 30.0, 50)
    assert words(first, first + rng.normal(1.5, 40.0, 50)) == "not resolvable at N = 50"
