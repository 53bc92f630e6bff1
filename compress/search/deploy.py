"""A torch model as it would be deployed, thrown away after it has been timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.bench.protocol import Emit, Measurement, MeasureSettings, Subject, measure, silent
from compress.bench.timing_statistics import ratio_of_totals
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError, RunError, UsageError
from compress.runtimes.base import runtimes
from compress.runtimes.target import Target
from compress.tasks.base import Task

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

Precision = Literal["fp32", "int8", "fp16"]
"""What a model is deployed in: as exported, quantized dynamically, or cast; each with the defaults of its pass."""


@dataclass(frozen=True)
class Speedup:
    """A candidate beside the dense model: total time of the dense one over its own, with a 95 % interval.

    Attributes:
        value, low, high: the ratio; 2.0 is twice as fast.
        ms: mean time of one example.
        dense_ms: the same of the dense model.
    """

    value: float
    low: float
    high: float
    ms: float
    dense_ms: float


def deploy(
    model: PreTrainedModel,
    tokenizer_folder: Path,
    task: Task,
    precision: Precision,
    out: Path,
    *,
    target: Target | None = None,
) -> Artifact:
    """Export a model and bring it to a precision, as the passes ``export`` and ``quantize`` or ``cast`` would.

    Args:
        model: pruned or not, on the CPU; left as it was.
        tokenizer_folder: a model folder: its configuration and tokenizer are copied.
        task: of the model.
        precision: fp32, int8 (dynamic) or fp16.
        out: the folder to write to; made if missing.
        target: where it will run, which decides the range of 8-bit weights; None = this machine.

    Returns:
        An artifact that can be measured. It has no golden outputs and no parents: it is not for delivery.

    Raises:
        RunError: the exporter or the quantizer failed.
    """
    import onnx

    from compress.export.companions import copy_companions
    from compress.export.onnx_clean import write_onnx
    from compress.export.onnx_export import export_onnx
    from compress.export.signature import describe, read_graph
    from compress.models.counting import count_parameters

    out.mkdir(parents=True, exist_ok=True)
    file = out / "model.onnx"
    notes = export_onnx(model, file, inputs=task.inputs(tokenizer_folder), metadata=describe(task.dump()))
    if precision != "fp32":
        converted, added = at_precision(onnx.load(file), precision, target)
        write_onnx(converted, file)
        notes |= added
    copy_companions(tokenizer_folder, out)
    return create_artifact(
        out,
        kind="onnx",
        task=task.dump(),
        traits=() if precision == "fp32" else (precision,),
        graphs={"model": read_graph(file)},
        parameters=count_parameters(model),
        made_by=PassRecord(name="deploy", version=1, config={"precision": precision}),
        notes=notes,
    )


def at_precision(
    model: onnx.ModelProto, precision: Precision, target: Target | None = None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a float32 graph at a precision, with the defaults of ``quantize`` and ``cast``, and their notes."""
    if precision == "int8":
        from compress.quantization.int8 import quantize_dynamic
        from compress.quantization.isa import reduced_range_for

        return quantize_dynamic(model, reduce_range=reduced_range_for(target)[0])
    if precision == "fp16":
        from compress.quantization.fp16 import cast_fp16

        return cast_fp16(model)
    return model, {}


def require_onnx_target(target: Target) -> None:
    """Check that models can be timed on a target here as ONNX files.

    Raises:
        UsageError: its runtime opens no ONNX files.
        MissingCapabilityError: it needs what is not here.
    """
    if target.runtime == "tensorrt":
        raise MissingCapabilityError(
            "Widths cannot be timed on TensorRT: an engine would have to be built on its GPU for every candidate.",
            value=target.name,
            fix="Search for ort-cpu-1t, or prune to `macs`; then `build` the engine and measure that.",
        )
    if "onnx" not in runtimes.get(target.runtime).kinds:
        raise UsageError(
            "A latency is searched for on a runtime that opens ONNX files.",
            value=f"{target.name} runs on {target.runtime}",
            fix="Use ort-cpu-1t, ort-cpu or openvino-cpu-1t as the target of the search.",
        )
    runtimes.get(target.runtime)().require(target)


