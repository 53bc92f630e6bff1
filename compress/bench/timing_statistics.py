"""Statistics of times: the ratio of totals, percentiles, and whether the rounds were steady.

Successive rounds are correlated and launches of a process differ, so neither counts as so many independent samples.
docs/decisions/0008-statistics-of-times.md has the coverage of each interval in simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from compress.bench.statistics import RESAMPLES, Interval
from compress.errors import CompressError

LARGEST_CORRELATION = 0.9
"""Correlation of successive rounds is taken to be at most this; more cannot be told from a drift."""
FEWEST_DEGREES = 3
"""Degrees of freedom of a single launch are taken to be at least this, where it has as many."""
WIDEST_PERCENTILE = 0.10
"""A percentile whose interval is wider, as a share of it to either side, is hidden."""
NOISY_CV = 0.05
"""Rounds that vary by more (standard deviation over mean) are noisy."""
DRIFT_P, DRIFT_SHARE = 0.01, 0.02
"""A trend is a drift when its test's p is below the first and it moves the rounds by more than the second."""
FEWEST_ROUNDS = 6
"""With fewer rounds the trend test cannot reach ``DRIFT_P``."""

Samples = Sequence[Sequence[Sequence[float]]]
"""[launch][round][input] in ms."""


def ratio_of_totals(
    baseline: Samples, samples: Samples, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return total baseline time over total time, so 2.0 reads "twice as fast".

    Both sides ran the same inputs, round by round; the two sides of a round are kept together, so what slowed both
    cancels. The interval is the wider one, end by end, of ``resampled_ratio``, which shows skew, and
    ``studentised_ratio``, which is wide enough for few launches and correlated rounds. A single round has no
    spread: the ends are then 0 and infinity.

    Args:
        baseline, samples: [launch][round][input] in ms; rounds that only one side has are left out.
    """
    resampled = resampled_ratio(baseline, samples, seed=seed, resamples=resamples, confidence=confidence)
    studentised = studentised_ratio(baseline, samples, confidence=confidence)
    return Interval(resampled.value, min(resampled.low, studentised.low), max(resampled.high, studentised.high))


def resampled_ratio(
    baseline: Samples, samples: Samples, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return the ratio of totals with a bootstrap over launches, then over blocks of rounds inside each drawn launch.

    Blocks wrap around (Politis and Romano 1992). For rounds whose successive correlation is r their length is
    ``(3n/2)^(1/3) (2r / (1 - r^2))^(2/3)``, best for the variance of a mean (Carlstein 1986, Hall et al. 1995).
    Alone it is too narrow: with three launches that differ by 2 % its nominal 95 % cover 81 %.
    """
    pairs = _paired(baseline, samples)
    totals = sum((pair.sum(axis=1) for pair in pairs), np.zeros(2))
    correlation = _correlation(_influences(pairs))
    rng = np.random.default_rng(seed)
    drawn_launches = rng.integers(0, len(pairs), (resamples, len(pairs)))
    drawn = np.zeros((2, resamples))
    for slot in range(len(pairs)):
        for launch, pair in enumerate(pairs):
            chosen = np.flatnonzero(drawn_launches[:, slot] == launch)
            drawn[:, chosen] += _drawn_totals(pair, block_length(correlation, pair.shape[1]), chosen.size, rng)
    low, high = np.quantile(drawn[0] / drawn[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(totals[0] / totals[1]), float(low), float(high))


def studentised_ratio(baseline: Samples, samples: Samples, *, confidence: float = 0.95) -> Interval:
    """Return the ratio of totals with a t interval of its logarithm, by linearisation.

    Each round adds ``u = b / mean(b) - s / mean(s)``. Two standard errors are formed, and the wider interval holds:

    - between launches, for two or more: the spread of the launches' sums of u, t with launches - 1 degrees. It
      holds whatever goes on inside a launch.
    - inside launches: rounds as a first-order autoregression. Their correlation r is pooled over launches, rid of
      its bias ``(1 + 3 r) / n`` (Kendall 1954), raised by its standard error, as it is too uncertain to be believed,
      and kept in 0 to ``LARGEST_CORRELATION``. With v(r) the variance of a mean of n such rounds as a share of
      one's, the degrees of freedom are 1/v - 1 for each launch.
    """
    pairs = _paired(baseline, samples)
    totals = sum((pair.sum(axis=1) for pair in pairs), np.zeros(2))
    value = float(totals[0] / totals[1])
    influences = _influences(pairs)
    rounds, launches = sum(u.size for u in influences), len(influences)
    halves = []
    if launches > 1:
        spread = math.sqrt(launches / (launches - 1) * sum(float(u.sum()) ** 2 for u in influences)) / rounds
        halves.append(_t(confidence, launches - 1) * spread)
    if rounds > launches:
        halves.append(_half_within(influences, confidence))
    if not halves:
        return Interval(value, 0.0, math.inf)
    half = max(halves)
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def ratio_verdict(ratio: Interval) -> str:
    """Return "faster", "slower", or "no difference" where the interval contains 1; empty if it has no ends."""
    if not math.isfinite(ratio.high):
        return ""
    return "faster" if ratio.low > 1.0 else "slower" if ratio.high < 1.0 else "no difference"


def block_length(correlation: float, rounds: int) -> int:
    """Return how many successive rounds are drawn together: 1 where they are not positively correlated."""
    r = min(max(correlation, 0.0), LARGEST_CORRELATION)
    length: float = (1.5 * rounds) ** (1 / 3) * (2 * r / (1 - r * r)) ** (2 / 3)
    return min(max(1, round(length)), max(1, rounds // 2))


def percentile(samples: np.ndarray, q: float) -> float:
    """Return the q-th percentile (0..100), interpolated linearly between order statistics (Hyndman-Fan type 7)."""
    return float(np.percentile(np.asarray(samples, dtype=np.float64), q, method="linear"))


def samples_for_percentile(q: float, confidence: float = 0.99) -> int:
    """Return how many samples it takes until one lies above the q-th percentile with this confidence.

    ``n >= ln(1 - confidence) / ln(q / 100)``: 44 for p90, 459 for p99.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q / 100))


def order_ranks(n: int, q: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the ranks (from 1) of the order statistics of n draws that enclose their q-th percentile.

    The number of draws below it is binomial(n, q / 100), so the ranks are binomial quantiles: each end errs with at
    most half of 1 - confidence, whatever the distribution (David and Nagaraja 2003, 7.1). None if n has no such ranks.
    """
    from scipy.stats import binom

    tail = (1 - confidence) / 2
    low, high = int(binom.ppf(tail, n, q / 100)), int(binom.ppf(1 - tail, n, q / 100)) + 1
    return (low, high) if low >= 1 and high <= n else None


class PercentileEstimate(NamedTuple):
    """A percentile in ms; ``value``, ``low`` and ``high`` are None where it is hidden, and ``reason`` says why."""

    q: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def percentile_estimate(rounds: np.ndarray, q: float, confidence: float = 0.95) -> PercentileEstimate:
    """Return a percentile over all samples, inputs times rounds, with its order-statistic interval.

    An input that is run again is no new draw of an input: its length decides most of its time. So the ranks are
    those of as many draws as there are *different inputs*, and are carried over to the order of all samples, in
    which every rank stands for as many samples as there are rounds (Woodruff 1952, with the effective sample size
    of a cluster sample at its worst). With one round they are the usual ranks.

    Args:
        rounds: (rounds, inputs) in ms, rounds of all launches.
        q: 0..100, both excluded.
    """
    repeats, inputs = rounds.shape
    ranks = order_ranks(inputs, q, confidence)
    if ranks is None:
        needed = _inputs_for_ranks(q, confidence)
        return PercentileEstimate(q, reason=f"{inputs:,} different inputs; its interval takes {needed:,}")
    ordered = np.sort(rounds, axis=None)
    value = percentile(ordered, q)
    low, high = float(ordered[(ranks[0] - 1) * repeats]), float(ordered[ranks[1] * repeats - 1])
    width = (high - low) / 2 / value
    if width > WIDEST_PERCENTILE:
        limit = f"limit {100 * WIDEST_PERCENTILE:.0f} %"
        return PercentileEstimate(q, reason=f"known to ±{100 * width:.0f} % from {inputs:,} different inputs ({limit})")
    return PercentileEstimate(q, value, low, high)


@dataclass(frozen=True)
class Stability:
    """Whether the rounds of one row were steady.

    Attributes:
        verdict: None where there are too few rounds.
        text: the verdict in a sentence.
        cv: standard deviation of the round totals of all launches over their mean; None for a single round.
        change: how much the rounds of a launch moved from first to last, as a share (Theil and Sen's slope).
        p_value: of no trend (Mann and Kendall).
    """

    verdict: Literal["stable", "drifting", "noisy"] | None
    text: str
    cv: float | None
    change: float
    p_value: float


def stability(totals: Sequence[np.ndarray]) -> Stability:
    """Judge the totals of the rounds, one array of (rounds,) ms for each launch."""
    together = np.concatenate([np.asarray(launch, dtype=np.float64) for launch in totals])
    cv = float(together.std(ddof=1) / together.mean()) if together.size > 1 else None
    p_value, change = mann_kendall_p(totals), _change(totals) / float(together.mean())
    if p_value < DRIFT_P and abs(change) > DRIFT_SHARE:
        way = "slower" if change > 0 else "faster"
        text = f"drifting: rounds became {100 * abs(change):.1f} % {way} from first to last"
        return Stability("drifting", f"{text}; ratios are paired by round, milliseconds are not", cv, change, p_value)
    if cv is not None and cv > NOISY_CV:
        text = f"noisy: rounds vary by {100 * cv:.1f} % (limit {100 * NOISY_CV:.0f} %)"
        return Stability("noisy", text, cv, change, p_value)
    if cv is None or together.size < FEWEST_ROUNDS:
        plural = "s" if together.size > 1 else ""
        return Stability(None, f"{together.size} round{plural} cannot show a trend", cv, change, p_value)
    return Stability("stable", f"stable: rounds vary by {100 * cv:.1f} %, without a trend", cv, change, p_value)


def mann_kendall_p(series: Sequence[np.ndarray]) -> float:
    """Return the two-sided p of "no monotone trend" inside the series (Mann 1945, Kendall 1975).

    Scores and variances of several series are added (Hirsch et al. 1982); ties are allowed for. 1 where there is
    nothing to compare.
    """
    score, variance = 0.0, 0.0
    for values in series:
        n = len(values)
        score += float(np.sign(np.subtract.outer(values, values))[np.tril_indices(n, -1)].sum())
        ties = np.unique(values, return_counts=True)[1].astype(np.float64)
        variance += (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return 1.0 if variance <= 0 else math.erfc(abs(score) / math.sqrt(2 * variance))


def _change(series: Sequence[np.ndarray]) -> float:
    """Return how far the median of all pairwise slopes inside the series leads over the longest of them."""
    slopes = []
    for values in series:
        later, earlier = np.tril_indices(len(values), -1)
        slopes.append((np.asarray(values)[later] - np.asarray(values)[earlier]) / (later - earlier))
    every = np.concatenate(slopes)
    return float(np.median(every)) * (max(len(values) for values in series) - 1) if every.size else 0.0


def _paired(baseline: Samples, samples: Samples) -> list[np.ndarray]:
    """Return (2, rounds) for each launch: the totals of the rounds that both sides ran."""
    pairs = [
        np.array([[sum(b), sum(s)] for b, s in zip(x, y, strict=False)], dtype=np.float64).reshape(-1, 2).T
        for x, y in zip(baseline, samples, strict=False)
    ]
    pairs = [pair for pair in pairs if pair.size]
    if not pairs:
        raise CompressError(
            "There is no round that both sides ran.",
            value=f"{len(baseline)} and {len(samples)} launches",
            fix="Compare artifacts that were measured side by side.",
        )
    return pairs


def _influences(pairs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return (rounds,) for each launch: what every round adds to the log ratio; they sum to zero over all."""
    means = np.concatenate(pairs, axis=1).mean(axis=1)
    return [pair[0] / means[0] - pair[1] / means[1] for pair in pairs]


def _correlation(influences: Sequence[np.ndarray]) -> float:
    """Return the correlation of successive rounds, pooled over launches and rid of its bias (Kendall 1954)."""
    deviations = [u - u.mean() for u in influences]
    square = sum(float(d @ d) for d in deviations)
    if square <= 0:
        return 0.0
    raw = sum(float(d[1:] @ d[:-1]) for d in deviations) / square
    return raw + max(0.0, 1 + 3 * raw) / _typical(influences)


def _half_within(influences: Sequence[np.ndarray], confidence: float) -> float:
    """Return the half-width of the log ratio's interval by what goes on inside launches."""
    launches, n = len(influences), _typical(influences)
    rounds = sum(u.size for u in influences)
    found = _correlation(influences)
    doubt = math.sqrt((1 - min(max(found, 0.0), 1.0) ** 2) / rounds)
    share = _mean_variance(min(max(found + doubt, 0.0), LARGEST_CORRELATION), n)
    square = sum(float(((u - u.mean()) ** 2).sum()) for u in influences)
    variance = square / (rounds - launches) * (1 - 1 / n) / (1 - share)
    degrees = max(launches * (1 / share - 1), min(FEWEST_DEGREES, rounds - launches))
    return _t(confidence, degrees) * math.sqrt(variance * share / launches)


def _mean_variance(correlation: float, n: float) -> float:
    """Return the variance of the mean of n rounds of a first-order autoregression over that of one round.

    ``(1 + 2 sum_k (1 - k/n) r^k) / n``
    """
    lags = np.arange(1, max(2, round(n)))
    return float(1 + 2 * ((1 - lags / n) * correlation**lags).sum()) / n


def _typical(influences: Sequence[np.ndarray]) -> float:
    """Return the rounds of a launch, on average, of those with more than one."""
    sizes = [u.size for u in influences if u.size > 1]
    return float(np.mean(sizes)) if sizes else 1.0


def _drawn_totals(pair: np.ndarray, length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (2, count) totals of a launch of circular blocks, scaled to its number of rounds."""
    rounds = pair.shape[1]
    wrapped = np.concatenate([pair, pair[:, : length - 1]], axis=1)
    blocks = np.lib.stride_tricks.sliding_window_view(wrapped, length, axis=1).sum(axis=2)
    number = math.ceil(rounds / length)
    starts = rng.integers(0, rounds, (count, number))
    totals: np.ndarray = blocks[:, starts].sum(axis=2) * (rounds / (number * length))
    return totals


def _inputs_for_ranks(q: float, confidence: float) -> int:
    """Return how many different inputs it takes until ``order_ranks`` has an answer."""
    rarer = max(q, 100 - q) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(rarer))


def _t(confidence: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))
