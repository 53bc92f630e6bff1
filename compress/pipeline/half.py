"""FP16 in the report: on a CPU it makes the file smaller and nothing faster."""

from __future__ import annotations

from collections.abc import Iterator

from compress.artifact import Artifact
from compress.pipeline.measuring import ONNX
from compress.report import model as report
from compress.runtimes.target import Target


def half_findings(row: report.Row, artifact: Artifact | None, target: Target) -> Iterator[str]:
    """Yield what a reader must know of a row of FP16 on a CPU; nothing for other rows."""
    if artifact is None or "fp16" not in artifact.manifest.traits or target.device != "cpu" or row.status != "ok":
        return
    text = "FP16 is a storage format on a CPU: the file is smaller, and its numbers are turned to FP32 to compute."
    speedup = row.speedups.get(ONNX)
    if speedup is not None:
        text += f" It ran {speedup.ratio:.2f} times as fast as {ONNX}."
    yield f"{text} Gate and parity were judged with every value rounded to FP16, as a GPU rounds."