def measure_speedup(
    candidates: Sequence[Artifact],
    dense: Artifact,
    encoded: Encoded,
    target: Target,
    *,
    work: Path,
    inputs: int = 64,
    rounds: int = 9,
    seconds: float = 60.0,
    batch_size: int = 1,
    seed: int = 0,
    emit: Emit = silent,
) -> list[Speedup]:
    """Time candidates and the dense model side by side on one target.

    Args:
        candidates: ONNX artifacts.
        dense: the FP32 ONNX artifact of the dense architecture, which all are compared with.
        encoded: the user's examples; ``inputs`` of them stand for their distribution of lengths.
        target: where they run.
        work: existing folder for intermediate files; they are removed.
        inputs: examples that are timed.
        rounds: passes over them, fewer when ``seconds`` are used up.
        seconds: time for the rounds of all models together.
        batch_size: examples that run together.
        seed: draws the order of the inputs, and the interval.
        emit: progress sink.

    Returns:
        One row per candidate, in their order.

    Raises:
        UsageError: the target opens no ONNX files.
        MissingCapabilityError: the target cannot run here.
        RunError: one of them could not be run.
    """
    require_onnx_target(target)
    chosen = encoded.select(spread_over_lengths(encoded.lengths, inputs))
    artifacts = {"dense": dense, **{f"candidate {i}": artifact for i, artifact in enumerate(candidates)}}
    rows = time_side_by_side(
        artifacts,
        chosen,
        target,
        work=work,
        rounds=rounds,
        seconds=seconds,
        batch_size=batch_size,
        seed=seed,
        emit=emit,
    )
    base, *others = rows
    dense_ms = _mean_ms(base, len(chosen))
    return [
        Speedup(*ratio_of_totals(base.samples_ms, row.samples_ms, seed=seed), _mean_ms(row, len(chosen)), dense_ms)
        for row in others
    ]


def time_side_by_side(
    artifacts: dict[str, Artifact],
    encoded: Encoded,
    target: Target,
    *,
    work: Path,
    rounds: int,
    seconds: float,
    batch_size: int = 1,
    warmup_seconds: float = 0.3,
    seed: int = 0,
    emit: Emit = silent,
) -> list[Measurement]:
    """Time every artifact on all of the examples, in interleaved rounds; one row per artifact.

    Raises:
        RunError: one of them could not be run.
    """
    settings = MeasureSettings(
        inputs=len(encoded),
        launches=1,
        rounds=rounds,
        precision=None,
        seconds=seconds,
        end_to_end=False,
        warmup_seconds=warmup_seconds,
    )
    subjects = [Subject(label, artifact, encoded, target) for label, artifact in artifacts.items()]
    rows = measure(
        subjects, settings=settings, work=work, seed=seed, latency_only=True, batch_size=batch_size, emit=emit
    )
    for row in rows:
        if row.status != "ok":
            raise RunError(
                f"A model could not be timed on {target.name!r}.",
                value=f"{row.subject}: {row.reason}",
                fix="Free memory or raise the target's limit; use another target if its runtime rejects the graph.",
            )
    return rows


def spread_over_lengths(lengths: np.ndarray, count: int) -> list[int]:
    """Return examples that stand for all: the middle ones of ``count`` equal parts of the order by length.

    Args:
        lengths: (n,) tokens of each example.
        count: how many to choose; all of them where there are fewer.
    """
    order = np.argsort(lengths, kind="stable")
    count = min(count, len(order))
    return [int(order[int((i + 0.5) * len(order) / count)]) for i in range(count)]


def _mean_ms(row: Measurement, examples: int) -> float:
    """Return the mean time of one example, over all rounds."""
    rounds = sum(len(launch) for launch in row.samples_ms)
    return float(row.flat_ms.sum()) / (rounds * examples)
