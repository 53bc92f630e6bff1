"""What only a GPU can show; each test says why it is skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.bench.protocol import predict
from compress.export.companions import copy_companions
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.models.signature import torch_graph
from compress.runtimes.base import runtimes
from compress.runtimes.target import find_target
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [{"text": text} for text in ("a good film", "dull and slow , but fine ;", "never")]


def need(name: str):
    target = find_target(name)
    found = runtimes.get(target.runtime)().available(target)
    if not found.ok:
        pytest.skip(f"not measured: {found.reason}")
    return target


def test_torch_on_the_gpu_agrees_with_the_cpu(tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    target = need("torch-cuda")
    artifact = _torch_artifact(tiny_classifier("bert", pruned=True), tmp_path / "model")
    encoded = TASK.encode(artifact.path, ROWS)
    on_cpu = predict(artifact, find_target("torch-cpu-1t"), encoded, work=tmp_path)
    np.testing.assert_allclose(predict(artifact, target, encoded, work=tmp_path), on_cpu, rtol=1e-3, atol=1e-4)


def test_engine_agrees_with_its_onnx_file(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    target = need("tensorrt")
    source = tiny_exported("bert", pruned=True)
    encoded = TASK.encode(source.path, ROWS)
    folder = tmp_path / "engine"
    folder.mkdir()
    graph = source.manifest.graphs["model"]
    profile = profile_from_lengths([i.name for i in graph.inputs], encoded.lengths, TASK.max_length)
    build_engine(source.file(), folder / "model.engine", profile, workspace_bytes=2**28, tf32=False)
    copy_companions(source.path, folder)
    engine = create_artifact(
        folder,
        kind="tensorrt",
        task=TASK.dump(),
        graphs={"model": graph.model_copy(update={"file": "model.engine"})},
        made_by=PassRecord(name="test", version=1, config={}),
    )
    wanted = predict(source, find_target("ort-cpu-1t"), encoded, work=tmp_path)
    np.testing.assert_allclose(predict(engine, target, encoded, work=tmp_path), wanted, rtol=1e-3, atol=1e-3)


def _torch_artifact(source: Path, folder: Path) -> Artifact:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = PassRecord(name="test", version=1, config={})
    graphs = {"model": torch_graph(folder, TASK)}
    return create_artifact(folder, kind="torch", task=TASK.dump(), graphs=graphs, made_by=record)
