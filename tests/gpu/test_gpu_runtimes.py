"""What only a GPU can show; each test says why it is skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.bench.nvml import device_state
from compress.bench.protocol import Subject, measure, predict
from compress.bench.settings import MeasureSettings
from compress.data.encoded import Encoded
from compress.export.companions import copy_companions
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.models.signature import torch_graph
from compress.runtimes.base import Session, runtimes
from compress.runtimes.ort_cuda import CUDA, NO_INT8
from compress.runtimes.target import Target, find_target
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [{"text": text} for text in ("a good film", "dull and slow , but fine ;", "never", "good")]
SETTINGS = MeasureSettings(
    inputs=4, rounds=3, launches=1, seconds=20, throughput_batches=[1, 4], throughput_seconds=0.2
)
FP32, TF32, FP16, BF16 = 1e-4, 1e-2, 1e-2, 8e-2
"""Largest differences of a logit from the CPU's that each precision may show on the tiny model."""


def need(name: str) -> Target:
    target = find_target(name)
    found = runtimes.get(target.runtime)().available(target)
    if not found.ok:
        pytest.skip(f"not measured: {found.reason}")
    return target


def opened(artifact: Artifact, target: Target) -> Session:
    runtime = runtimes.get(target.runtime)()
    runtime.preload(target)
    return runtime.open(artifact, target)


@pytest.fixture
def torch_artifact(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Artifact:
    source, folder = tiny_classifier("bert", pruned=True), tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = PassRecord(name="test", version=1, config={})
    graphs = {"model": torch_graph(folder, TASK)}
    return create_artifact(folder, kind="torch", task=TASK.dump(), graphs=graphs, made_by=record)


@pytest.fixture
def engine(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> Callable[[], tuple[Artifact, Artifact]]:
    """Return ``build()``: an ONNX artifact and the FP32 engine made of it."""

    def build() -> tuple[Artifact, Artifact]:
        source = tiny_exported("bert", pruned=True)
        folder = tmp_path / "engine"
        folder.mkdir()
        graph = source.manifest.graphs["model"]
        lengths = TASK.encode(source.path, ROWS).lengths
        profile = profile_from_lengths([i.name for i in graph.inputs], lengths, TASK.max_length)
        build_engine(source.file(), folder / "model.engine", profile, workspace_bytes=2**28, tf32=False)
        copy_companions(source.path, folder)
        made = create_artifact(
            folder,
            kind="tensorrt",
            task=TASK.dump(),
            graphs={"model": graph.model_copy(update={"file": "model.engine"})},
            made_by=PassRecord(name="test", version=1, config={}),
        )
        return source, made

    return build


def shapes_in_turn(session: Session, encoded: Encoded) -> list[np.ndarray]:
    """Run every example twice, shapes in turn, so that what was recorded for a shape is met again by other values."""
    order = [*range(len(encoded)), *reversed(range(len(encoded)))]
    outputs = {i: session.run(encoded.batch([i]))["logits"] for i in order}
    return [outputs[i] for i in range(len(encoded))]


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("torch-cuda", FP32),
        ("torch-cuda-tf32", TF32),
        ("torch-cuda-fp16", FP16),
        ("torch-cuda-bf16", BF16),
        ("torch-cuda-fp16-graph", FP16),
        ("torch-cuda-fp16-compiled", FP16),
        ("torch-cuda-fp16-compiled-graph", FP16),
    ],
)
def test_torch_on_the_gpu_agrees_with_the_cpu(
    name: str, within: float, torch_artifact: Artifact, tmp_path: Path
) -> None:
    target = need(name)
    encoded = TASK.encode(torch_artifact.path, ROWS)
    on_cpu = predict(torch_artifact, find_target("torch-cpu-1t"), encoded, work=tmp_path)
    found = predict(torch_artifact, target, encoded, work=tmp_path)
    assert np.abs(found - on_cpu).max() < within


