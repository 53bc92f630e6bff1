"""Order and budget of the rounds, with fake children: who runs when, and what a death leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from compress.artifact import Artifact
from compress.bench import protocol
from compress.bench.launch import ChildError
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.data.encoded import Encoded
from compress.runtimes.target import Target, find_target

Log = list[tuple[str, str]]
Failures = dict[tuple[str, str], ChildError]


class FakeChild:
    """Answers as the worker would, logs (artifact, op), fails where told to."""

    log: Log
    failures: Failures

    def __init__(self, target: Any) -> None:
        self.alive, self.enforcement = True, None

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, kill: bool = False) -> None:
        self.alive = False

    def open(self, artifact: str, target: Any, encoded: str) -> dict[str, Any]:
        self.name = Path(artifact).name
        return self.ask("open")

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        self.log.append((self.name, op))
        if (self.name, op) in self.failures:
            self.alive = self.failures[self.name, op].status != "oom"
            raise self.failures[self.name, op]
        if op == "predict":
            np.save(job["out"], np.zeros((24, 2), dtype=np.float32))
        return {
            "open": {"load_ms": 2.0, "import_rss_bytes": 10, "runtime_version": "1"},
            "warmup": {"first_ms": 3.0, "settled": self.name != "c"},
            "round": {"ms": [1.0] * len(job.get("indices", ()))},
            "memory": {"peak_rss_bytes": 20, "frameworks": []},
            "predict": {"examples": 24},
            "throughput_prepare": {},
            "throughput": {"per_s": 5.0, "seconds": 0.1},
            "placement": {"placement": {"providers": ["CPU"]}},
        }[op]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeChild]:
    FakeChild.log, FakeChild.failures = [], {}
    monkeypatch.setattr(protocol, "Child", FakeChild)
    monkeypatch.setattr(protocol, "busy_warnings", lambda cores: ["busy"])
    return FakeChild


@pytest.fixture
def subjects(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> list[Subject]:
    return [Subject(name, tiny_onnx(name), tiny_encoded, find_target("ort-cpu-1t")) for name in "abc"]


def rounds(log: Log) -> str:
    return "".join(name for name, op in log if op == "round")


def test_rounds_interleave_and_rotate(fake: type[FakeChild], subjects: list[Subject], tmp_path: Path) -> None:
    settings = MeasureSettings(inputs=5, rounds=4)
    rows = measure(subjects, settings=settings, work=tmp_path, clock=lambda: 0.0)
    assert rounds(fake.log) == "abcbcacababc"
    assert [name for name, op in fake.log if op in {"open", "warmup"}] == ["a", "a", "b", "b", "c", "c"]
    begun = fake.log.index(("a", "memory"))
    assert fake.log[begun : begun + 3] == [("a", "memory"), ("a", "predict"), ("a", "placement")]
    assert [name for name, _ in fake.log[begun : begun + 9]] == list("aaabbbccc")
    assert {op for _, op in fake.log[begun + 9 :]} == {"throughput_prepare", "throughput"}
    assert [np.array(row.samples_ms).shape for row in rows] == [(1, 4, 5)] * 3
    assert rows[0].warnings == ["busy"]
    assert rows[2].warnings == ["busy", "launch 1: latency had not settled when warm-up ended"]


def test_latency_alone_asks_for_nothing_else(fake: type[FakeChild], subjects: list[Subject], tmp_path: Path) -> None:
    settings = MeasureSettings(inputs=5, rounds=3)
    rows = measure(subjects, settings=settings, work=tmp_path, latency_only=True, batch_size=2)
    assert {op for _, op in fake.log} == {"open", "warmup", "round"}
    assert [(row.status, row.outputs, row.peak_rss_bytes) for row in rows] == [("ok", None, None)] * 3


def test_targets_with_other_threads_form_another_group(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    a, b, c = subjects
    two = Target(name="two", runtime="onnxruntime", threads=2)
    limited = find_target("edge-512m")
    mixed = [a, replace(b, target=two), replace(c, target=limited)]
    rows = measure(mixed, settings=MeasureSettings(inputs=5, rounds=2), work=tmp_path, clock=lambda: 0.0)
    assert rounds(fake.log) == "accabb", "one thread with one thread, whatever the memory limit"
    assert [(row.subject, row.target) for row in rows] == [("a", "ort-cpu-1t"), ("b", "two"), ("c", "edge-512m")]


def test_time_budget_is_shared_by_launches_and_leaves_three_rounds(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    ticks = iter(range(1000))
    settings = MeasureSettings(inputs=5, rounds=9, seconds=8, launches=2)
    rows = measure(subjects, settings=settings, work=tmp_path, clock=lambda: float(next(ticks)))
    assert [len(launch) for launch in rows[0].samples_ms] == [6, 6]
    assert "6 of 9 rounds" in rows[0].warnings[-1]
    assert sum(op == "predict" for _, op in fake.log) == 3, "only the last launch predicts"

    short = MeasureSettings(inputs=5, rounds=9, seconds=0.001)
    row = measure(subjects, settings=short, work=tmp_path, clock=lambda: float(next(ticks)))
    assert [len(launch) for launch in row[0].samples_ms] == [3]


def test_death_in_a_round_ends_one_row_only(fake: type[FakeChild], subjects: list[Subject], tmp_path: Path) -> None:
    fake.failures["b", "round"] = ChildError("failed", "round: gone")
    settings = MeasureSettings(inputs=5, rounds=3, launches=2)
    a, b, c = measure(subjects, settings=settings, work=tmp_path)
    assert [(row.status, row.reason) for row in (a, b, c)] == [("ok", ""), ("failed", "round: gone"), ("ok", "")]
    assert rounds(fake.log).count("b") == 1
    assert b.samples_ms == []
    assert (b.load_ms, b.first_ms) == (2.0, 3.0), "what was measured before stays"


def test_memory_that_runs_out_in_a_batch_is_a_warning(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    fake.failures["a", "throughput"] = ChildError("oom", "throughput: killed at the memory limit of 512 MiB")
    settings = MeasureSettings(inputs=5, rounds=3)
    row = measure(subjects[:1], settings=settings, work=tmp_path)[0]
    assert (row.status, row.throughput_per_s, row.throughput_batch) == ("ok", None, None)
    assert row.outputs is not None
    assert row.warnings[-1] == "throughput of batch 1: killed at the memory limit of 512 MiB"
    assert {point["reason"][:9] for point in row.throughputs} == {"killed at", "not tried"}


def test_sequence_is_seeded_and_never_longer_than_the_split(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    settings = MeasureSettings(inputs=100, rounds=1)
    rows = [measure(subjects[:1], settings=settings, work=tmp_path, seed=seed)[0] for seed in (0, 0, 1)]
    assert sorted(rows[0].input_indices) == list(range(24))
    assert rows[0].input_indices == rows[1].input_indices != rows[2].input_indices


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        MeasureSettings.model_validate(yaml.safe_load("{target: [ort-cpu-1t]}"))
    with pytest.raises(ValidationError):
        MeasureSettings(rounds=0)
    assert MeasureSettings.model_validate(MeasureSettings().model_dump()) == MeasureSettings()
    assert all(field.description for field in MeasureSettings.model_fields.values())
