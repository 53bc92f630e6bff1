"""What ``mcompress bench`` prints of throughput and scenarios, and which scenarios it takes."""

from __future__ import annotations

import pytest

from compress.errors import UsageError
from compress.pipeline.benching import BenchRow, _scenarios
from compress.pipeline.loads import load_lines
from compress.report.model import ScenarioResult, ThroughputPoint


def row(**fields: object) -> BenchRow:
    return BenchRow.model_validate(
        {"artifact": "int8", "target": "ort-cpu-1t", "status": "ok", "size_mb": 1.0} | fields
    )


def test_sweep_scenarios_and_reasons_are_lines_of_80_columns() -> None:
    points = [
        ThroughputPoint(batch=1, per_s=48.4, low=43.0, high=53.8),
        ThroughputPoint(batch=16, streams=2, per_s=133.92, best=True),
    ]
    server = ScenarioResult(
        scenario="server", value=58.01, unit="per s", percentile=99, bound_ms=98, observed_ms=66.1, valid=True
    )
    single = ScenarioResult(scenario="single-stream", value=18.68, unit="ms", percentile=90, valid=False)
    why = "LoadGen is not installed: pip install 'mcompress[loadgen]', and then the words go on and on"
    lines = load_lines([row(throughputs=points, scenarios=[server, single], not_measured={"scenario offline": why})])
    text = " ".join(" ".join(lines).split())
    assert "1: 48.4 ±5.4, 16x2: 133.9*" in text
    assert "server 58.01 per s p99 66.1 ms, bound 98 ms" in text
    assert "single-stream 18.68 ms p90; not valid for LoadGen" in text
    assert "not MLPerf results" in text
    assert "scenario offline: LoadGen is not installed" in text
    assert max(map(len, lines)) <= 80
    assert load_lines([row()]) == []


def test_an_unknown_scenario_is_corrected() -> None:
    assert _scenarios(["server", "offline"]) == ["offline", "server"]
    with pytest.raises(UsageError) as caught:
        _scenarios(["of-line"])
    assert "'offline'" in caught.value.fix
