"""FP16 in the report: on a CPU it makes the file smaller and nothing faster."""

from __future__ import annotations

from collections.abc import Iterator

from compress.artifact import Artifact
from compress.pipeline.measuring import ONNX
from compress.report import model as report
from compress.runtimes.target import Target


def is_for_gpus(artifact: Artifact | None) -> bool:
    """Say whether an artifact is INT8 in the form of TensorRT, whose speed on a CPU means nothing."""
    return artifact is not None and {"int8", "fp16"} <= set(artifact.manifest.traits)


def half_findings(row: report.Row, artifact: Artifact | None, target: Target) -> Iterator[str]:
    """Yield what a reader must know of a row of FP16 on a CPU; nothing for other rows."""
    if artifact is None or "fp16" not in artifact.manifest.traits or target.device != "cpu" or row.status != "ok":
        return
    if is_for_gpus(artifact):
        yield (
            "INT8 with FP16 for the rest is a form for TensorRT: on a CPU it is computed in float, and slowly. "
            "Quantize for a CPU target to run INT8 there."
        )
        return
    text = "FP16 is a storage format on a CPU: the file is smaller, and its numbers are turned to FP32 to compute."
    speedup = row.speedups.get(ONNX)
    if speedup is not None:
        text += f" It ran {speedup.ratio:.2f} times as fast as {ONNX}."
    yield f"{text} Gate and parity were judged with every value rounded to FP16, as a GPU rounds."
