"""What a row costs beside time: memory by phase, throughput by batch, scenarios, energy."""

from __future__ import annotations

from typing import Any

from compress.bench.measurement import Measurement
from compress.pipeline.scenarios import scenarios_of
from compress.pipeline.throughput import throughputs_of


def costs_of(m: Measurement) -> dict[str, Any]:
    """Return the fields of ``report.Row`` that say what the artifact costs to run."""
    return {
        "throughput_per_s": m.throughput_per_s,
        "throughput_batch": m.throughput_batch,
        "throughputs": throughputs_of(m),
        "scenarios": scenarios_of(m),
        "load_ms": m.load_ms,
        "first_ms": m.first_ms,
        "peak_rss_bytes": m.peak_rss_bytes,
        "import_rss_bytes": m.import_rss_bytes,
        "size_bytes": m.size_bytes,
        "parameters": m.parameters,
    }