def test_torch_graphs_replay_what_plain_runs_compute(torch_artifact: Artifact) -> None:
    target = need("torch-cuda-fp16-graph")
    encoded = TASK.encode(torch_artifact.path, ROWS)
    with opened(torch_artifact, find_target("torch-cuda-fp16")) as plain:
        wanted = shapes_in_turn(plain, encoded)
        assert (plain.device_ms(encoded.batch([0])) or 0.0) > 0
    with opened(torch_artifact, target) as session:
        np.testing.assert_allclose(shapes_in_turn(session, encoded), wanted, rtol=1e-3, atol=1e-3)
        assert session.placement()["cuda_graphs"] == len(set(encoded.lengths))
        assert (session.device_ms(encoded.batch([0])) or 0.0) > 0


@pytest.mark.parametrize(("name", "within"), [("ort-cuda", FP32), ("ort-cuda-tf32", TF32), ("ort-cuda-graph", FP32)])
def test_onnxruntime_on_the_gpu_agrees_and_runs_there(
    name: str, within: float, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    target, source = need(name), tiny_exported("bert", pruned=True)
    encoded = TASK.encode(source.path, ROWS)
    wanted = [predict(source, find_target("ort-cpu-1t"), encoded.select([i]), work=tmp_path)[0] for i in range(4)]
    with opened(source, target) as session:
        found = shapes_in_turn(session, encoded)
        assert np.abs(np.concatenate(found) - np.stack(wanted)).max() < within
        placement = session.placement()
    assert placement["providers"][0] == CUDA
    products = {"MatMul", "FusedMatMul", "Gemm", "Attention", "Softmax", "LayerNormalization"}
    assert not products & set(placement["cpu_operators"]), "only computing shapes may be left to the CPU"


def test_int8_on_the_cuda_provider_is_a_row_that_says_why(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    target, source = need("ort-cuda"), tiny_exported("bert", pruned=True)
    int8 = Artifact(source.path, source.manifest.model_copy(update={"traits": ("int8",)}))
    encoded = TASK.encode(source.path, ROWS)
    (row,) = measure([Subject("int8", int8, encoded, target)], settings=SETTINGS, work=tmp_path)
    assert (row.status, row.reason) == ("skipped", NO_INT8)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-graph"])
def test_engine_agrees_with_its_onnx_file(
    name: str, engine: Callable[[], tuple[Artifact, Artifact]], tmp_path: Path
) -> None:
    target = need(name)
    source, made = engine()
    encoded = TASK.encode(source.path, ROWS)
    wanted = [predict(source, find_target("ort-cpu-1t"), encoded.select([i]), work=tmp_path)[0] for i in range(4)]
    with opened(made, target) as session:
        found = shapes_in_turn(session, encoded)
        np.testing.assert_allclose(np.concatenate(found), np.stack(wanted), rtol=1e-3, atol=1e-3)
        assert (session.device_ms(encoded.batch([0])) or 0.0) > 0
        placement = session.placement()
    assert placement["layer_ms"]
    assert placement["layers_ms_total"] > 0


def test_rows_of_one_group_have_memory_clocks_and_both_times(torch_artifact: Artifact, tmp_path: Path) -> None:
    targets = [need("torch-cuda"), need("torch-cuda-fp16")]
    encoded = TASK.encode(torch_artifact.path, ROWS)
    subjects = [Subject(target.name, torch_artifact, encoded, target, ROWS) for target in targets]
    for row in measure(subjects, settings=SETTINGS, work=tmp_path):
        assert row.status == "ok", row.reason
        assert (row.gpu_allocator_bytes or 0) > 0
        assert (row.gpu_latency_ms or 0.0) > 0
        assert row.gpu_process_bytes is None or row.gpu_process_bytes > 0, "a container may hide processes"
        assert len(row.gpu_states) == 2
        assert all(state["sm_mhz"] > 0 and state["memory_used_bytes"] > 0 for state in row.gpu_states)


def test_the_driver_tells_the_state_of_the_device() -> None:
    need("torch-cuda")
    state: Any = device_state()
    assert state is not None, "nvidia-ml-py (extra gpu) reads the clocks"
    assert state["memory_mhz"] > 0
    assert 0 < state["temperature_c"] < 120
