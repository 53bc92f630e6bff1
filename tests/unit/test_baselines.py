"""Baselines: two of a CPU, as ever; of a GPU FP32 and the fastest way in which the uncompressed model runs there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.bench.measurement import Measurement
from compress.pipeline import baselines as module
from compress.pipeline.baselines import ONNX, TORCH, Baseline, baselines, is_uncompressed, name_of, strongest
from compress.runtimes.target import builtin_targets, find_target, find_targets

GPU = find_target("torch-cuda").group
CPU = find_target("ort-cpu-1t").group


def artifact(kind: str, *traits: str) -> Any:
    return SimpleNamespace(kind=kind, traits=frozenset(traits))


STAGES = {
    "model": artifact("torch"),
    "export": artifact("onnx"),
    "fp16-engine": artifact("tensorrt", "fp16"),
    "int8-engine": artifact("tensorrt", "int8", "fp16"),
    "pruned-engine": artifact("tensorrt", "fp16", "pruned"),
    "fp32-engine": artifact("tensorrt"),
}
CHAINS = {
    "export": [("export", "model")],
    "fp16-engine": [("cast", "export"), ("build", "fp16")],
    "int8-engine": [("quantize", "export"), ("build", "int8")],
    "pruned-engine": [("prune", "model"), ("export", "prune"), ("cast", "exported"), ("build", "cast")],
    "fp32-engine": [("build", "export")],
}


@pytest.fixture
def state() -> Any:
    steps = []
    for last, chain in CHAINS.items():
        ids = [f"{last}-{i}" for i in range(len(chain) - 1)] + [last]
        parents = ["export" if chain[0][1] == "export" else "model", *ids[:-1]]
        steps += [
            SimpleNamespace(id=id_, pass_=SimpleNamespace(name=name), parents={"model": parent})
            for id_, parent, (name, _) in zip(ids, parents, chain, strict=True)
        ]
    plan = SimpleNamespace(reference="model", steps=steps, by_id={s.id: s for s in steps}, source=None)
    return SimpleNamespace(plan=plan, recipe=SimpleNamespace(measure=SimpleNamespace(baselines=["torch", "onnx"])))


@pytest.fixture
def all_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_here", lambda target: True)


def names(found: Any) -> list[tuple[str, str, str]]:
    return [(it.name, it.step, it.target.name) for it in found]


def test_a_cpu_has_torch_and_the_plain_export(state: Any) -> None:
    found = baselines(state, STAGES, [find_target("ort-cpu-1t")], CPU)
    assert names(found) == [(TORCH, "model", "torch-cpu-1t"), (ONNX, "export", "ort-cpu-1t")]


def test_a_gpu_has_every_uncompressed_form_of_the_targets_asked_for(state: Any, all_here: None) -> None:
    wanted = find_targets(["tensorrt", "tensorrt-graph", "ort-cuda", "torch-cuda-bf16", "ort-cpu-1t"])
    assert names(baselines(state, STAGES, wanted, GPU)) == [
        ("torch FP32", "model", "torch-cuda"),
        ("torch FP16", "model", "torch-cuda-fp16"),
        ("torch FP16 compiled", "model", "torch-cuda-fp16-compiled"),
        ("torch BF16", "model", "torch-cuda-bf16"),
        ("ONNX Runtime FP32", "export", "ort-cuda"),
        ("TensorRT FP16", "fp16-engine", "tensorrt"),
        ("TensorRT FP16 CUDA graph", "fp16-engine", "tensorrt-graph"),
    ]


def test_without_a_gpu_there_is_none(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.runtimes.torch.why_no_cuda", lambda: "no GPU (none)")
    monkeypatch.setattr("compress.runtimes.ort_cuda.why_no_cuda", lambda: "no GPU (none)")
    monkeypatch.setattr("compress.runtimes.tensorrt.why_no_cuda", lambda: "no GPU (none)")
    assert baselines(state, STAGES, find_targets(["tensorrt", "ort-cuda", "torch-cuda"]), GPU) == ()


def test_only_precision_and_format_may_differ_from_the_reference(state: Any) -> None:
    found = {step: is_uncompressed(state, step) for step in CHAINS}
    assert found == {
        "export": True,
        "fp16-engine": True,
        "int8-engine": False,
        "pruned-engine": False,
        "fp32-engine": True,
    }


def cell(step: str, target: str, ms: float, **fields: Any) -> Measurement:
    facts = {"status": "ok", "evidence": "measured", "digest": "", "size_bytes": 1, "threads": 1} | fields
    return Measurement(subject=step, target=target, samples_ms=[[[ms]]], **facts)


@pytest.fixture
def three() -> tuple[Baseline, ...]:
    return tuple(
        Baseline(name_of(find_target(name), precision), step, find_target(name))
        for name, step, precision in (
            ("torch-cuda", "model", ""),
            ("torch-cuda-fp16", "model", ""),
            ("tensorrt", "fp16-engine", "fp16"),
        )
    )


def cells(*ms: float, **last: Any) -> dict[tuple[str, str], Measurement]:
    places = [("model", "torch-cuda"), ("model", "torch-cuda-fp16"), ("fp16-engine", "tensorrt")]
    made = [cell(*place, time) for place, time in zip(places, ms, strict=True)]
    made[-1] = made[-1].model_copy(update=last)
    return {(m.subject, m.target): m for m in made}


def test_fp32_and_the_fastest_are_kept(three: tuple[Baseline, ...]) -> None:
    assert [it.name for it in strongest(three, cells(3.0, 2.0, 1.0))] == ["torch FP32", "TensorRT FP16"]
    assert [it.name for it in strongest(three, cells(3.0, 1.0, 2.0))] == ["torch FP32", "torch FP16"]
    assert [it.name for it in strongest(three, cells(1.0, 2.0, 3.0))] == ["torch FP32"]


def test_a_baseline_that_overflowed_or_failed_does_not_count(three: tuple[Baseline, ...]) -> None:
    overflowed = cells(3.0, 2.0, 1.0, outputs=np.array([[np.nan, 0.0]], dtype=np.float32))
    assert [it.name for it in strongest(three, overflowed)] == ["torch FP32", "torch FP16"]
    failed = cells(3.0, 2.0, 1.0, status="failed")
    assert [it.name for it in strongest(three, failed)] == ["torch FP32", "torch FP16"]
    assert [it.name for it in strongest(three, {})] == ["torch FP32"]


def test_every_gpu_target_has_its_own_name_in_a_report() -> None:
    gpu = [target for target in builtin_targets().values() if target.device == "cuda"]
    assert len({name_of(target, "" if target.precision else "fp16") for target in gpu}) == len(gpu)
