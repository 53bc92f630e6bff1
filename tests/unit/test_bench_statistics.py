"""Statistics against scipy, closed forms, enumeration, and coverage on simulated data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compress.bench.statistics import (
    calibration_error,
    holm,
    mcnemar_p,
    mean_interval,
    needed_n,
    needed_n_of_mean,
    paired_difference,
    wilson_interval,
)
from compress.errors import CompressError


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([1.0, 1.0, 0.0, 0.0], [both, only_a, only_b, neither])
    b = np.repeat([1.0, 0.0, 1.0, 0.0], [both, only_a, only_b, neither])
    return a, b


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    right, n = counts
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, n) == pytest.approx((right / n, expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(only_a: int, only_b: int) -> None:
    total = only_a + only_b
    expected = stats.binomtest(only_a, total, 0.5).pvalue if total else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_enumeration_of_every_coin_sequence() -> None:
    for discordant in range(1, 9):
        heads = [sum(flips) for flips in itertools.product((0, 1), repeat=discordant)]
        for only_a in range(discordant + 1):
            distance = abs(only_a - discordant / 2)
            as_extreme = sum(abs(h - discordant / 2) >= distance for h in heads)
            assert mcnemar_p(only_a, discordant - only_a) == pytest.approx(as_extreme / 2**discordant)


def test_mcnemar_takes_more_pairs_than_a_float_has_exponents() -> None:
    assert mcnemar_p(1000, 1000) == 1.0
    assert mcnemar_p(900, 1300) == pytest.approx(stats.binomtest(900, 2200).pvalue, rel=1e-9)


def test_paired_difference_of_accuracies() -> None:
    found = paired_difference(*outcomes(700, 20, 10, 142))
    assert (found.n, found.only_a, found.only_b) == (872, 20, 10)
    assert found.value == pytest.approx(-10 / 872)
    p, q = 20.5 / 874, 10.5 / 874
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / 874)
    assert (found.low, found.high) == pytest.approx((q - p - half, q - p + half))
    assert found.p_value == pytest.approx(stats.binomtest(10, 30).pvalue)


def test_no_disagreement_is_still_uncertain() -> None:
    found = paired_difference(*outcomes(80, 0, 0, 20))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.low == pytest.approx(-found.high)
    assert 0.01 < found.high < 0.03


def test_paired_difference_covers_the_truth() -> None:
    rng, trials, n, cells = np.random.default_rng(0), 2000, 200, (0.85, 0.05, 0.03, 0.07)
    covered = 0
    for table in rng.multinomial(n, cells, trials):
        found = paired_difference(*outcomes(*table))
        covered += found.low <= 0.03 - 0.05 <= found.high
    assert 0.94 <= covered / trials <= 0.98


def test_paired_difference_of_errors_is_a_seeded_bootstrap() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1.0, 0.2, 300), rng.normal(1.1, 0.2, 300)
    found = paired_difference(a, b, seed=5)
    assert found == paired_difference(a, b, seed=5)
    assert found != paired_difference(a, b, seed=6)
    assert found.only_a is None
    assert found.p_value == pytest.approx(2 / 10_001)
    assert found.value == pytest.approx((b - a).mean())
    half = 1.96 * (b - a).std() / math.sqrt(300)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.004)


@pytest.mark.parametrize("values", [(0.0, 1.0, 5.0), (1.0, 1.0, 4.0, 6.0)])
def test_bootstrap_ends_by_enumeration_of_every_resample(values: tuple[float, ...]) -> None:
    every = sorted(np.mean(draw) for draw in itertools.product(values, repeat=len(values)))
    found = mean_interval(np.array(values), resamples=40_000, confidence=0.8)
    exact = np.quantile(every, [0.1, 0.9], method="inverted_cdf")
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), *exact))


def test_mean_interval_of_continuous_values_equals_scipy() -> None:
    values = np.random.default_rng(2).exponential(size=400)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_mean_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    found = [mean_interval(rng.exponential(size=80), seed=i, resamples=500) for i in range(400)]
    assert 0.90 <= np.mean([low <= 1.0 <= high for _, low, high in found]) <= 0.98


def test_needed_n_gives_the_power_that_it_promises() -> None:
    n = needed_n(0.06, 0.02)
    rng, trials = np.random.default_rng(5), 1500
    tables = rng.multinomial(n, (0.02, 0.04, 0.94), trials)
    z = (tables[:, 1] - tables[:, 0]) / np.sqrt(np.maximum(tables[:, 0] + tables[:, 1], 1))
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.04)
    assert needed_n(0.06, -0.02) == n
    assert needed_n(0.06, 0.01) > 3 * n


def test_the_bootstrap_p_is_that_of_a_t_test_and_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(1.0, 0.2, 200), rng.normal(1.03, 0.2, 200)
    assert paired_difference(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    null = [paired_difference(*rng.normal(size=(2, 60)), seed=i, resamples=400).p_value for i in range(400)]
    assert np.mean(np.array(null) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(null) == pytest.approx(0.5, abs=0.06)


def test_needed_n_of_mean_gives_the_power_that_it_promises() -> None:
    n, rng = needed_n_of_mean(2.0, 0.5), np.random.default_rng(7)
    draws = rng.normal(0.5, 2.0, (2000, n))
    z = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(n))
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.04)
    assert needed_n_of_mean(2.0, -0.5) == n == math.ceil((1.959964 + 0.841621) ** 2 * 16)


def test_holm_by_his_own_rule_and_a_worked_example() -> None:
    """Reject in order while p(k) <= alpha / (m - k + 1): an adjusted p below alpha says the same."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(8)
    for _ in range(200):
        values, alpha = rng.random(6) ** 3, 0.05
        kept = []
        for k, i in enumerate(np.argsort(values)):
            if values[i] > alpha / (6 - k):
                break
            kept.append(i)
        assert {i for i, p in enumerate(holm(list(values))) if p <= alpha} == set(kept)
    assert holm([]) == []


