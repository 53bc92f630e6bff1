"""Streaming statistics of a tensor, and the ways to choose its 8-bit range from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from compress.errors import UsageError

Observer = Literal["minmax", "average", "percentile", "mse", "entropy"]
BINS = 2048
"""Most bins of a histogram: 16 kB for each tensor, however long the calibration runs."""
LEVELS = 256
_PERCENTILE = 0.9999
_STEPS = np.linspace(0.3, 1.0, 71)
"""Shares of an end of the range that the searches try."""


class Range(NamedTuple):
    """What 8 bits stretch over: real numbers, ``low <= 0 <= high``, so that zero is exact."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Distance of two neighbouring values of uint8; 1 for a tensor that is always 0."""
        return (self.high - self.low) / (LEVELS - 1) or 1.0

    @property
    def zero_point(self) -> int:
        """The value of uint8 that stands for 0."""
        return int(np.clip(np.rint(-self.low / self.scale), 0, LEVELS - 1))

    @property
    def symmetric_scale(self) -> float:
        """Distance of two neighbouring values of int8 without a zero point."""
        return max(-self.low, self.high) / 127 or 1.0


class Histogram:
    """Counts of values in bins of equal width that cover all of them, in one pass.

    When values fall outside, the width doubles and neighbouring bins merge, so that no count is lost or moved
    across an edge that stays. Bin i covers [(start + i) * width, (start + i + 1) * width).
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, dtype=np.int64)
        self.start, self.width = 0, 0.0

    def update(self, values: np.ndarray) -> None:
        """Add values of any shape; those that are not finite are left out."""
        values = values.ravel()
        values = values[np.isfinite(values)].astype(np.float64)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if self.width == 0.0:
            self.width = max(high - low, abs(high), abs(low), 1e-12) / (len(self.counts) // 2)
            self.start = int(np.floor(low / self.width))
        self._cover(low, high)
        index = np.floor(values / self.width).astype(np.int64) - self.start
        self.counts += np.bincount(np.clip(index, 0, len(self.counts) - 1), minlength=len(self.counts))

    def _cover(self, low: float, high: float) -> None:
        """Double the width, or shift the window, until it holds both values and all counts."""
        bins = len(self.counts)
        while True:
            used = np.flatnonzero(self.counts)
            first = int(np.floor(low / self.width))
            last = int(np.floor(high / self.width))
            if used.size:
                first, last = min(first, self.start + int(used[0])), max(last, self.start + int(used[-1]))
            if last - first < bins:
                break
            self._halve()
        if first < self.start or last >= self.start + bins:
            moved = np.zeros_like(self.counts)
            offset = self.start - first
            kept = np.flatnonzero(self.counts)
            moved[kept + offset] = self.counts[kept]
            self.counts, self.start = moved, first

    def _halve(self) -> None:
        """Merge pairs of bins: half as many, twice as wide."""
        bins = len(self.counts)
        target = (self.start + np.arange(bins)) // 2
        self.start = self.start // 2
        self.counts = np.bincount(target - self.start, weights=self.counts, minlength=bins)[:bins].astype(np.int64)
        self.width *= 2.0

    @property
    def centers(self) -> np.ndarray:
        """(bins,) float64, middle of each bin."""
        return (self.start + np.arange(len(self.counts)) + 0.5) * self.width

    def quantile(self, share: float) -> float:
        """Return the value below which a share of the counts lies, linear inside its bin."""
        total = np.cumsum(self.counts)
        wanted = share * total[-1]
        i = int(np.searchsorted(total, wanted))
        before = total[i - 1] if i else 0
        return float((self.start + i + (wanted - before) / max(self.counts[i], 1)) * self.width)


@dataclass
class Statistics:
    """What calibration keeps of one tensor: a few numbers and a histogram, whatever the number of examples.

    Attributes:
        low, high: extremes over all examples.
        low_sum, high_sum: of the extremes of each example, for their mean.
        examples: how many there were.
        histogram: of all values.
        channels: (width,) float32, largest absolute value at each index of the last axis; empty where its length
            differs between examples (a sequence).
    """

    low: float = 0.0
    high: float = 0.0
    low_sum: float = 0.0
    high_sum: float = 0.0
    examples: int = 0
    histogram: Histogram | None = None
    channels: np.ndarray | None = None

    def update(self, values: np.ndarray) -> None:
        """Add one example: an array of any shape."""
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
        lows, highs = rows.min(axis=0), rows.max(axis=0)
        low, high = float(lows.min()), float(highs.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.low_sum += min(low, 0.0)
        self.high_sum += max(high, 0.0)
        self.examples += 1
        if self.histogram is not None:
            self.histogram.update(values)
        self._update_channels(np.maximum(highs, -lows).astype(np.float32))

    def _update_channels(self, peaks: np.ndarray) -> None:
        if self.channels is None:
            self.channels = peaks
        elif self.channels.shape == peaks.shape:
            np.maximum(self.channels, peaks, out=self.channels)
        else:
            self.channels = np.empty(0, dtype=np.float32)


def vanishing_share(statistics: Statistics) -> float:
    """Return the share of a tensor's values that symmetric 8 bits over its whole range round to 0, 0 to 1.

    One outlier makes a step of ``max|x| / 127``; what is smaller than half of it is lost. Exact zeros are counted.
    """
    half = max(-statistics.low, statistics.high) / 127 / 2
    histogram = _histogram(statistics)
    total = int(histogram.counts.sum())
    return float(histogram.counts[np.abs(histogram.centers) < half].sum() / total) if total else 0.0


def choose_range(statistics: Statistics, observer: Observer) -> Range:
    """Choose the range of a tensor.

    Args:
        statistics: with a histogram, unless the observer is ``minmax`` or ``average``.
        observer: ``minmax`` keeps everything; ``average`` is the mean of each example's extremes; ``percentile``
            cuts 0.01 % of the values at either end; ``mse`` minimises the squared error of rounding and clipping
            (Banner et al. 2019, arXiv:1810.05723, searched instead of solved); ``entropy`` the Kullback-Leibler
            divergence between the distribution and its 8-bit form (Migacz, GTC 2017).
    """
    return _CHOICES[observer](statistics)


def _minmax(statistics: Statistics) -> Range:
    return Range(statistics.low, statistics.high)


def _average(statistics: Statistics) -> Range:
    count = max(statistics.examples, 1)
    return Range(statistics.low_sum / count, statistics.high_sum / count)


def _percentile(statistics: Statistics) -> Range:
    histogram = _histogram(statistics)
    low, high = histogram.quantile(1.0 - _PERCENTILE), histogram.quantile(_PERCENTILE)
    return Range(max(min(low, 0.0), statistics.low), min(max(high, 0.0), statistics.high))


def _mse(statistics: Statistics) -> Range:
    return _search(statistics, _squared_error)


def _entropy(statistics: Statistics) -> Range:
    return _search(statistics, _divergence)


_CHOICES: Mapping[Observer, Callable[[Statistics], Range]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
OBSERVERS: tuple[Observer, ...] = tuple(_CHOICES)


def _histogram(statistics: Statistics) -> Histogram:
    if statistics.histogram is None:
        raise UsageError(
            "These statistics were taken without a histogram.",
            fix="Calibrate with `histograms=True`, or choose ranges by minmax or average.",
        )
    return statistics.histogram


def _search(statistics: Statistics, loss: Callable[[np.ndarray, np.ndarray, Range], float]) -> Range:
    """Shrink both ends together, then each by itself, to the smallest loss."""
    histogram = _histogram(statistics)
    used = histogram.counts > 0
    values, counts = histogram.centers[used], histogram.counts[used].astype(np.float64)
    low, high = statistics.low, statistics.high

    def best(ranges: list[Range]) -> Range:
        return min(ranges, key=lambda it: loss(values, counts, it))

    found = best([Range(low * share, high * share) for share in _STEPS])
    for _ in range(2):
        found = best([found, *(Range(low * share, found.high) for share in _STEPS)])
        found = best([found, *(Range(found.low, high * share) for share in _STEPS)])
    return found


def _squared_error(values: np.ndarray, counts: np.ndarray, it: Range) -> float:
    """Sum of squared errors of quantizing to uint8 over a range."""
    integers = np.clip(np.rint(values / it.scale) + it.zero_point, 0, LEVELS - 1)
    return float(counts @ np.square((integers - it.zero_point) * it.scale - values))


def _divergence(values: np.ndarray, counts: np.ndarray, it: Range) -> float:
    """KL(P || Q): P the values clipped to the range, Q the same spread evenly over what each level stands for."""
    levels = np.clip(np.rint(values / it.scale) + it.zero_point, 0, LEVELS - 1).astype(np.int64)
    inside = (values >= it.low) & (values <= it.high)
    mass = np.bincount(levels, weights=counts * inside, minlength=LEVELS)
    bins = np.bincount(levels, weights=inside, minlength=LEVELS)
    clipped = counts * inside
    kept = np.flatnonzero(inside)
    if not kept.size:
        return float("inf")
    clipped[kept[0]] += counts[values < it.low].sum()
    clipped[kept[-1]] += counts[values > it.high].sum()
    spread = (mass / np.maximum(bins, 1))[levels] * inside
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))
