"""Sensitivity to INT8: of a model that a command names, and as the steps of a run put it on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.artifact import MANIFEST, Artifact, open_artifact
from compress.data.calibration import stratified_indices, stratum
from compress.data.sources import read_rows
from compress.errors import DataError, ModelError
from compress.passes.base import Progress
from compress.pipeline.folder import RUN_FILE, find_artifact, split_step
from compress.pipeline.onnx_files import only_step
from compress.pipeline.picking import file_of
from compress.pipeline.public import public_path
from compress.pipeline.running import RunState
from compress.quantization.sensitivity import Probe, Sensitivity, measure_sensitivity, noise_shares
from compress.report import model as report
from compress.runtimes.base import runtimes
from compress.runtimes.target import find_target
from compress.store import Store
from compress.tasks.base import Row, Task, task_from

if TYPE_CHECKING:
    import onnx

    from compress.quantization.ranges import Range
    from compress.quantization.rules import Placement

Method = Literal["dynamic", "static"]
_RUNTIME = "onnxruntime"
_CALIBRATED = 128
"""Further examples, at most, that static ranges are taken from."""


def sensitivity_records(state: RunState) -> Iterator[report.SensitivityRecord]:
    """Yield a record for every finished step whose artifact's notes hold ``sensitivity``, in the order of the plan.

    The notes are a list of what ``compress.quantization.sensitivity.sensitivity_notes`` returns, and may have
    ``sensitivity_examples`` and ``sensitivity_together_db`` beside it.
    """
    for step in state.plan.steps:
        outcome = state.outcomes[step.id]
        if outcome.status != "done" or outcome.artifact is None:
            continue
        notes = outcome.artifact.manifest.notes
        if not notes.get("sensitivity"):
            continue
        plain = [{key: value for key, value in row.items() if key != "excluded"} for row in notes["sensitivity"]]
        excluded = {row["node"]: row.get("excluded", "") for row in notes["sensitivity"]}
        yield _record(
            step.id,
            [Sensitivity(**row) for row in plain],
            excluded,
            notes.get("sensitivity_examples"),
            notes.get("sensitivity_together_db"),
        )


def analyse(
    source: str,
    data: Path | None,
    *,
    samples: int,
    tensors: bool = False,
    method: Method = "dynamic",
    store: Store,
    emit: Progress,
) -> report.SensitivityRecord:
    """Measure how sensitive the products of a float model are to INT8 in ONNX Runtime, with this machine's weights.

    Args:
        source: a float artifact, ONNX or torch, or ``RUN:STEP``; or a run that made one float ONNX artifact only.
        data: a file of rows, or a folder of which the validation file is read; None = built-in examples.
        samples: rows to run, drawn by label with a fixed seed; all if there are fewer.
        tensors: whether to tell activation and weight of each linear layer apart.
        method: activations' ranges at run time, or from further rows: of the folder's train file, or of the file.
        store: where the steps of a run are; its folder holds temporary files.
        emit: progress sink.

    Raises:
        ModelError: the artifact is quantized, cast, or of another kind.
        DataError: a row cannot be read, or none is left to calibrate on.
        UsageError: the run has no such step, or several that could be meant; nothing could be quantized.
        MissingCapabilityError: ONNX Runtime is not installed.
    """
    runtimes.get(_RUNTIME)().require(find_target("ort-cpu-1t"))
    artifact = _float_artifact(source, store)
    task = task_from(artifact.manifest.task)
    rows, further = _rows(task, artifact.path, data, samples, calibrate=method == "static")
    with store.workspace() as work:
        model = _graph(artifact, task, work / "onnx", emit)
        placements = _placements(model, source)
        ranges = _ranges(model, placements, task, artifact.path, further, emit) if method == "static" else None
        probe = _probe(model, task, artifact.path, rows, ranges)
        found = measure_sensitivity(probe, placements, tensors=tensors, emit=emit)
        emit("measuring all together")
        together = probe.effect(placements)
    return _record(public_path(source), found, {}, len(rows), together.sqnr_db)


def _record(
    step: str, rows: Sequence[Sensitivity], excluded: Mapping[str, str], examples: int | None, together: float | None
) -> report.SensitivityRecord:
    return report.SensitivityRecord(
        step=step,
        rows=tuple(
            report.Sensitivity(
                node=row.node,
                operator=row.operator,
                sqnr_db=row.sqnr_db,
                kl=row.kl,
                drop_points=row.drop_points,
                macs_share=row.macs_share,
                noise_share=noise,
                activation_sqnr_db=row.activation_sqnr_db,
                weight_sqnr_db=row.weight_sqnr_db,
                excluded=excluded.get(row.node, ""),
            )
            for row, noise in zip(rows, noise_shares(rows), strict=True)
        ),
        examples=examples,
        together_db=together,
    )


def _float_artifact(source: str, store: Store) -> Artifact:
    """Open what a command names, and refuse what has no float32 weights to compare with."""
    folder, step = split_step(source)
    if step:
        artifact = find_artifact(folder, step, store)
    elif (folder / RUN_FILE).is_file() and not (folder / MANIFEST).is_file():
        artifact = only_step(folder, store, _is_float_onnx, "float ONNX", "one that made a torch model")
    else:
        artifact = open_artifact(folder)
    done = [name for name in ("int8", "int4", "fp16", "bf16") if name in artifact.traits]
    if done or artifact.kind not in ("onnx", "torch"):
        what = f"it is {done[0].upper()} already" if done else f"it is of the kind {artifact.kind}"
        raise ModelError(
            f"Sensitivity is measured on the float32 model, and this is another one: {what}.",
            value=source,
            fix="Give the ONNX or torch artifact that it was made from; RUN:STEP names a step of a run.",
        )
    return artifact


def _is_float_onnx(artifact: Artifact) -> bool:
    return artifact.kind == "onnx" and not {"int8", "int4", "fp16", "bf16"} & artifact.traits


def _rows(
    task: Task, folder: Path, data: Path | None, samples: int, *, calibrate: bool
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the rows to measure on and, for ranges, other ones."""
    if data is None:
        rows = list(task.golden_rows(folder))
        return rows, rows
    read: dict[str, Any] = {
        "text_columns": task.columns,
        "problem": str(task.dump().get("problem", "single_label")),
    }
    rows = read_rows(file_of(data, "validation") or data, **read)
    chosen = set(stratified_indices([stratum(row) for row in rows], min(samples, len(rows)), 0))
    measured = [row for i, row in enumerate(rows) if i in chosen]
    if not calibrate:
        return measured, []
    train = file_of(data, "train")
    further = read_rows(train, **read) if train else [row for i, row in enumerate(rows) if i not in chosen]
    if not further:
        raise DataError(
            "No row is left to take static ranges from.",
            value=f"{len(rows)} rows, all of them measured",
            fix="Lower --samples, give a folder with a train file, or use `--method dynamic`.",
        )
    drawn = stratified_indices([stratum(row) for row in further], min(_CALIBRATED, len(further)), 0)
    return measured, [further[i] for i in drawn]


