from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compress.pipeline.half import half_findings
from compress.pipeline.measuring import ONNX
from compress.runtimes.target import find_target


def found(traits: set[str], target: str = "ort-cpu-1t", status: str = "ok") -> list[str]:
    row: Any = SimpleNamespace(status=status, speedups={ONNX: SimpleNamespace(ratio=0.97)})
    artifact: Any = SimpleNamespace(manifest=SimpleNamespace(traits=sorted(traits)))
    return list(half_findings(row, artifact, find_target(target)))


def test_fp16_on_a_cpu_is_a_storage_format() -> None:
    (text,) = found({"pruned", "fp16"})
    assert "FP16 is a storage format on a CPU" in text
    assert "0.97 times as fast as ONNX Runtime FP32" in text


def test_int8_for_tensorrt_is_not_judged_by_its_speed_on_a_cpu() -> None:
    (text,) = found({"int8", "fp16"})
    assert "a form for TensorRT" in text
    assert "Quantize for a CPU target" in text


@pytest.mark.parametrize(
    ("traits", "target", "status"),
    [({"fp16"}, "torch-cuda", "ok"), ({"fp16"}, "ort-cpu-1t", "failed"), ({"int8"}, "ort-cpu-1t", "ok")],
)
def test_other_rows_have_none(traits: set[str], target: str, status: str) -> None:
    assert found(traits, target, status) == []


def test_a_row_without_an_artifact_has_none() -> None:
    row: Any = SimpleNamespace(status="ok", speedups={})
    assert list(half_findings(row, None, find_target("ort-cpu-1t"))) == []
