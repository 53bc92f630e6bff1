from __future__ import annotations

import numpy as np
import pytest

from compress.errors import RecipeError
from compress.pipeline.checking import check_gates, check_parity
from compress.recipe import GateRule
from compress.tasks.base import Score
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("a", "b", "c"))


def score(right: int, n: int, flips: int = 0) -> Score:
    """``right`` of ``n``; ``flips`` of the right ones moved to the other end."""
    outcomes = np.array([1.0] * right + [0.0] * (n - right))
    if flips:
        outcomes[:flips], outcomes[-flips:] = 0.0, 1.0
    return Score("accuracy", float(outcomes.mean()), "higher", outcomes, {})


def error(values) -> Score:
    values = np.array(values, dtype=np.float64)
    return Score("mae", float(values.mean()), "lower", values, {})


def test_default_gate_is_one_point():
    reference = score(900, 1000)
    (good,) = check_gates(reference, score(891, 1000), None)
    assert (good.delivered, good.verdict) == (True, "unresolved")
    assert good.delta == pytest.approx(-0.009)
    (bad,) = check_gates(reference, score(850, 1000), None)
    assert (bad.delivered, bad.verdict) == (False, "fail")
    (same,) = check_gates(reference, score(900, 1000), None)
    assert (same.delivered, same.verdict) == (True, "pass")


def test_exactly_the_limit_is_within():
    (gate,) = check_gates(score(900, 1000), score(890, 1000), None)
    assert gate.delivered


def test_strict_demands_the_bound():
    loose, strict = GateRule(max_drop_points=1.0), GateRule(max_drop_points=1.0, strict=True)
    reference, candidate = score(900, 1000), score(895, 1000, flips=30)
    assert check_gates(reference, candidate, {"accuracy": loose})[0].delivered
    assert not check_gates(reference, candidate, {"accuracy": strict})[0].delivered


def test_threshold_alone_is_a_gate():
    rule = {"accuracy": GateRule(min=0.95)}
    (gate,) = check_gates(score(900, 1000), score(900, 1000), rule)
    assert (gate.delivered, gate.verdict) == (False, "fail")


def test_error_metric_may_only_rise_so_far():
    reference, worse = error([1.0] * 50), error([1.05] * 50)
    assert not check_gates(reference, worse, None)[0].delivered
    assert check_gates(reference, worse, {"mae": GateRule(max_increase=0.1)})[0].delivered
    assert not check_gates(reference, worse, {"mae": GateRule(max=1.01)})[0].delivered
    assert check_gates(reference, error([0.9] * 50), None)[0].verdict == "pass"


def test_unknown_metric_is_refused():
    with pytest.raises(RecipeError, match="metric 'acuracy'") as caught:
        check_gates(score(9, 10), score(9, 10), {"acuracy": GateRule(min=0.5)})
    assert "accuracy" in caught.value.fix


def test_parity_levels():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 3)).astype(np.float32)
    near, far = a + np.float32(1e-5), a + rng.normal(scale=0.01, size=a.shape).astype(np.float32)
    assert check_parity(TASK, a, near, "exact").ok
    assert not check_parity(TASK, a, far, "exact").ok
    parity = check_parity(TASK, a, far, "close")
    assert parity.ok
    assert parity.max_abs == pytest.approx(np.abs(a - far).max())
    assert parity.agreement == pytest.approx((a.argmax(1) == far.argmax(1)).mean())
    assert not check_parity(TASK, a, -a, "close").ok
    assert check_parity(TASK, a, -a, "task").ok


def test_outputs_that_are_not_finite_never_pass():
    a = np.ones((4, 3), dtype=np.float32)
    broken = np.full_like(a, np.nan)
    assert not any(check_parity(TASK, a, broken, level).ok for level in ("exact", "close", "task"))


def test_an_answer_near_the_border_weighs_by_its_size_in_the_cosine() -> None:
    """One of 500 pairs of logits changes sides at a margin of 0.01, where the others have 4."""
    reference = np.tile([[-2.0, 2.0]], (500, 1)).astype(np.float32)
    reference[0] = [-0.005, 0.005]
    outputs = reference.copy()
    outputs[0] *= -1
    parity = check_parity(TextClassification(("a", "b")), reference, outputs, "close")
    assert parity.cosine == pytest.approx(1 - 2 * 0.01 / (499 * 4 + 0.01))
    assert parity.ok
    outputs[1] *= -1
    assert not check_parity(TextClassification(("a", "b")), reference, outputs, "close").ok