def test_holm_makes_a_chance_finding_in_one_family_of_twenty() -> None:
    families = np.random.default_rng(9).random((2000, 77))
    assert np.mean([min(holm(list(family))) < 0.05 for family in families]) == pytest.approx(0.05, abs=0.015)
    assert np.mean(families.min(axis=1) < 0.05) > 0.95


def test_calibration_error_by_hand() -> None:
    """Bins of 15: (0.6, 0.667] holds 0.65 twice, (0.867, 0.933] holds 0.9 and 0.92."""
    found = calibration_error(np.array([0.65, 0.65, 0.9, 0.92]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert found == pytest.approx(0.5 * abs(0.5 - 0.65) + 0.5 * abs(1.0 - 0.91))
    assert calibration_error(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.5)


def test_calibration_error_equals_a_loop_over_the_bins() -> None:
    rng = np.random.default_rng(10)
    confidences = np.concatenate([rng.uniform(0.2, 1.0, 500), np.arange(1, 16) / 15])
    right = (rng.random(515) < 0.7).astype(float)
    total = 0.0
    for b in range(15):
        inside = (confidences > b / 15) & (confidences <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    assert calibration_error(confidences, right) == pytest.approx(total)


def test_a_calibrated_model_has_no_calibration_error_to_speak_of() -> None:
    rng = np.random.default_rng(11)
    confidences = rng.uniform(0.5, 1.0, 200_000)
    right = (rng.random(200_000) < confidences).astype(float)
    assert calibration_error(confidences, right) < 0.005
    assert calibration_error(np.minimum(confidences + 0.1, 1.0), right) == pytest.approx(0.09, abs=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: paired_difference(np.ones(2), np.ones(3)),
        lambda: mean_interval(np.array([])),
        lambda: needed_n(0.01, 0.02),
        lambda: needed_n(0.01, 0.0),
        lambda: needed_n_of_mean(1.0, 0.0),
        lambda: calibration_error(np.ones(2), np.ones(3)),
    ],
)
def test_impossible_questions_are_refused(call) -> None:
    with pytest.raises(CompressError):
        call()
