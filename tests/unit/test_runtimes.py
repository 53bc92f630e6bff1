"""Runtimes and targets: what is offered, what is refused and with which reason, equal outputs in process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError, ModelError, RecipeError
from compress.runtimes import cuda, onnxruntime, onnxruntime_package, tensorrt
from compress.runtimes.base import runtimes
from compress.runtimes.cores import pinned_cores, thread_count, usable_cores
from compress.runtimes.target import Target, builtin_targets, find_target, find_targets

MIB = 2**20
EXPECTED = {
    "edge-128m": ("onnxruntime", "cpu", 1, 128 * MIB, None, "proxy"),
    "edge-1g": ("onnxruntime", "cpu", 1, 1024 * MIB, None, "proxy"),
    "edge-256m": ("onnxruntime", "cpu", 1, 256 * MIB, None, "proxy"),
    "edge-512m": ("onnxruntime", "cpu", 1, 512 * MIB, None, "proxy"),
    "openvino-cpu-1t": ("openvino", "cpu", 1, None, None, "measured"),
    "openvino-cpu-1t-avx2": ("openvino", "cpu", 1, None, "avx2", "proxy"),
    "ort-arm64-a72": ("onnxruntime-arm64", "cpu", 1, None, None, "emulated"),
    "ort-arm64-max": ("onnxruntime-arm64", "cpu", 1, None, None, "emulated"),
    "ort-arm64-n1": ("onnxruntime-arm64", "cpu", 1, None, None, "emulated"),
    "ort-cpu": ("onnxruntime", "cpu", None, None, None, "measured"),
    "ort-cpu-1t": ("onnxruntime", "cpu", 1, None, None, "measured"),
    "ort-cpu-1t-avx2": ("onnxruntime", "cpu", 1, None, "avx2", "proxy"),
    "ort-cuda": ("onnxruntime", "cuda", None, None, None, "measured"),
    "ort-cuda-graph": ("onnxruntime", "cuda", None, None, None, "measured"),
    "ort-cuda-tf32": ("onnxruntime", "cuda", None, None, None, "measured"),
    "tensorrt": ("tensorrt", "cuda", None, None, None, "measured"),
    "tensorrt-graph": ("tensorrt", "cuda", None, None, None, "measured"),
    "torch-cpu-1t": ("torch", "cpu", 1, None, None, "measured"),
    "torch-cuda": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-bf16": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-fp16": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-fp16-compiled": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-fp16-compiled-graph": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-fp16-graph": ("torch", "cuda", None, None, None, "measured"),
    "torch-cuda-tf32": ("torch", "cuda", None, None, None, "measured"),
}


def test_builtin_targets_are_these() -> None:
    found = {
        name: (t.runtime, t.device, t.threads, t.memory_bytes, t.isa, t.evidence)
        for name, t in builtin_targets().items()
    }
    assert found == EXPECTED
    assert all(len(target.description) > 20 for target in builtin_targets().values())
    assert all(runtimes.get(target.runtime).kinds for target in builtin_targets().values())
    limited = [t for t in builtin_targets().values() if t.memory_bytes or t.isa]
    assert {t.evidence for t in limited} == {"proxy"}, "what stands in for another machine says so"


def test_targets_are_told_apart_by_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("{name: ort-cpu-1t, runtime: onnxruntime, threads: 1, memory_bytes: 1000}", encoding="utf-8")
    twice = find_targets(["torch-cpu-1t", str(mine), "torch-cpu-1t"])
    assert [(target.name, target.memory_bytes) for target in twice] == [("torch-cpu-1t", None), ("ort-cpu-1t", 1000)]
    with pytest.raises(RecipeError, match="the same name"):
        find_targets(["ort-cpu-1t", str(mine)])


def test_unknown_target_is_corrected() -> None:
    with pytest.raises(RecipeError) as caught:
        find_target("ort-cpu-t1")
    assert "'ort-cpu-1t'" in caught.value.fix


def test_every_runtime_names_itself_and_its_kinds() -> None:
    kinds = {name: set(runtimes.get(name).kinds) for name in ("torch", "onnxruntime", "openvino", "tensorrt")}
    assert kinds == {
        "torch": {"torch"},
        "onnxruntime": {"onnx"},
        "openvino": {"onnx", "openvino"},
        "tensorrt": {"tensorrt"},
    }
    assert all(runtimes.get(name).name == name for name in kinds)


def test_asking_what_is_here_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from compress.runtimes.base import runtimes\n"
        "from compress.runtimes.target import builtin_targets\n"
        "from compress.bench import protocol, statistics\n"
        "answers = [runtimes.get(t.runtime)().available(t) for t in builtin_targets().values() if t.device == 'cpu']\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'tensorrt'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_threads_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    one, every = find_target("ort-cpu-1t"), find_target("ort-cpu")
    assert (thread_count(one), thread_count(every)) == (1, len(usable_cores()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 0, 3}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    assert (pinned_cores(one), pinned_cores(every)) == ([5], [0, 3, 5])
    assert pinned_cores(Target(name="x", runtime="torch", threads=9)) == [0, 3, 5]
    monkeypatch.delattr(os, "sched_setaffinity")
    assert pinned_cores(one) == []


def test_two_onnxruntime_wheels_are_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_onnx: Callable[..., Artifact]
) -> None:
    monkeypatch.setattr(onnxruntime_package, "is_installed", {"onnxruntime", "onnxruntime-gpu"}.__contains__)
    found = onnxruntime.OnnxRuntime().available(find_target("ort-cpu-1t"))
    assert not found.ok
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.reason
    with pytest.raises(MissingCapabilityError) as caught:
        onnxruntime.OnnxRuntime().open(tiny_onnx(), find_target("ort-cpu-1t"))
    assert "overwrite each other" in caught.value.value


@pytest.mark.parametrize(("name", "module"), [("onnxruntime", "onnxruntime_package"), ("openvino", "openvino")])
def test_absent_package_is_named_with_its_extra(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtimes.get(name)
    monkeypatch.setattr(f"compress.runtimes.{module}.find_spec", lambda package: None)
    found = runtime().available(Target(name="x", runtime=name))
    assert not found.ok
    assert "pip install 'mcompress[" in found.reason


def test_a_cpu_runtime_does_not_fall_back_from_cuda() -> None:
    found = runtimes.get("openvino")().available(Target(name="x", runtime="openvino", device="cuda"))
    assert (found.ok, "no device 'cuda'" in found.reason) == (False, True)


def test_tensorrt_names_everything_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda package: None)
    monkeypatch.setattr(tensorrt, "why_no_cuda", lambda: "no GPU (no NVIDIA driver is installed)")
    found = tensorrt.TensorrtRuntime().available(find_target("tensorrt"))
    assert not found.ok
    assert "mcompress[tensorrt]" in found.reason
    assert "no NVIDIA driver" in found.reason


class Driver:
    """A stand-in for libcuda."""

    def __init__(self, init: int, devices: int) -> None:
        self.init, self.devices = init, devices

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, length: int, device: Any) -> int:
        text.value = b"0000:1B:00.0"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver(0, 1), ""),
        (Driver(0, 0), "no GPU (the NVIDIA driver sees no CUDA device)"),
        (Driver(100, 1), "no GPU (the NVIDIA driver cannot start: cuInit returned 100)"),
    ],
)
def test_cuda_probe_asks_the_driver(driver: Driver, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: driver)
    reason = cuda.why_no_cuda()
    assert expected in reason
    assert bool(reason) == bool(expected)


def test_cuda_probe_names_version_and_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver(0, 1))
    assert (cuda.driver_cuda_version(), cuda.first_bus_id()) == ("13.1", "0000:1B:00.0")
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver(0, 0))
    assert cuda.first_bus_id() is None


def test_cuda_probe_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda.ctypes, "CDLL", absent)
    assert cuda.why_no_cuda() == "no GPU (no NVIDIA driver is installed)"
    assert (cuda.driver_cuda_version(), cuda.first_bus_id()) == (None, None)


def expected_logits(artifact: Artifact, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Compute the tiny graph in numpy: masked mean of embeddings, then a linear layer."""
    import onnx
    from onnx import numpy_helper

    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(artifact.file()).graph.initializer}
    mask = batch["attention_mask"][..., None]
    pooled = (weights["embedding"][batch["input_ids"]] * mask).sum(1) / mask.sum(1)
    return pooled @ weights["weight"] + weights["bias"]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_sessions_compute_the_graph(name: str, tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> None:
    pytest.importorskip(name)
    artifact, batch = tiny_onnx(), tiny_encoded.batch([0, 1, 2, 3])
    extra = batch | {"token_type_ids": np.zeros_like(batch["input_ids"])}
    with runtimes.get(name)().open(artifact, Target(name="x", runtime=name, threads=1)) as session:
        first = session.run(extra)
        session.run(tiny_encoded.batch([5]))
        assert first["logits"].dtype == np.float32
        np.testing.assert_allclose(first["logits"], expected_logits(artifact, batch), rtol=1e-5, atol=1e-5)
        assert session.placement()["operators"]


def test_missing_input_is_an_error_with_its_name(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> None:
    batch = tiny_encoded.batch([0])
    del batch["attention_mask"]
    session = onnxruntime.OnnxRuntime().open(tiny_onnx(), find_target("ort-cpu-1t"))
    with pytest.raises(ModelError) as caught:
        session.run(batch)
    assert caught.value.value == "attention_mask"


def test_memory_limited_placement_opens_no_second_session(tiny_onnx: Callable[..., Artifact]) -> None:
    with onnxruntime.OnnxRuntime().open(tiny_onnx(), find_target("edge-512m")) as session:
        assert session.placement() == {"providers": ["CPUExecutionProvider"]}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_streams_run_every_batch(name: str, tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> None:
    pytest.importorskip(name)
    target = Target(name="two", runtime=name, threads=2)
    taken = 0

    def batches() -> Iterator[dict[str, np.ndarray]]:
        nonlocal taken
        for i in range(len(tiny_encoded)):
            taken += 1
            yield tiny_encoded.batch([i])

    with runtimes.get(name)().open(tiny_onnx(), target) as session:
        session.stream(2)(batches())
        assert taken == len(tiny_encoded)
        session.stream(1)(batches())
        assert taken == 2 * len(tiny_encoded)


def test_torch_session_sets_threads_and_puts_them_back(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Sum(torch.nn.Module):
        dtype = torch.float32

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
            total = (input_ids * attention_mask).sum(1, keepdim=True).double()
            return SimpleNamespace(logits=total * torch.get_num_threads())

    monkeypatch.setattr("compress.models.loading.load_torch", lambda folder, task: Sum())
    before = torch.get_num_threads()
    batch = tiny_encoded.batch([0, 1])
    extra = batch | {"token_type_ids": np.zeros_like(batch["input_ids"])}
    with runtimes.get("torch")().open(tiny_onnx(), Target(name="x", runtime="torch", threads=before + 1)) as session:
        logits = session.run(extra)["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[:, 0], batch["input_ids"].sum(1) * (before + 1))
    assert torch.get_num_threads() == before


def test_openvino_names_the_operators_that_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    import onnx
    import openvino as ov

    from compress.runtimes.openvino import read_model

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Wonder", ["x"], ["y"], domain="com.example")
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"com\.example\.Wonder"):
        read_model(ov.Core(), tmp_path / "model.onnx")
