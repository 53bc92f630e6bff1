"""A whole recipe for a CPU with AVX2: what is quantized, measured and compared goes by its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compress.artifact import Artifact
from compress.runtimes.isa_cap import why_not
from compress.runtimes.target import find_target

TARGET = "ort-cpu-1t-avx2"


@pytest.mark.slow
def test_int8_for_avx2_keeps_to_7_bits_and_is_measured_on_its_kernels(
    labeller: Artifact, labelled_run: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    if why_not(find_target(TARGET)):
        pytest.skip(why_not(find_target(TARGET)))
    quantize = {"scheme": "int8", "target": TARGET, "max_drop_points": 100.0}
    measure = {
        "targets": [TARGET],
        "baselines": ["torch", "onnx"],
        "inputs": 4,
        "rounds": 3,
        "throughput_batches": [1],
        "throughput_seconds": 0.05,
        "warmup_seconds": 0.01,
    }
    record, _ = labelled_run(labeller, [{"export": {}}, {"quantize": quantize}], measure=measure)
    (step,) = (step for step in record["steps"] if step["name"] == "quantize")
    assert step["notes"]["reduce_range"] is True
    assert "AVX2" in step["notes"]["reduce_range_reason"]
    assert step["notes"]["isa"]["name"] == "x86-avx2"
    saturation = step["notes"]["saturation"]
    assert (saturation["isa"], saturation["saturates"]) == ("x86-avx2", True), "the probe ran on the same kernels"
    rows = {(row["step"], row["target"]): row for row in record["rows"]}
    assert {target for _, target in rows} == {TARGET, "torch-cpu-1t-avx2"}, "the baselines are capped too"
    for row in rows.values():
        assert (row["status"], row["isa"], row["evidence"]) == ("ok", "x86-avx2", "proxy"), row["reason"]
    assert rows["quantize", TARGET]["speedups"]["ONNX Runtime FP32"]["against"]["target"] == TARGET
    assert [point["batch"] for point in rows["quantize", TARGET]["throughputs"]] == [1, 16]
