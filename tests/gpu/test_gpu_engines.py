"""Engines where there is a GPU: what cannot be built or loaded elsewhere. Each test says why it is skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.data.splits import Split, TaskData
from compress.errors import MissingCapabilityError
from compress.export.trt_api import present_library
from compress.passes.base import Context
from compress.passes.build import Build, BuildConfig
from compress.runtimes.base import runtimes
from compress.runtimes.target import find_target
from compress.runtimes.trt_loading import TRUST
from compress.store import Store
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [{"text": text, "label": "good"} for text in ("a good film", "dull and slow , but fine ;", "never")]

pytestmark = pytest.mark.skipif(
    not (found := runtimes.get("tensorrt")().available(find_target("tensorrt"))).ok,
    reason=f"not measured: {found.reason}",
)


@pytest.fixture
def build(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``make(**config)``: the tiny classifier as an engine, and the store that timings live in."""
    rows = TaskData({"train": Split("train", ROWS, "0" * 64, "built in")}, TASK.labels)

    def make(**config: Any) -> Artifact:
        number = len(list(tmp_path.iterdir()))
        folders = {part: tmp_path / f"{number}-{part}" for part in ("out", "scratch", "checkpoint")}
        for folder in folders.values():
            folder.mkdir()
        context = Context(**folders, task=TASK, data=rows, store=Store(tmp_path / "store"))
        try:
            return Build().apply({"model": tiny_exported()}, BuildConfig(**config), context)
        except MissingCapabilityError as error:
            pytest.skip(error.value)

    return make


def outputs(artifact: Artifact, rows: list[dict[str, Any]]) -> np.ndarray:
    encoded = TASK.encode(artifact.path, rows)
    runtime = runtimes.get("onnxruntime" if artifact.kind == "onnx" else "tensorrt")()
    target = find_target("ort-cpu-1t" if artifact.kind == "onnx" else "tensorrt")
    with runtime.open(artifact, target) as session:
        return session.run(encoded.batch(range(len(rows))))["logits"]


def test_an_engine_for_one_shape_agrees_with_the_dynamic_one(
    build: Callable[..., Artifact], tiny_exported: Callable[..., Artifact]
) -> None:
    length = int(max(TASK.encode(tiny_exported().path, ROWS).lengths))
    wanted = outputs(tiny_exported(), ROWS)
    built = build(shapes=[(3, length)])
    np.testing.assert_allclose(outputs(built, ROWS), wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(outputs(built, ROWS[:2]), outputs(tiny_exported(), ROWS[:2]), rtol=1e-3, atol=1e-3)


def test_the_inspector_tells_what_an_engine_runs(build: Callable[..., Artifact]) -> None:
    found = build().manifest.notes["engines"]["model"]["inspection"]
    assert found["layers"] > 0
    assert found["detailed"]
    assert sum(found["precisions"].values()) > 0
    assert found["attention"] == 2
    assert found["weights_bytes"] > 0


def test_the_second_build_takes_over_timings(build: Callable[..., Artifact], tmp_path: Path) -> None:
    if present_library() != "tensorrt":
        pytest.skip("TensorRT-RTX has no timing cache")
    assert build().manifest.notes["timing_cache"]["used"]
    before = {path.name for path in (tmp_path / "store" / "timings").glob("*.cache")}
    build()
    assert {path.name for path in (tmp_path / "store" / "timings").glob("*.cache")} == before
    assert len(before) == 1


@pytest.mark.parametrize("config", [{"strip_plan": True}, {"refit": True}, {"version_compatible": True}])
def test_engines_with_options_agree(
    config: dict[str, Any],
    build: Callable[..., Artifact],
    tiny_exported: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TRUST, "1")
    np.testing.assert_allclose(outputs(build(**config), ROWS), outputs(tiny_exported(), ROWS), rtol=1e-3, atol=1e-3)
