from __future__ import annotations

import numpy as np
import pytest

from compress.errors import UsageError
from compress.quantization.ranges import BINS, OBSERVERS, Histogram, Range, Statistics, choose_range


def observed(batches: list[np.ndarray], *, histogram: bool = True) -> Statistics:
    statistics = Statistics(histogram=Histogram() if histogram else None)
    for batch in batches:
        statistics.update(batch)
    return statistics


def quantized(values: np.ndarray, it: Range) -> np.ndarray:
    integers = np.clip(np.rint(values / it.scale) + it.zero_point, 0, 255)
    return np.asarray((integers - it.zero_point) * it.scale)


def test_scale_and_zero_point_follow_the_definition() -> None:
    it = Range(-1.0, 3.0)
    assert it.scale == pytest.approx(4 / 255)
    assert it.zero_point == round(255 / 4)
    assert it.symmetric_scale == pytest.approx(3 / 127)
    assert Range(0.0, 0.0).scale == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_histogram_counts_what_numpy_counts_on_its_final_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(rng.normal(0, 3), 10.0 ** rng.integers(-3, 3), rng.integers(1, 200)) for _ in range(30)]
    histogram = Histogram(64)
    for batch in batches:
        histogram.update(batch)
    every = np.concatenate(batches)
    assert histogram.counts.sum() == every.size
    edges = (histogram.start + np.arange(65)) * histogram.width
    expected = np.bincount(np.floor(every / histogram.width).astype(int) - histogram.start, minlength=64)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert edges[0] <= every.min()
    assert every.max() < edges[-1]


def test_histogram_leaves_out_what_is_not_finite() -> None:
    histogram = Histogram()
    histogram.update(np.array([np.inf, -np.inf, np.nan, 1.0, -2.0]))
    assert histogram.counts.sum() == 2


def test_memory_of_statistics_does_not_grow_with_examples() -> None:
    rng = np.random.default_rng(0)
    statistics = observed([rng.normal(size=(4, 8)) * i for i in range(1, 200)])
    assert statistics.histogram is not None
    assert statistics.histogram.counts.shape == (BINS,)
    assert statistics.examples == 199


def test_minmax_and_average_are_the_extremes_and_the_mean_extremes() -> None:
    batches = [np.array([-1.0, 2.0]), np.array([-3.0, 1.0]), np.array([0.5, 6.0])]
    statistics = observed(batches, histogram=False)
    assert choose_range(statistics, "minmax") == Range(-3.0, 6.0)
    assert choose_range(statistics, "average") == Range(pytest.approx(-4 / 3), pytest.approx(3.0))


def test_percentile_cuts_one_in_ten_thousand_at_either_end() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    it = choose_range(observed([values]), "percentile")
    width = (values.max() - values.min()) / BINS * 4
    assert it.low == pytest.approx(np.quantile(values, 0.0001), abs=width)
    assert it.high == pytest.approx(np.quantile(values, 0.9999), abs=width)


def test_mse_is_no_worse_than_any_pair_of_ends_on_a_grid() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=20_000), [40.0, -9.0]])
    it = choose_range(observed([values]), "mse")

    def error(candidate: Range) -> float:
        return float(np.square(quantized(values, candidate) - values).mean())

    grid = [Range(-9.0 * a, 40.0 * b) for a in np.linspace(0.3, 1, 30) for b in np.linspace(0.3, 1, 30)]
    assert error(it) <= min(map(error, grid)) * 1.05
    assert error(it) < error(choose_range(observed([values]), "minmax"))


def test_entropy_keeps_more_of_a_peak_than_minmax_and_all_of_a_uniform_tensor() -> None:
    rng = np.random.default_rng(2)
    peak = choose_range(observed([np.concatenate([rng.normal(size=50_000), [60.0]])]), "entropy")
    assert peak.high < 30.0
    flat = choose_range(observed([rng.uniform(-1, 1, 200_000)]), "entropy")
    assert flat.high == pytest.approx(1.0, abs=0.02)
    assert flat.low == pytest.approx(-1.0, abs=0.02)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_range_holds_zero_and_lies_within_the_extremes(observer: str) -> None:
    for batch in (np.full(50, 3.0), np.full(50, -0.5), np.zeros(5), np.array([1e-9, 2e-9])):
        it = choose_range(observed([batch]), observer)  # type: ignore[arg-type]
        assert it.low <= 0.0 <= it.high
        assert min(0.0, batch.min()) - 1e-12 <= it.low
        assert it.high <= max(0.0, batch.max()) + 1e-12


def test_a_histogram_method_without_a_histogram_is_refused() -> None:
    with pytest.raises(UsageError, match="without a histogram"):
        choose_range(observed([np.ones(3)], histogram=False), "mse")
