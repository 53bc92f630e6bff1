"""A kit of a tiny run: written, run where compress cannot be imported, and its result taken back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import UsageError
from compress.kit.ingesting import INGESTED, ingest
from compress.kit.writing import KITS, Kit, write_kit
from compress.report.files import read_report
from compress.report.model import Row
from compress.store import Store

STEPS: list[dict[str, Any]] = [{"export": {}}, {"quantize": {"scheme": "int8", "method": "dynamic"}}]
SHADOW = "raise ImportError('a kit must not import compress')\n"


@pytest.fixture(scope="module")
def recipe(lab: Any) -> Path:
    return lab.recipe("kitted", STEPS, measure={**lab.measure, "baselines": ["onnx"]})


@pytest.fixture(scope="module")
def finished(lab: Any, recipe: Path) -> Path:
    """A run of export and INT8; tests work on copies of it."""
    done = lab.command("run", recipe, "--out", lab.root / "kitted")
    assert done.returncode == 0, done.stderr
    return lab.root / "kitted"


@pytest.fixture
def run(lab: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MCOMPRESS_HOME", "MODEL", "DATA"):
        monkeypatch.setenv(name, lab.environment[name])
    return Path(shutil.copytree(finished, tmp_path / "run"))


def write(run: Path, out: Path, steps: Sequence[str] = ("export", "quantize")) -> Kit:
    return write_kit(run, steps, out, store=Store.default(), emit=lambda *args: None)


def start(kit: Path, *words: str, python: Sequence[str] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    """Run run.py in a folder where ``import compress`` fails."""
    shadow = kit.parent / "shadow"
    shadow.mkdir(exist_ok=True)
    (shadow / "compress.py").write_text(SHADOW, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(shadow)}
    command = [*python, str(kit / "run.py"), "--seconds", "0.2", "--launches", "2", *words]
    return subprocess.run(command, cwd=kit.parent, env=environment, capture_output=True, text=True, check=False)


def on(rows: Sequence[Row], target: str) -> dict[str, Row]:
    return {row.step: row for row in rows if row.target == target}


def test_kit_goes_out_and_its_result_comes_back(lab: Any, recipe: Path, run: Path, tmp_path: Path) -> None:
    folder = run
    before = read_report(folder)
    kit = write(folder, tmp_path / "kit")
    assert kit.steps == ("export", "quantize")
    texts = [line.rpartition(",")[0] for line in (lab.data / "test.csv").read_text().splitlines()[1:]]
    for file in (tmp_path / "kit").rglob("*"):
        assert not file.is_file() or not any(text.encode() in file.read_bytes() for text in texts)
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=kit.path, check=False)
    assert sums.returncode == 0

    done = start(kit.path, "--name", "Tiny Board <b>", "--out", "result.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 24" in done.stdout
    plain = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(plain)

    report, target = ingest(tmp_path / "result.json", folder)
    assert target == "tiny-board-b/onnxruntime-1t"
    rows = on(report.rows, target)
    here = on(before.rows, "ort-cpu-1t")
    assert set(rows) == {"export", "quantize"}
    for step, row in rows.items():
        assert (row.evidence, row.status, row.reason) == ("ingested", "ok", "")
        assert row.accuracy is not None
        assert row.accuracy == here[step].accuracy, "the same bytes on the same machine answer the same"
        assert row.agreement == (here[step].agreement or 1.0)
        assert row.latency is not None
        assert (row.latency.inputs, row.size_bytes) == (4, here[step].size_bytes)
    flat = np.array(next(m["samples_ms"] for m in plain["models"] if m["name"] == "quantize"))
    assert rows["quantize"].latency is not None
    assert rows["quantize"].latency.p50_ms == pytest.approx(np.median(flat))
    assert rows["export"].speedups["ONNX Runtime FP32"].ratio == 1.0
    assert rows["quantize"].speedups["ONNX Runtime FP32"].against is not None
    record = next(it for it in report.targets if it.name == target)
    assert record.environment is not None
    assert record.environment.packages["numpy"] == np.__version__
    assert [row for row in report.rows if row.evidence != "ingested"] == list(before.rows)

    card = (folder / "deliverables" / "quantize" / "README.md").read_text(encoding="utf-8")
    assert target in card, "the card says what the report says"

    again, _ = ingest(tmp_path / "result.json", folder)
    assert again == report, "the same result again replaces its rows"

    lab.command("run", recipe, "--out", folder)
    rerun = read_report(folder)
    assert on(rerun.rows, target) == rows, "a rerun takes the kept result in again"

    kept = next((folder / INGESTED).glob("*.json"))
    stale = json.loads(kept.read_text(encoding="utf-8"))
    memory = next((folder / KITS).glob("*/kit.json"))
    changed = memory.read_text(encoding="utf-8").replace(stale["models"][1]["digest"], "0" * 64)
    memory.write_text(changed, encoding="utf-8")
    lab.command("run", recipe, "--out", folder)
    dropped = read_report(folder)
    assert on(dropped.rows, target) == {}
    assert any("left out" in sentence for sentence in dropped.limits)


def test_runner_needs_a_runtime_and_says_so(run: Path, tmp_path: Path) -> None:
    kit = write(run, tmp_path / "kit", ("export",))
    bare = start(kit.path, python=(sys.executable, "-S"))
    assert bare.returncode == 1
    assert "numpy is not installed" in bare.stderr
    assert "Traceback" not in bare.stderr
    asked = start(kit.path, "--provider", "NoSuchExecutionProvider")
    assert asked.returncode == 1
    assert "NoSuchExecutionProvider" in asked.stdout


def test_runner_refuses_a_changed_folder(run: Path, tmp_path: Path) -> None:
    kit = write(run, tmp_path / "kit", ("export",))
    model = kit.path / "models" / "export" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    done = start(kit.path)
    assert done.returncode == 1
    assert "was changed" in done.stderr
    assert "models/export/model.onnx" in done.stderr


@pytest.mark.slow
def test_openvino_and_torch_kits_agree_with_the_run(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = run
    kit = write(folder, tmp_path / "kit", ("model", "export"))
    for runtime, step, name in (("openvino", "export", "OpenVINO"), ("torch", "model", "torch")):
        done = start(kit.path, "--runtime", runtime, "--name", runtime, "--out", f"{runtime}.json")
        assert done.returncode == 0, done.stdout + done.stderr
        report, target = ingest(tmp_path / f"{runtime}.json", folder)
        rows = on(report.rows, target)
        assert list(rows) == [step]
        assert rows[step].agreement == 1.0
        assert rows[step].accuracy is not None
        assert rows[step].accuracy.value == 1.0, "the model labelled the data itself"
        assert [it.runtime for it in report.targets if it.name == target] == [runtime]
        assert name == "torch" or any(key.startswith(name) for key in report.baselines)


def test_kit_refuses_other_data_and_other_folders(
    run: Path, tmp_path: Path, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run
    with pytest.raises(UsageError, match="no step 'nothing'"):
        write(folder, tmp_path / "kit", ("nothing",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        write(folder, tmp_path / "full")
    shutil.copytree(lab.data, tmp_path / "data")
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    data = tmp_path / "data" / "test.csv"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(UsageError, match="not the one that the run evaluated"):
        write(folder, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()
    assert not (folder / KITS).exists()
    shutil.rmtree(folder)
    with pytest.raises(UsageError):
        write(folder, tmp_path / "kit")
