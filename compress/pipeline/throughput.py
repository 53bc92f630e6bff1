"""What a report states of throughput: the sweep's points with their spread, the best of them, and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from compress.bench.measurement import Measurement
from compress.bench.settings import LEAST_REPEATS
from compress.bench.timing_statistics import student_t
from compress.report import model as report


def throughputs_of(m: Measurement) -> tuple[report.ThroughputPoint, ...]:
    """Return the points that were measured, in the order of the sweep.

    A point is the mean of its repetitions, with Student's interval of it (95 %), which three or more give.
    """
    measured = [point for point in m.throughputs if point["per_s"] and not point.get("reason")]
    best = max((statistics.fmean(point["per_s"]) for point in measured), default=0.0)
    return tuple(_point(point, best) for point in measured)


def missing_throughputs(m: Measurement) -> dict[str, str]:
    """Return point -> why it was not measured, for ``Row.not_measured``."""
    found = {
        f"throughput, batch {point['batch']}" + (f", {point['streams']} streams" if point["streams"] > 1 else ""): (
            point["reason"]
        )
        for point in m.throughputs
        if point.get("reason")
    }
    if m.status == "ok" and m.throughput_per_s is None:
        found = {"throughput": next(iter(found.values()), "the measuring process had ended")} | found
    return found


def _point(point: Mapping[str, Any], best: float) -> report.ThroughputPoint:
    per_s = point["per_s"]
    mean, low, high = statistics.fmean(per_s), None, None
    if len(per_s) >= LEAST_REPEATS:
        half = student_t(0.95, len(per_s) - 1) * statistics.stdev(per_s) / len(per_s) ** 0.5
        low, high = max(0.0, mean - half), mean + half
    return report.ThroughputPoint(
        batch=point["batch"], streams=point["streams"], per_s=mean, low=low, high=high, best=mean == best
    )
