"""The table of ``mcompress bench``: intervals, both clocks, words for what is no difference, reasons across."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from compress.pipeline.bench_table import bench_lines
from compress.pipeline.benching import BenchRow

FIRST = BenchRow(
    artifact="dense",
    target="ort-cpu-1t",
    status="ok",
    size_mb=90.89,
    metric="accuracy",
    value=0.8879,
    n=910,
    p50_ms=7.02,
    end_to_end_ms=7.31,
)
SECOND = FIRST.model_copy(
    update={
        "artifact": "int8",
        "difference": -0.011,
        "difference_low": -0.020,
        "difference_high": -0.001,
        "p50_ms": 6.95,
        "speedup": 1.01,
        "speedup_low": 0.98,
        "speedup_high": 1.04,
        "speedup_text": "no difference",
        "end_to_end_speedup": 0.95,
        "end_to_end_speedup_low": 0.93,
        "end_to_end_speedup_high": 0.97,
        "end_to_end_speedup_text": "slower",
    }
)


def shown(*rows: BenchRow, width: int = 80) -> list[str]:
    return [line.plain for line in bench_lines(rows, width)]


def test_values_intervals_and_words() -> None:
    lines = shown(FIRST, SECOND)
    assert "accuracy ↑" in " ".join(lines[:2])
    assert " ".join(lines[-3].split()) == "int8 90.89 88.79 −1.10 ±1.00 ↓ 6.95 1.01x ±0.03 ≈ 7.31 0.95x ±0.02 ↓"
    assert lines[-2] == "int8 on ort-cpu-1t: no difference in speed"
    assert lines[-1].startswith("accuracy, N = 910; Δ and speed-ups against the first row")


def test_the_target_is_a_column_where_there_are_several() -> None:
    other = FIRST.model_copy(update={"target": "torch-cpu-1t"})
    assert any(line.startswith("dense     torch-cpu-1t") for line in shown(FIRST, other))
    assert not any("ort-cpu-1t" in line for line in shown(FIRST))


@pytest.mark.parametrize("width", [60, 80])
def test_a_row_that_failed_says_why_within_the_width(width: int) -> None:
    reason = "no GPU (no NVIDIA driver is installed); onnxruntime-gpu is not installed: pip install mcompress"
    row = BenchRow(artifact="engine", target="tensorrt", status="skipped", reason=reason, size_mb=1.0)
    lines = shown(FIRST, SECOND, row, width=width)[:-1]
    assert all(cell_len(line) <= width for line in lines)
    assert reason in " ".join(" ".join(lines).split())


def test_peak_memory_where_there_is_room_and_a_warning_only_once() -> None:
    row = FIRST.model_copy(
        update={"peak_rss_bytes": 301_000_000, "warnings": ["busy", "gone"], "not_measured": {"throughput": "gone"}}
    )
    wide = shown(row, width=110)
    assert wide[0].endswith("peak")
    assert any(line.endswith(" 301.00") for line in wide)
    assert "! dense on ort-cpu-1t: busy" in wide
    assert not any("gone" in line for line in wide)
    assert not any("peak" in line for line in shown(FIRST, SECOND, width=70))
