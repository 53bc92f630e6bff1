"""Times of a row: latency on both clocks, speed-ups over the baselines of its group."""

from __future__ import annotations

import numpy as np

from compress.bench.measurement import Measurement
from compress.bench.statistics import Interval, percentile, ratio_of_totals
from compress.pipeline.measuring import Baseline
from compress.report import model as report


def latency_of(m: Measurement) -> report.Latency | None:
    if m.status != "ok" or not m.samples_ms:
        return None
    totals = np.array([sum(inputs) for launch in m.samples_ms for inputs in launch])
    flat = m.flat_ms
    return report.Latency(
        p50_ms=percentile(flat, 50),
        p90_ms=percentile(flat, 90),
        mean_ms=float(flat.mean()),
        cv=float(totals.std(ddof=1) / totals.mean()) if len(totals) > 1 else None,
        inputs=len(m.samples_ms[0][0]),
        rounds=len(totals),
        launches=len(m.samples_ms),
    )


def speedup_over(place: Baseline, baseline: Measurement | None, m: Measurement) -> report.Speedup | None:
    if baseline is None or baseline.status != "ok" or m.status != "ok" or not m.samples_ms or not baseline.samples_ms:
        return None
    against = report.Baseline(step=place.step, target=place.target.name)
    if baseline is m:
        return report.Speedup(ratio=1.0, against=against)
    ratio: Interval = ratio_of_totals(baseline.samples_ms, m.samples_ms)
    return report.Speedup(ratio=ratio.value, low=ratio.low, high=ratio.high, against=against)
