"""A disk or a memory that does not suffice: what is said, with which exit code, and what an optional step becomes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from compress.cli.app import app
from compress.passes.quantize import Quantize
from compress.store import Store

Usage = namedtuple("Usage", "total used free")
STEPS = [{"export": {}}, {"quantize": {}, "id": "int8"}]


@pytest.fixture
def run(lab, tmp_path, monkeypatch) -> Any:
    for name in ("MODEL", "DATA", "OMP_NUM_THREADS", "COLUMNS"):
        monkeypatch.setenv(name, lab.environment[name])
    monkeypatch.setenv("MCOMPRESS_HOME", str(lab.root / "home-exhausted"))

    def call(name: str, steps: list[Any]) -> Result:
        return CliRunner().invoke(app, ["run", str(lab.recipe(name, steps)), "--out", str(tmp_path / "out")])

    return call


def failing(error: BaseException) -> Any:
    """A pass that writes half of something and fails."""

    def apply(self: Any, inputs: Any, config: Any, context: Any) -> None:
        (context.out / "model.onnx").write_text("half")
        raise error

    return apply


def refused(result: Result, *phrases: str) -> None:
    assert result.exit_code == 4, result.output
    assert "Traceback" not in result.output
    for phrase in ("error: ", "\n  value: ", "\n  fix:   ", *phrases):
        assert phrase in result.stderr, result.stderr


def left(lab, out: Path) -> list[str]:
    """What is half-made."""
    found = [*(lab.root / "home-exhausted").glob("work/*"), *out.rglob(".*"), *out.glob("deliverables/int8")]
    return [path.name for path in found]


@pytest.mark.parametrize("optional", [False, True])
def test_a_full_disk_ends_the_run_whatever_the_step(lab, run, tmp_path, monkeypatch, optional) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    monkeypatch.setattr(Quantize, "apply", failing(RuntimeError(text)))
    result = run("full", [STEPS[0], STEPS[1] | {"optional": optional}])
    refused(result, "The disk is full.", str(lab.root / "home-exhausted"), " free, about ", "store gc --dry-run")
    assert left(lab, tmp_path / "out") == []
    monkeypatch.undo()


def test_memory_that_does_not_suffice_names_the_step(lab, run, tmp_path, monkeypatch) -> None:
    text = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"
    monkeypatch.setattr(Quantize, "apply", failing(RuntimeError(text)))
    refused(run("memory", STEPS), "Step 'int8' ran out of memory.", "can't allocate memory", "batch size")
    assert left(lab, tmp_path / "out") == []
    skipped = run("memory", [STEPS[0], STEPS[1] | {"optional": True}, {"cast": {}, "id": "fp16", "from": "export"}])
    assert skipped.exit_code == 0, skipped.output
    step = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["int8"]
    assert step["status"] == "failed"
    assert step["reason"].startswith("Step 'int8' ran out of memory.")


def test_space_is_checked_before_a_step(lab, run, tmp_path, monkeypatch) -> None:
    assert run("space", [STEPS[0]]).exit_code == 0
    calls: list[int] = []
    monkeypatch.setattr(Quantize, "apply", lambda *_: calls.append(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1_500_000))
    result = run("space", [STEPS[0] | {"id": "again"}, STEPS[1]])
    refused(result, "There is not enough space for 'space:int8'.", "1.5 MB free, about 32", "MCOMPRESS_HOME")
    assert calls == []


def test_a_report_that_cannot_be_written_is_no_finished_run(lab, run, tmp_path, monkeypatch) -> None:
    sync = os.fsync

    def full(handle: int) -> None:
        if "report.json" in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    refused(run("report", [STEPS[0]]), "The disk is full.")
    out = tmp_path / "out"
    assert not json.loads((out / "run.json").read_text())["finished"]
    assert not (out / "report.json").exists()
    assert left(lab, out) == []
    monkeypatch.setattr(os, "fsync", sync)
    assert run("report", [STEPS[0]]).exit_code == 0
    assert json.loads((out / "run.json").read_text())["finished"]


def test_a_damaged_entry_is_told_and_made_again(lab, run, tmp_path) -> None:
    assert run("damaged", STEPS).exit_code == 0
    out = tmp_path / "out"
    before = json.loads((out / "run.json").read_text())["steps"]["int8"]
    store = Store(lab.root / "home-exhausted")
    file = store.root / "entries" / before["key"] / "payload" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = run("damaged", STEPS)
    assert result.exit_code == 0
    assert "the stored 'damaged:int8' is damaged (model.onnx has changed), so it is made again" in result.stderr
    after = json.loads((out / "run.json").read_text())["steps"]["int8"]
    assert (after["digest"], after["cached"]) == (before["digest"], False)
