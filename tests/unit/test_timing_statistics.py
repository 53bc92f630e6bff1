"""Statistics of times: against scipy, closed forms and enumeration, and by coverage of series with a known ratio."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compress.bench.statistics import Interval
from compress.bench.timing_statistics import (
    FEWEST_ROUNDS,
    block_length,
    mann_kendall_p,
    order_ranks,
    percentile,
    percentile_estimate,
    ratio_of_totals,
    ratio_verdict,
    resampled_ratio,
    stability,
    studentised_ratio,
)
from compress.errors import CompressError

TRUE = 1.5
SERIES = 250


def autoregression(rng: np.random.Generator, launches: int, rounds: int, correlation: float) -> np.ndarray:
    """Return (launches, rounds) stationary first-order autoregressions of variance 1."""
    draws = rng.normal(size=(launches, rounds))
    for t in range(1, rounds):
        draws[:, t] = correlation * draws[:, t - 1] + math.sqrt(1 - correlation**2) * draws[:, t]
    return draws


def iid(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.exp(0.02 * rng.normal(size=(launches, rounds, 1))) for _ in range(2))


def drifting(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides become 40 % slower over a launch, in another way each time."""
    common = 1 + 0.4 * np.linspace(0, 1, rounds)[None, :, None] ** rng.uniform(0.3, 3, (launches, 1, 1))
    return tuple(common * side for side in iid(rng, launches, rounds))


