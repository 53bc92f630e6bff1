"""Rows of ``mcompress bench`` where an emulated target, which runs a part of the examples, stands among others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.bench.measurement import Measurement
from compress.bench.protocol import Subject
from compress.data.encoded import Encoded
from compress.pipeline import benching
from compress.pipeline.benching import BenchRow, bench_artifacts
from compress.tasks.text_classification import TextClassification

TARGETS = ("ort-arm64-a72", "ort-cpu-1t")


@pytest.fixture
def bench(
    tiny_onnx: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[BenchRow]]:
    """Return ``bench(*targets)``: two artifacts, one of which takes half the time; nothing is really run."""

    def measure(subjects: list[Subject], **_: Any) -> list[Measurement]:
        return [row(subject) for subject in subjects]

    def row(subject: Subject) -> Measurement:
        emulated = subject.target.evidence == "emulated"
        part = [1, 3] if emulated else None
        ms = 1.0 if subject.label == "fast" else 2.0
        costs = {"samples_ms": [[[ms] * 3] * 3] * 3, "throughput_per_s": 1.0, "not_measured": {"placement": "why"}}
        costs["end_to_end_ms"] = [[[ms + 1.0] * 3] * 3] * 3
        return Measurement(
            subject=subject.label,
            target=subject.target.name,
            status="ok",
            evidence=subject.target.evidence,
            digest="",
            size_bytes=1,
            threads=1,
            outputs=np.zeros((2 if emulated else 6, 2), dtype=np.float32),
            examples=part,
            **({} if emulated else costs),  # type: ignore[arg-type]
        )

    monkeypatch.setattr(benching, "measure", measure)
    folders = [tiny_onnx(name).path for name in ("slow", "fast")]
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"the {i},{i % 2}\n" for i in range(6)), encoding="utf-8")
    encoded = Encoded({"input_ids": [np.ones(3, dtype=np.int64)] * 6}, {"input_ids": 0}, np.arange(6) % 2)
    monkeypatch.setattr(TextClassification, "encode", lambda self, folder, rows: encoded)

    def run(*targets: str) -> list[BenchRow]:
        return bench_artifacts(folders, data, targets, inputs=3, rounds=3, emit=lambda *args: None)

    return run


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[::-1]])
def test_accuracies_are_paired_on_the_examples_that_both_ran(
    bench: Callable[..., list[BenchRow]], targets: tuple[str, str]
) -> None:
    rows = bench(*targets)
    assert {(row.target, row.n) for row in rows} == {("ort-arm64-a72", 2), ("ort-cpu-1t", 6)}
    assert [row.difference for row in rows] == [None, 0.0, 0.0, 0.0]


def test_speed_is_compared_with_the_first_row_that_has_times(bench: Callable[..., list[BenchRow]]) -> None:
    rows = bench(*TARGETS)
    assert [row.speedup for row in rows] == [None, None, None, 2.0]
    assert [(row.p50_ms, row.end_to_end_ms) for row in rows] == [(None, None), (2.0, 3.0), (None, None), (1.0, 2.0)]
    assert (rows[3].end_to_end_speedup, rows[3].end_to_end_speedup_text) == (1.5, "faster")


def test_what_is_missing_has_its_own_reason(bench: Callable[..., list[BenchRow]]) -> None:
    emulated, here, *_ = bench(*TARGETS)
    assert set(emulated.not_measured.values()) == {"an emulator's time says nothing about the device"}
    assert here.not_measured == {"placement": "why"}
