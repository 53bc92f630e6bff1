"""Intervals and tests for accuracies, differences and speed-ups. Everything is seeded and vectorised.

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
        p_value: exact McNemar test of "no difference"; None unless outcomes are 0 or 1.
    """

    value: float
    low: float
    high: float
    n: int
    only_a: int | None = None
    only_b: int | None = None
    p_value: float | None = None


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
        low, high = _ends(_bootstrap_means(b - a, seed, resamples), confidence)
        return PairedDifference(value, low, high, n)
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


def ratio_of_totals(
    baseline: Sequence[Sequence[Sequence[float]]],
    samples: Sequence[Sequence[Sequence[float]]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Return total baseline time over total time, so 2.0 reads "twice as fast".

    Both sides ran the same inputs, round by round. The interval resamples launches, then rounds inside each
    drawn launch, keeping the two sides of a round together: what slowed the machine in one round slowed both.

    Args:
        baseline, samples: [launch][round][input] in ms; rounds that only one side has are left out.
    """
    pairs = [_round_totals(x, y) for x, y in zip(baseline, samples, strict=False)]
    pairs = [pair for pair in pairs if pair.size]
    _need(bool(pairs), "There is no round that both sides ran.", f"{len(baseline)} and {len(samples)} launches")
    totals = sum((pair.sum(axis=1) for pair in pairs), np.zeros(2))
    rng = np.random.default_rng(seed)
    drawn_launches = rng.integers(0, len(pairs), (resamples, len(pairs)))
    drawn = np.zeros((2, resamples))
    for slot in range(len(pairs)):
        for launch, pair in enumerate(pairs):
            chosen = np.flatnonzero(drawn_launches[:, slot] == launch)
            rounds = rng.integers(0, pair.shape[1], (chosen.size, pair.shape[1]))
            drawn[:, chosen] += pair[:, rounds].sum(axis=2)
    return Interval(float(totals[0] / totals[1]), *_ends(drawn[0] / drawn[1], confidence))


def percentile(samples: np.ndarray, q: float) -> float:
    """Return the q-th percentile (0..100), interpolated linearly between order statistics (Hyndman-Fan type 7)."""
    return float(np.percentile(np.asarray(samples, dtype=np.float64), q, method="linear"))


def samples_for_percentile(q: float, confidence: float = 0.99) -> int:
    """Return how many samples it takes until one lies above the q-th percentile with this confidence.

    ``n >= ln(1 - confidence) / ln(q / 100)``: 44 for p90, 459 for p99. With fewer, do not print it.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q / 100))


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


def _round_totals(baseline: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]) -> np.ndarray:
    """Return (2, rounds): the total of each round that both sides ran."""
    return np.array([[sum(x), sum(y)] for x, y in zip(baseline, samples, strict=False)]).reshape(-1, 2).T


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


def _ends(estimates: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _need(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise CompressError(what, value=value, fix="Give the outcomes or samples of one and the same set of examples.")