def spiky(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of a hundred take five times as long."""
    sides = (np.exp(0.02 * rng.normal(size=(launches, rounds, 30))) for _ in range(2))
    return tuple(side * np.where(rng.random(side.shape) < 0.02, 5.0, 1.0) for side in sides)


def correlated(correlation: float):
    def make(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.exp(0.02 * autoregression(rng, launches, rounds, correlation))[..., None] for _ in range(2))

    return make


def launched(effect: float):
    def make(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        shifts = (np.exp(effect * rng.normal(size=(launches, 1, 1))) for _ in range(2))
        return tuple(side * shift for side, shift in zip(iid(rng, launches, rounds), shifts, strict=True))

    return make


SCENES = {
    "iid, 1 launch of 7 rounds": (iid, 1, 7),
    "iid, 1 launch of 30": (iid, 1, 30),
    "iid, 3 launches of 7": (iid, 3, 7),
    "drift, 1 launch of 12": (drifting, 1, 12),
    "drift, 3 launches of 7": (drifting, 3, 7),
    "spikes, 1 launch of 12": (spiky, 1, 12),
    "spikes, 3 launches of 7": (spiky, 3, 7),
    "correlation 0.5, 1 launch of 20": (correlated(0.5), 1, 20),
    "correlation 0.7, 1 launch of 20": (correlated(0.7), 1, 20),
    "correlation 0.9, 1 launch of 40": (correlated(0.9), 1, 40),
    "correlation 0.5, 3 launches of 7": (correlated(0.5), 3, 7),
    "correlation 0.9, 3 launches of 7": (correlated(0.9), 3, 7),
    "launch effect 1 %, 3 launches of 7": (launched(0.01), 3, 7),
    "launch effect 2 %, 3 launches of 7": (launched(0.02), 3, 7),
    "launch effect 1 %, 5 launches of 7": (launched(0.01), 5, 7),
    "launch effect 2 %, 5 launches of 7": (launched(0.02), 5, 7),
    "launch effect 2 %, 2 launches of 7": (launched(0.02), 2, 7),
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_interval_covers_the_true_ratio_at_the_stated_rate(scene: str) -> None:
    """At least 0.92 of 250 series: what an interval of 95 % falls below once in a hundred times."""
    make, launches, rounds = SCENES[scene]
    rng, covered = np.random.default_rng(list(scene.encode())), 0
    for number in range(SERIES):
        base, own = make(rng, launches, rounds)
        found = ratio_of_totals((3.0 * base).tolist(), (2.0 * own).tolist(), seed=number, resamples=200)
        covered += found.low <= TRUE <= found.high
    assert covered / SERIES >= 0.92


def test_the_interval_is_not_wide_without_need() -> None:
    rng, widths = np.random.default_rng(0), []
    for number in range(100):
        base, own = iid(rng, 1, 30)
        found = ratio_of_totals(base.tolist(), own.tolist(), seed=number, resamples=200)
        widths.append((found.high - found.low) / 2)
    ideal = stats.t.ppf(0.975, 29) * 0.02 * math.sqrt(2 / 30)
    assert ideal <= np.median(widths) <= 1.35 * ideal


def test_a_bootstrap_of_three_launches_alone_is_too_narrow() -> None:
    rng, covered, wide = np.random.default_rng(1), 0, 0
    for number in range(SERIES):
        base, own = launched(0.02)(rng, 3, 7)
        alone = resampled_ratio(base.tolist(), own.tolist(), seed=number, resamples=200)
        covered += alone.low <= 1.0 <= alone.high
        whole = ratio_of_totals(base.tolist(), own.tolist(), seed=number, resamples=200)
        wide += whole.low <= alone.low and whole.high >= alone.high
    assert covered / SERIES < 0.88
    assert wide == SERIES


def test_between_launches_it_is_the_t_interval_of_their_log_ratios() -> None:
    logs = np.array([0.010, -0.004, 0.021])
    base, own = [[[math.exp(x)]] for x in logs], [[[1.0]]] * 3
    found = studentised_ratio(base, own)
    exact = stats.t.interval(0.95, 2, loc=0, scale=logs.std(ddof=1) / math.sqrt(3))
    assert math.log(found.high / found.value) == pytest.approx(exact[1], rel=0.01)
    assert math.log(found.low / found.value) == pytest.approx(exact[0], rel=0.01)


def test_inside_a_launch_it_tends_to_the_t_interval_of_independent_rounds() -> None:
    rng = np.random.default_rng(2)
    logs = 0.01 * rng.normal(size=2000)
    found = studentised_ratio([[[math.exp(x)] for x in logs]], [[[1.0]] * 2000])
    half = stats.t.ppf(0.975, 1999) * logs.std(ddof=1) / math.sqrt(2000)
    assert math.log(found.high / found.value) == pytest.approx(half, rel=0.12)


def test_correlated_rounds_widen_the_interval_by_their_long_run_variance() -> None:
    rng = np.random.default_rng(3)
    logs = 0.01 * autoregression(rng, 1, 4000, 0.6)[0]
    found = studentised_ratio([[[math.exp(x)] for x in logs]], [[[1.0]] * 4000])
    half = 1.96 * 0.01 * math.sqrt((1 + 0.6) / (1 - 0.6) / 4000)
    assert math.log(found.high / found.value) == pytest.approx(half, rel=0.15)


def test_a_ratio_of_one_round_has_no_interval_and_no_verdict() -> None:
    found = ratio_of_totals([[[4.0]]], [[[2.0]]])
    assert found == Interval(2.0, 0.0, math.inf)
    assert ratio_verdict(found) == ""


@pytest.mark.parametrize(
    ("low", "high", "word"), [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.2, "no difference")]
)
def test_the_verdict_of_a_ratio(low: float, high: float, word: str) -> None:
    assert ratio_verdict(Interval((low + high) / 2, low, high)) == word


def test_the_ratio_and_its_interval_turn_over_when_the_sides_change_places() -> None:
    rng = np.random.default_rng(4)
    base, own = (side.tolist() for side in launched(0.01)(rng, 3, 9))
    there, back = studentised_ratio(base, own), studentised_ratio(own, base)
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(there)


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


def test_resampling_by_enumeration_of_rounds_and_launches() -> None:
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
    found = resampled_ratio(baseline, samples, resamples=40_000, confidence=0.8)
    assert (found.value, found.low, found.high) == pytest.approx((16 / 8, *exact))


def test_resampling_in_blocks_by_enumeration() -> None:
    """Twelve rounds in two runs of six: their blocks wrap around, and every start is as likely."""
    own = np.array([1.0] * 6 + [2.0] * 6)
    length = block_length(0.8, 12)
    assert 12 % length == 0
    blocks = [np.take(own, range(start, start + length), mode="wrap").sum() for start in range(12)]
    totals = [sum(draw) for draw in itertools.product(blocks, repeat=12 // length)]
    exact = np.quantile(1.0 / np.array(totals), [0.1, 0.9], method="inverted_cdf") * 24
    found = resampled_ratio([[[2.0]] * 12], [[[x] for x in own]], resamples=40_000, confidence=0.8)
    assert (found.low, found.high) == pytest.approx(tuple(exact))


def test_blocks_grow_with_correlation_and_stay_within_half_of_the_rounds() -> None:
    assert [block_length(r, 50) for r in (-0.4, 0.0, 0.5)] == [1, 1, 5]
    assert block_length(0.5, 50) == round((75 ** (1 / 3)) * (4 / 3) ** (2 / 3))
    assert block_length(0.99, 8) == 4
    assert block_length(0.9, 1) == 1


def test_ratio_leaves_out_rounds_that_one_side_lacks() -> None:
    found = ratio_of_totals([[[2.0], [2.0], [99.0]], [[2.0]]], [[[1.0], [1.0]]])
    assert found == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(CompressError, match="no round"):
        ratio_of_totals([[[1.0]]], [[]])


def test_percentile_interpolates_linearly() -> None:
    samples = np.array([4.0, 1.0, 3.0, 2.0])
    assert [percentile(samples, q) for q in (0, 50, 90, 100)] == pytest.approx([1.0, 2.5, 3.7, 4.0])


@given(st.integers(1, 600), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_ranks_are_the_closest_that_err_with_half_of_five_percent(n: int, q: float) -> None:
    """By adding up binomial probabilities: each rank errs with at most 2.5 %, and the next one inwards with more."""
    mass = [math.comb(n, k) * (q / 100) ** k * (1 - q / 100) ** (n - k) for k in range(n + 1)]
    below = np.concatenate([[0.0], np.cumsum(mass)])  # below[r] = P(fewer than r draws below)
    low = [r for r in range(1, n + 1) if below[r] <= 0.025]
    high = [r for r in range(1, n + 1) if 1 - below[r] <= 0.025]
    assert order_ranks(n, q) == ((max(low), min(high)) if low and high else None)


def test_a_known_table_of_ranks() -> None:
    """The ranks of a median's interval, as textbooks list them."""
    assert [order_ranks(n, 50) for n in (5, 6, 10, 20, 100)] == [None, (1, 6), (2, 9), (6, 15), (40, 61)]


@pytest.mark.parametrize(("q", "n"), [(50.0, 60), (90.0, 100), (95.0, 200), (99.0, 500)])
def test_a_percentile_is_enclosed_at_the_stated_rate(q: float, n: int) -> None:
    rng, covered = np.random.default_rng(5), 0
    low, high = order_ranks(n, q) or (0, 0)
    draws = np.sort(rng.exponential(size=(2000, n)), axis=1)
    covered = (
        (draws[:, low - 1] <= stats.expon.ppf(q / 100)) & (stats.expon.ppf(q / 100) <= draws[:, high - 1])
    ).mean()
    assert 0.94 <= covered <= 0.985


def test_with_one_round_a_percentile_has_the_usual_order_statistics() -> None:
    values = np.random.default_rng(6).normal(100, 5, 200)
    found = percentile_estimate(values[None], 90)
    low, high = order_ranks(200, 90) or (0, 0)
    ordered = np.sort(values)
    assert found == (90, percentile(values, 90), ordered[low - 1], ordered[high - 1], "")


def test_rounds_of_the_same_inputs_do_not_narrow_a_percentile() -> None:
    values = np.random.default_rng(7).normal(100, 5, 200)
    once, often = percentile_estimate(values[None], 95), percentile_estimate(np.tile(values, (20, 1)), 95)
    assert (often.low, often.high) == (once.low, once.high)


def test_a_percentile_over_inputs_and_rounds_covers_what_it_is_about() -> None:
    """Inputs of different lengths, each run eight times with jitter: p90 over all of these times."""
    rng, covered = np.random.default_rng(8), 0
    truth = np.quantile(rng.normal(100, 4, 400_000) + rng.normal(0, 1, 400_000), 0.9)
    for _ in range(400):
        found = percentile_estimate(rng.normal(100, 4, (1, 120)) + rng.normal(0, 1, (8, 120)), 90)
        covered += found.low <= truth <= found.high
    assert covered / 400 >= 0.93


def test_a_percentile_is_hidden_with_the_reason() -> None:
    few = percentile_estimate(np.full((50, 100), 2.0), 99)
    assert (few.value, few.reason) == (None, "100 different inputs; its interval takes 368")
    assert order_ranks(367, 99) is None
    assert order_ranks(368, 99) is not None
    wide = percentile_estimate(np.random.default_rng(9).exponential(size=(3, 100)), 90)
    assert wide.value is None
    assert wide.reason.endswith("% from 100 different inputs (limit 10 %)")
    assert percentile_estimate(np.full((3, 100), 2.0), 90)[1:4] == (2.0, 2.0, 2.0)


@given(st.lists(st.integers(0, 8), min_size=3, max_size=40))
def test_the_trend_test_equals_scipy(values: list[int]) -> None:
    expected = stats.kendalltau(range(len(values)), values, method="asymptotic").pvalue
    found = mann_kendall_p([np.array(values, dtype=float)])
    assert found == pytest.approx(1.0 if math.isnan(expected) else expected, abs=1e-9)


def test_trends_of_launches_add_up_and_shifts_between_launches_do_not() -> None:
    rising = np.arange(5.0)
    assert mann_kendall_p([rising, rising + 100]) < mann_kendall_p([rising])
    rng = np.random.default_rng(10)
    noise = [rng.normal(size=6) + shift for shift in (0, 50, 100)]
    assert mann_kendall_p(noise) > 0.05
    assert mann_kendall_p([np.array([1.0])]) == 1.0


def test_stability_is_said_in_a_sentence() -> None:
    rng = np.random.default_rng(11)
    steady = stability([100 + rng.normal(0, 1, 20)])
    assert (steady.verdict, steady.text[:7]) == ("stable", "stable:")
    assert steady.cv == pytest.approx(0.01, abs=0.004)
    drift = stability([100 * np.linspace(1, 1.1, 12)])
    assert drift.verdict == "drifting"
    assert "9.5 % slower" in drift.text
    assert drift.change == pytest.approx(0.1 / 1.05)
    noisy = stability([100 + 20 * rng.normal(size=20)])
    assert noisy.verdict == "noisy"
    assert "limit 5 %" in noisy.text


def test_a_trend_too_small_to_matter_is_no_drift() -> None:
    assert stability([100 * np.linspace(1, 1.01, 30)]).verdict == "stable"


def test_few_rounds_are_not_called_stable() -> None:
    assert stability([np.array([100.0, 101.0, 100.5])]).verdict is None
    assert stability([np.array([100.0])]).text == "1 round cannot show a trend"
    assert stability([np.array([100.0, 150.0, 100.5])]).verdict == "noisy"
    assert (
        mann_kendall_p([np.arange(FEWEST_ROUNDS, dtype=float)])
        < 0.01
        < mann_kendall_p([np.arange(FEWEST_ROUNDS - 1.0)])
    )
