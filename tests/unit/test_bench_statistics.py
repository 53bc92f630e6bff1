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
    mcnemar_p,
    mean_interval,
    needed_n,
    paired_difference,
    percentile,
    ratio_of_totals,
    samples_for_percentile,
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
    assert (found.p_value, found.only_a) == (None, None)
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


def test_ratio_is_of_total_times_and_has_no_width_when_rounds_agree() -> None:
    baseline = [[[4.0, 8.0], [4.0, 8.0], [4.0, 8.0]]]
    samples = [[[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]]
    assert ratio_of_totals(baseline, samples) == pytest.approx((3.0, 3.0, 3.0))


def test_ratio_keeps_the_sides_of_a_round_together() -> None:
    slow = np.linspace(1, 3, 9)
    baseline, samples = [[[2 * s] for s in slow]], [[[s] for s in slow]]
    assert ratio_of_totals(baseline, samples) == pytest.approx((2.0, 2.0, 2.0))
    shuffled = [[[s] for s in slow[::-1]]]
    found = ratio_of_totals(baseline, shuffled)
    assert found.high - found.low > 0.3


def test_ratio_interval_by_enumeration_of_rounds_and_launches() -> None:
    baseline, samples = [[[3.0], [5.0]], [[4.0], [4.0]]], [[[1.0], [2.0]], [[2.0], [3.0]]]
    per_launch = [
        [np.sum([[b[i][0], s[i][0]] for i in rounds], axis=0) for rounds in itertools.product(range(2), repeat=2)]
        for b, s in zip(baseline, samples, strict=True)
    ]
    every = [
        np.add(x, y)
        for first, second in itertools.product(range(2), repeat=2)
        for x, y in itertools.product(per_launch[first], per_launch[second])
    ]
    exact = np.quantile([x / y for x, y in every], [0.1, 0.9], method="inverted_cdf")
    found = ratio_of_totals(baseline, samples, resamples=40_000, confidence=0.8)
    assert (found.value, found.low, found.high) == pytest.approx((16 / 8, *exact))


def test_ratio_shows_the_spread_between_launches() -> None:
    one = [[[2.0]] * 5, [[2.0]] * 5, [[2.0]] * 5]
    other = [[[1.0]] * 5, [[1.25]] * 5, [[0.8]] * 5]
    found = ratio_of_totals(one, other)
    assert found.low == pytest.approx(2 / 1.25, abs=0.01)
    assert found.high == pytest.approx(2 / 0.8, abs=0.01)


def test_ratio_leaves_out_rounds_that_one_side_lacks() -> None:
    found = ratio_of_totals([[[2.0], [2.0], [99.0]], [[2.0]]], [[[1.0], [1.0]]])
    assert found == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(CompressError, match="no round"):
        ratio_of_totals([[[1.0]]], [[]])


def test_ratio_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(4), 0
    for trial in range(300):
        drift = rng.lognormal(0, 0.3, (12, 1))
        baseline = 3.0 * drift * rng.lognormal(0, 0.05, (12, 1))
        samples = 2.0 * drift * rng.lognormal(0, 0.05, (12, 1))
        found = ratio_of_totals([baseline.tolist()], [samples.tolist()], seed=trial, resamples=400)
        covered += found.low <= 1.5 <= found.high
    assert 0.86 <= covered / 300 <= 0.98


def test_percentile_interpolates_linearly() -> None:
    samples = np.array([4.0, 1.0, 3.0, 2.0])
    assert [percentile(samples, q) for q in (0, 50, 90, 100)] == pytest.approx([1.0, 2.5, 3.7, 4.0])


def test_samples_for_percentile_matches_the_table() -> None:
    assert [samples_for_percentile(q) for q in (90, 95, 99, 99.9)] == [44, 90, 459, 4603]


def test_needed_n_gives_the_power_that_it_promises() -> None:
    n = needed_n(0.06, 0.02)
    rng, trials = np.random.default_rng(5), 1500
    tables = rng.multinomial(n, (0.02, 0.04, 0.94), trials)
    z = (tables[:, 1] - tables[:, 0]) / np.sqrt(np.maximum(tables[:, 0] + tables[:, 1], 1))
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.04)
    assert needed_n(0.06, -0.02) == n
    assert needed_n(0.06, 0.01) > 3 * n


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: paired_difference(np.ones(2), np.ones(3)),
        lambda: mean_interval(np.array([])),
        lambda: needed_n(0.01, 0.02),
        lambda: needed_n(0.01, 0.0),
    ],
)
def test_impossible_questions_are_refused(call) -> None:
    with pytest.raises(CompressError):
        call()
