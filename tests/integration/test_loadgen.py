"""MLCommons' own LoadGen on a real child process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.artifact import Artifact
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.data.encoded import Encoded
from compress.pipeline.scenarios import missing_scenarios, scenarios_of
from compress.runtimes.target import find_target

pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed: pip install 'mcompress[loadgen]'")


def test_all_scenarios_run_and_say_what_they_are(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    settings = MeasureSettings(
        inputs=6,
        rounds=3,
        warmup_seconds=0,
        throughput_batches=[4],
        throughput_seconds=0.05,
        scenarios=["single-stream", "offline", "server"],
        scenario_seconds=0.2,
        server_latency_ms=1000.0,
    )
    subject = Subject("a", tiny_onnx(), tiny_encoded, find_target("ort-cpu-1t"))
    (row,) = measure([subject], settings=settings, work=tmp_path)
    assert (row.status, missing_scenarios(row)) == ("ok", {})
    single, offline, server = scenarios_of(row)
    assert single.valid
    assert single.value is not None
    assert 0 < single.value < 1000
    assert single.queries is not None
    assert single.queries >= 64
    assert offline.value is not None
    assert offline.value > 0
    assert server.valid, server.text
    assert server.value is not None
    assert server.observed_ms is not None
    assert server.observed_ms <= 1000
    assert server.queries is not None
    assert server.queries >= 459
    assert all("not an MLPerf result" in result.text for result in (single, offline, server))
    assert str(tmp_path) not in row.model_dump_json()
