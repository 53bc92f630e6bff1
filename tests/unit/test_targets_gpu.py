"""How a target computes on a GPU: which modes make sense where, and what each missing piece is called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from compress.errors import MissingCapabilityError, RecipeError
from compress.runtimes import onnxruntime_package, ort_cuda, torch
from compress.runtimes.base import Availability, runtimes
from compress.runtimes.onnxruntime import OnnxRuntime
from compress.runtimes.target import builtin_targets, find_target, parse_target
from compress.runtimes.torch import TorchRuntime

MODES = {
    "ort-cuda": ("fp32", False, False),
    "ort-cuda-graph": ("fp32", False, True),
    "ort-cuda-tf32": ("tf32", False, False),
    "tensorrt": (None, False, False),
    "tensorrt-graph": (None, False, True),
    "torch-cuda": ("fp32", False, False),
    "torch-cuda-bf16": ("bf16", False, False),
    "torch-cuda-fp16": ("fp16", False, False),
    "torch-cuda-fp16-compiled": ("fp16", True, False),
    "torch-cuda-fp16-compiled-graph": ("fp16", True, True),
    "torch-cuda-fp16-graph": ("fp16", False, True),
    "torch-cuda-tf32": ("tf32", False, False),
}


def test_the_gpu_targets_are_one_group_and_differ_by_how_they_compute() -> None:
    gpu = {name: target for name, target in builtin_targets().items() if target.device == "cuda"}
    assert {name: (t.precision, t.compile, t.cuda_graph) for name, t in gpu.items()} == MODES
    assert len({target.group for target in gpu.values()}) == 1


def test_targets_of_a_cpu_have_no_mode() -> None:
    for target in builtin_targets().values():
        if target.device == "cpu":
            assert (target.precision, target.compile, target.cuda_graph) == (None, False, False)


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ("runtime: onnxruntime, device: cuda, precision: fp16", "use the `cast` pass"),
        ("runtime: onnxruntime, device: cuda, compile: true", "torch.compile takes PyTorch models"),
        ("runtime: tensorrt, device: cuda, precision: fp16", "its files have their precision inside"),
        ("runtime: openvino, precision: fp32", "is not for the runtime openvino"),
        ("runtime: openvino, device: cuda, cuda_graph: true", "it runs on a CPU"),
        ("runtime: torch, cuda_graph: true", "set `device: cuda`"),
        ("runtime: torch, precision: tf32", "set `device: cuda`"),
        ("runtime: torch, precision: fp8", "precision: Input should be 'fp32', 'tf32', 'fp16' or 'bf16'"),
        ("runtime: torch, precison: fp16", "precison: Extra inputs are not permitted"),
    ],
)
def test_a_mode_that_makes_no_sense_is_refused_with_the_way_out(fields: str, phrase: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_target(f"{{name: mine, {fields}}}", "mine.yaml")
    assert phrase in caught.value.value
    assert "precision, compile, cuda_graph" in caught.value.fix


def test_a_plugin_decides_about_its_modes_itself() -> None:
    target = parse_target("{name: mine, runtime: npu, precision: bf16, compile: true}", "mine.yaml")
    assert (target.precision, target.compile) == ("bf16", True)


def here(monkeypatch: pytest.MonkeyPatch, *installed: str, gpu: str = "") -> None:
    monkeypatch.setattr(onnxruntime_package, "is_installed", set(installed).__contains__)
    monkeypatch.setattr(ort_cuda, "why_no_cuda", lambda: gpu)


def test_ort_cuda_names_everything_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, target = OnnxRuntime(), find_target("ort-cuda")
    here(monkeypatch, "onnxruntime", gpu="no GPU (none)")
    assert runtime.available(target).reason == (
        "no GPU (none); onnxruntime-gpu is not installed: pip uninstall onnxruntime, then pip install 'mcompress[gpu]'"
    )
    here(monkeypatch, gpu="")
    assert runtime.available(target).reason == "onnxruntime-gpu is not installed: pip install 'mcompress[gpu]'"
    here(monkeypatch, "onnxruntime-gpu", gpu="no GPU (none)")
    assert runtime.available(target).reason == "no GPU (none)"
    here(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    assert "overwrite each other" in runtime.available(target).reason
    with pytest.raises(MissingCapabilityError, match="cannot run here"):
        runtime.require(target)


def test_ort_cuda_wants_the_provider_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "onnxruntime-gpu")
    providers = ["CPUExecutionProvider"]
    fake = type("Fake", (), {"get_available_providers": staticmethod(lambda: providers)})
    monkeypatch.setattr(ort_cuda, "import_onnxruntime", lambda: fake)
    assert "no CUDA provider" in OnnxRuntime().available(find_target("ort-cuda")).reason
    providers.append("CUDAExecutionProvider")
    assert OnnxRuntime().available(find_target("ort-cuda")).ok


@pytest.mark.parametrize("name", ["torch-cuda", "torch-cuda-fp16-compiled"])
def test_torch_without_a_gpu_says_only_that(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "why_no_cuda", lambda: "no GPU (no NVIDIA driver is installed)")
    assert TorchRuntime().available(find_target(name)).reason == "no GPU (no NVIDIA driver is installed)"


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.shutil, "which", lambda name: None)
    target = parse_target("{name: mine, runtime: torch, compile: true}", "mine.yaml")
    assert "C++ compiler" in TorchRuntime().available(target).reason
    monkeypatch.setattr(torch.shutil, "which", lambda name: f"/{name}")
    assert TorchRuntime().available(target).ok


def test_int8_is_not_measured_on_the_cuda_provider_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    int8, plain = SimpleNamespace(traits={"int8", "fp16"}), SimpleNamespace(traits={"fp16"})
    targets = builtin_targets().values()
    for runtime in {runtimes.get(target.runtime) for target in targets}:
        monkeypatch.setattr(runtime, "available", lambda self, target: Availability(True))
    refused = {t.name: runtimes.get(t.runtime)().takes(int8, t).reason for t in targets}  # type: ignore[arg-type]
    assert {name for name, why in refused.items() if why} == {"ort-cuda", "ort-cuda-graph", "ort-cuda-tf32"}
    assert "measured by TensorRT" in refused["ort-cuda"]
    assert OnnxRuntime().takes(plain, find_target("ort-cuda")).ok  # type: ignore[arg-type]