def _graph(artifact: Artifact, task: Task, work: Path, emit: Progress) -> onnx.ModelProto:
    """Load the ONNX graph of an artifact; a torch model is exported first."""
    import onnx

    if artifact.kind == "onnx":
        return onnx.load(artifact.file())
    from compress.models.loading import load_torch
    from compress.search.deploy import deploy

    emit("exporting to ONNX")
    return onnx.load(deploy(load_torch(artifact.path, task), artifact.path, task, "fp32", work).file())


def _placements(model: onnx.ModelProto, source: str) -> list[Placement]:
    """Place the products by the rules of ONNX Runtime."""
    from compress.export.signature import traits_of
    from compress.quantization.rules import place, rules_for

    placements = place(model, rules_for(_RUNTIME))
    if traits_of(model) or not any(it.precision == "int8" for it in placements):
        raise ModelError(
            "The graph has no linear layer or table in float32 that could run in INT8.",
            value=source,
            fix="Give the float model of a transformer; convolutions are not analysed.",
        )
    return placements


def _ranges(
    model: onnx.ModelProto,
    placements: Sequence[Placement],
    task: Task,
    folder: Path,
    rows: Sequence[Row],
    emit: Progress,
) -> dict[str, Range]:
    from compress.quantization.calibration import calibrate
    from compress.quantization.rules import quantized_inputs

    emit(f"taking ranges from {len(rows)} examples")
    tensors = quantized_inputs(placements)
    return calibrate(model, task.encode(folder, rows), tensors, histograms=False).ranges("minmax")


def _probe(
    model: onnx.ModelProto, task: Task, folder: Path, rows: Sequence[Row], ranges: Mapping[str, Range] | None
) -> Probe:
    from compress.quantization.isa import reduced_range_for
    from compress.quantization.writing import Int8Format

    bits: Literal[7, 8] = 7 if reduced_range_for(None)[0] else 8
    how = Int8Format("integer" if ranges is None else "qdq", weight_bits=bits)
    return Probe(model, task.encode(folder, rows), ranges=ranges, how=how, task=task)
