"""Intervals and tests for accuracies and their differences. Everything is seeded and vectorised.

Intervals are two-sided; resampling intervals are percentile bootstraps (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from compress.errors import CompressError

RESAMPLES = 10_000
_DISCRETE = 32
_CHUNK = 2_000_000


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b minus mean of a over the same examples.

    Attributes:
        value, low, high: the difference with its interval, in the unit of the outcomes.
        n: number of examples.
        only_a, only_b: examples that only a, only b got right; None unless outcomes are 0 or 1.
        p_value: of "no difference": McNemar's exact test where outcomes are 0 or 1, else the bootstrap's.
    """

    value: float
    low: float
    high: float
    n: int
    only_a: int | None = None
    only_b: int | None = None
    p_value: float = 1.0


def wilson_interval(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the share of right answers with Wilson's score interval (Wilson 1927).

    The ends are the roots p of ``(right/n - p)^2 = z^2 p (1 - p) / n``.
    """
    _need(0 <= right <= n and n > 0, "The counts do not make a share.", f"{right} of {n}")
    z2 = _z(confidence) ** 2
    share = right / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, 0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Return the exact two-sided McNemar p: a fair coin decides each discordant pair (McNemar 1947)."""
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> PairedDifference:
    """Compare two systems on the same examples; positive means that b's outcomes are higher.

    Outcomes of 0 and 1 get Agresti and Min's (2005) interval: half an observation is added to each cell of the
    2 x 2 table, then Wald's. A bootstrap would collapse to a point where two systems never disagree. Other
    outcomes get a bootstrap over examples.

    Args:
        a, b: (n,) outcomes of the same examples in the same order.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _need(a.shape == b.shape and a.ndim == 1 and a.size > 0, "Outcomes are not paired.", f"{a.shape}, {b.shape}")
    n, value = a.size, float(np.mean(b) - np.mean(a))
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        means = _bootstrap_means(b - a, seed, resamples)
        return PairedDifference(value, *_ends(means, confidence), n, p_value=_bootstrap_p(means))
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    p_a, p_b = (only_a + 0.5) / (n + 2), (only_b + 0.5) / (n + 2)
    half = _z(confidence) * math.sqrt((p_a + p_b - (p_b - p_a) ** 2) / (n + 2))
    low, high = max(-1.0, p_b - p_a - half), min(1.0, p_b - p_a + half)
    return PairedDifference(value, low, high, n, only_a, only_b, mcnemar_p(only_a, only_b))


def mean_interval(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return the mean of (n,) outcomes with a bootstrap interval over examples."""
    values = np.asarray(values, dtype=np.float64)
    _need(values.ndim == 1 and values.size > 0, "There are no outcomes to average.", values.shape)
    return Interval(float(values.mean()), *_ends(_bootstrap_means(values, seed, resamples), confidence))


def needed_n(discordant_rate: float, difference: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return how many paired examples resolve a difference (Connor 1987, for McNemar's test).

    ``n = (z_conf sqrt(d) + z_power sqrt(d - D^2))^2 / D^2`` with d the discordant rate and D the difference.

    Args:
        discordant_rate: share of examples on which exactly one of the two is right.
        difference: the difference to detect, as a share (0.01 = one point); at most ``discordant_rate``.
    """
    difference = abs(difference)
    _need(
        0 < difference <= discordant_rate <= 1,
        "A difference cannot exceed the share of disagreeing pairs.",
        f"difference {difference}, discordant rate {discordant_rate}",
    )
    spread = _z(confidence) * math.sqrt(discordant_rate)
    spread += NormalDist().inv_cdf(power) * math.sqrt(discordant_rate - difference**2)
    return math.ceil((spread / difference) ** 2)


def needed_n_of_mean(deviation: float, difference: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return how many paired examples resolve a difference of means: ``n = ((z_conf + z_power) s / D)^2``.

    Args:
        deviation: standard deviation s of the differences of single examples.
        difference: the difference D to detect, in the same unit.
    """
    _need(difference != 0 and deviation >= 0, "There is no difference to detect.", f"{difference} with {deviation}")
    return max(1, math.ceil(((_z(confidence) + NormalDist().inv_cdf(power)) * deviation / difference) ** 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for being the smallest of several (Holm 1979), in the given order.

    Where all hypotheses hold, one of them falls below 0.05 in at most 5 % of such families: the k-th smallest of m
    is multiplied by m - k + 1, never falls below the one before it, and is at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3).

    ``sum_b n_b / n |share right in b - mean confidence in b|`` over bins ``((b - 1) / bins, b / bins]``. It is
    biased upwards where bins hold few examples.

    Args:
        confidences: (n,) probability of the predicted label.
        right: (n,) 1 where that label is the true one, else 0.
    """
    confidences, right = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    _need(
        confidences.shape == right.shape and confidences.ndim == 1 and confidences.size > 0,
        "Confidences and outcomes do not belong together.",
        f"{confidences.shape}, {right.shape}",
    )
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=right - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / confidences.size)


def _bootstrap_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return (resamples,) means of values drawn with replacement; few distinct values are drawn as counts."""
    rng, n = np.random.default_rng(seed), values.size
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= _DISCRETE:
        means: np.ndarray = rng.multinomial(n, counts / n, resamples) @ distinct / n
        return means
    rows = max(1, _CHUNK // n)
    parts = [
        values[rng.integers(0, n, (min(rows, resamples - done), n))].mean(axis=1) for done in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _bootstrap_p(means: np.ndarray) -> float:
    """Return twice the smaller share of resampled means on either side of zero (Davison and Hinkley 1997, 4.2)."""
    less, more = int(np.sum(means <= 0)), int(np.sum(means >= 0))
    return min(1.0, 2 * (min(less, more) + 1) / (means.size + 1))


def _ends(estimates: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _need(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise CompressError(what, value=value, fix="Give the outcomes or samples of one and the same set of examples.")
