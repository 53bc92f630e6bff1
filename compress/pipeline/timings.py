"""Times of a row: latency on both clocks, speed-ups over the baselines of its group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compress.bench.measurement import Measurement
from compress.bench.statistics import Interval
from compress.bench.timing_statistics import (
    PercentileEstimate,
    Samples,
    percentile,
    percentile_estimate,
    ratio_of_totals,
    ratio_verdict,
    stability,
)
from compress.pipeline.measuring import Baseline
from compress.report import model as report

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def latency_of(m: Measurement) -> report.Latency | None:
    """Return the model's own times; None where there are none."""
    if m.status != "ok" or not m.samples_ms:
        return None
    facts = {"tokens": _lengths(m.input_tokens), "warmup_s": m.warmup_s, "device_ms": m.gpu_latency_ms}
    return _latency(m.samples_ms).model_copy(update=facts)


def speedups_of(
    m: Measurement, group: Sequence[Baseline], cells: Mapping[tuple[str, str], Measurement]
) -> dict[str, report.Speedup]:
    """Return the ratio over every baseline that was measured in the same group."""
    found = ((place, cells.get((place.step, place.target.name))) for place in group)
    speedups = {place.name: speedup_over(place, beside, m) for place, beside in found if beside is not None}
    return {name: speedup for name, speedup in speedups.items() if speedup is not None}


def end_to_end_of(
    m: Measurement, group: Sequence[Baseline], cells: Mapping[tuple[str, str], Measurement]
) -> report.EndToEnd | None:
    """Return the times on the second clock and their ratios; None where it did not run."""
    if m.status != "ok" or not m.end_to_end_ms:
        return None
    speedups = {}
    for place in group:
        beside = cells.get((place.step, place.target.name))
        if beside is not None and beside.status == "ok" and beside.end_to_end_ms:
            speedups[place.name] = _speedup(place, beside.end_to_end_ms, None if beside is m else m.end_to_end_ms)
    latency, model_only = _latency(m.end_to_end_ms), latency_of(m)
    overhead = None
    if model_only and latency.mean_ms is not None and model_only.mean_ms is not None:
        overhead = latency.mean_ms - model_only.mean_ms
    return report.EndToEnd(latency=latency, speedups=speedups, overhead_ms=overhead)


def speedup_over(place: Baseline, baseline: Measurement | None, m: Measurement) -> report.Speedup | None:
    if baseline is None or baseline.status != "ok" or m.status != "ok" or not m.samples_ms or not baseline.samples_ms:
        return None
    return _speedup(place, baseline.samples_ms, None if baseline is m else m.samples_ms)


def speedup_record(ratio: Interval, against: report.Baseline) -> report.Speedup:
    """Return a ratio of totals as the report keeps it: no ends where a single round shows no spread."""
    low, high = (ratio.low, ratio.high) if math.isfinite(ratio.high) else (None, None)
    return report.Speedup(ratio=ratio.value, low=low, high=high, against=against, text=ratio_verdict(ratio))


def _speedup(place: Baseline, baseline: Samples, samples: Samples | None) -> report.Speedup:
    """Return the ratio; ``samples`` None is the baseline itself."""
    against = report.Baseline(step=place.step, target=place.target.name)
    if samples is None:
        return report.Speedup(ratio=1.0, against=against)
    return speedup_record(ratio_of_totals(baseline, samples), against)


def _latency(samples: Samples) -> report.Latency:
    rounds = np.array([row for launch in samples for row in launch], dtype=np.float64)  # (rounds, inputs)
    steady = stability([np.array([sum(row) for row in launch], dtype=np.float64) for launch in samples])
    estimates = {q: percentile_estimate(rounds, q) for q in PERCENTILES}
    return report.Latency(
        p50_ms=percentile(rounds, 50),
        p90_ms=estimates[90.0].value,
        mean_ms=float(rounds.mean()),
        cv=steady.cv,
        inputs=rounds.shape[1],
        rounds=rounds.shape[0],
        launches=len(samples),
        percentiles=tuple(_percentile(estimate) for estimate in estimates.values()),
        stability=steady.verdict,
        stability_text=steady.text,
        quantiles_ms=tuple(round(float(ms), 5) for ms in np.percentile(rounds, range(101))),
    )


def _lengths(tokens: Sequence[int]) -> report.Lengths | None:
    if not tokens:
        return None
    return report.Lengths(least=min(tokens), median=float(np.median(tokens)), most=max(tokens))


def _percentile(it: PercentileEstimate) -> report.Percentile:
    return report.Percentile(q=it.q, value_ms=it.value, low_ms=it.low, high_ms=it.high, reason=it.reason)
