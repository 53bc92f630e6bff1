"""Trackers: nothing while none is named, real event files when one is, and none of them can stop a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.errors import MissingCapabilityError, UsageError
from compress.pipeline import tracking
from compress.pipeline.tracking import Tracking, row_values
from compress.progress import Observed, StepStarted
from compress.report.files import read_report
from compress.report.model import Report

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE)


class Lines(list[str]):
    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        self.append(str(message))


class Fake:
    name = "tensorboard"

    def __init__(self, broken: str = "") -> None:
        self.logged: list[tuple[dict[str, float], int | None]] = []
        self.settings: dict[str, Any] = {}
        self.finished = False
        self._broken = broken

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        if self._broken:
            raise RuntimeError(self._broken)
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def train(sink: Tracking) -> None:
    sink(StepStarted("distil", "3 epochs", 3, 7))
    for batch, loss in ((10, 0.9), (20, 0.4)):
        sink(Observed("training", f"loss {loss}", {"loss": loss, "validation accuracy": 0.88}), batch, 30)
    sink("      12.0 MB")


def test_off_by_default_nothing_is_imported_opened_or_written(example: Report, tmp_path: Path) -> None:
    seen = Lines()
    sink = Tracking([], "r", tmp_path, seen)
    train(sink)
    sink.finish(example)
    assert seen == ["[3/7] distil: 3 epochs", "training", "training", "      12.0 MB"]
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_and_no_socket_without_being_named() -> None:
    """In a process of its own: no tracker's package is loaded, and opening a socket would fail the test."""
    code = f"""
import socket, sys
def refuse(*args, **kwargs): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = refuse
from pathlib import Path
from compress.pipeline.tracking import Tracking
from compress.progress import Observed
from compress.report.files import read_report
sink = Tracking([], "r", Path("nowhere"), print)
sink(Observed("training", "", {{"loss": 1.0}}), 1, 2)
sink.finish(read_report(Path({str(EXAMPLE)!r})))
print(sorted({{"tensorboard", "mlflow", "wandb", "accelerate", "torch"}} & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_the_trainer_reports_to_no_one() -> None:
    from compress.distillation.training import Place, Schedule, _arguments

    place = Place(checkpoints=Path("x"), device="cpu", threads=1, seed=0)
    arguments = _arguments(Schedule(epochs=1, learning_rate=1e-3, batch_size=8), place, higher=True)
    assert arguments.report_to == []


def test_what_is_logged(example: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(tracking, "_opener", lambda *_: lambda: fake)
    sink = Tracking(["tensorboard"], "r", tmp_path, Lines(), {"seed": 3, "model": None})
    train(sink)
    sink.finish(example)
    assert fake.settings == {"seed": 3}
    assert fake.logged[1] == ({"distil/loss": 0.4, "distil/validation accuracy": 0.88}, 20)
    final, step = fake.logged[-1]
    row = next(row for row in example.rows if row.step == "student-int8" and row.status == "ok")
    assert step == 0
    assert final["results/student-int8/ort-cpu-1t/p50_ms"] == row.latency.p50_ms
    assert final["results/student-int8/ort-cpu-1t/speedup over ONNX Runtime FP32"] == pytest.approx(2.59, abs=0.01)
    assert not any("edge-64m/student-int8/" in name for name in final)
    assert not any(set(name) & set("<>|") for name in final)
    assert fake.finished


def test_rows_that_did_not_run_have_no_values(example: Report) -> None:
    assert all(row_values(row) == {} for row in example.rows if row.status != "ok")


def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(
    example: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, fake = Lines(), Fake("the server is gone\nmore")
    monkeypatch.setattr(tracking, "_opener", lambda *_: lambda: fake)
    sink = Tracking(["wandb"], "r", tmp_path, seen)
    train(sink)
    sink.finish(example)
    assert [line for line in seen if "tracker" in line] == [
        "      tracker tensorboard dropped: RuntimeError: the server is gone"
    ]

    def refuse() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking, "_opener", lambda *_: refuse)
    sink = Tracking(["wandb"], "r", tmp_path, seen)
    sink.finish(example)
    assert seen[-1] == "      tracker not used: ConnectionError: no route"


def test_an_unknown_or_absent_tracker_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        Tracking(["tensorbord"], "r", tmp_path, Lines())
    assert "'tensorboard'" in caught.value.fix
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    for kind in tracking.KINDS:
        with pytest.raises(MissingCapabilityError) as missing:
            Tracking([kind], "r", tmp_path, Lines())
        assert f'pip install "mcompress[{kind}]"' in missing.value.fix


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_tensorboard_writes_events_that_read_back(example: Report, tmp_path: Path, place: str) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / (place or "tensorboard")
    name = f"tensorboard:{folder}" if place else "tensorboard"
    sink = Tracking([name], "frontier", tmp_path, Lines(), {"seed": 3})
    train(sink)
    sink.finish(example)
    events = EventAccumulator(str(folder / "frontier"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("distil/loss")]
    assert losses == [(10, pytest.approx(0.9)), (20, pytest.approx(0.4))]
    (accuracy,) = events.Scalars("results/student-int8/ort-cpu-1t/accuracy")
    assert accuracy.value == pytest.approx(801 / 910)


def test_mlflow_keeps_a_run_on_disk(example: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra mlflow)")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    seen = Lines()
    sink = Tracking([f"mlflow:{(tmp_path / 'store').as_uri()}"], "frontier", tmp_path, seen, {"seed": 3})
    train(sink)
    sink.finish(example)
    assert not [line for line in seen if "tracker" in line]
    (run,) = mlflow.search_runs(experiment_names=["mcompress"], output_format="list")
    assert run.data.metrics["distil/loss"] == pytest.approx(0.4)
    assert run.data.params == {"seed": "3"}
    assert run.info.status == "FINISHED"


def test_wandb_writes_an_offline_run(example: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    seen = Lines()
    sink = Tracking(["wandb:mine"], "frontier", tmp_path, seen, {"seed": 3})
    train(sink)
    sink.finish(example)
    assert not [line for line in seen if "tracker" in line]
    assert list(tmp_path.rglob("*.wandb"))
