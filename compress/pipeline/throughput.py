"""What a report states of throughput: the sweep's points with their spread, the best of them, and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from compress.bench.measurement import Measurement
from compress.bench.settings import THROUGHPUT_REPEATS
from compress.report import model as report


def throughputs_of(m: Measurement) -> tuple[report.ThroughputPoint, ...]:
    """Return the points that were measured, in the order of the sweep.

    A point is the median of its repetitions. With as many as the sweep asks for, six, their smallest and largest
    hold the median of further ones in 97 of 100 cases (order statistics: 1 - 2 / 2^6); fewer give no interval.
    """
    measured = [point for point in m.throughputs if point["per_s"] and not point.get("reason")]
    best = max((statistics.median(point["per_s"]) for point in measured), default=0.0)
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
    per_s, enough = point["per_s"], len(point["per_s"]) >= THROUGHPUT_REPEATS
    return report.ThroughputPoint(
        batch=point["batch"],
        streams=point["streams"],
        per_s=statistics.median(per_s),
        low=min(per_s) if enough else None,
        high=max(per_s) if enough else None,
        best=statistics.median(per_s) == best,
    )
