"""``mcompress ingest``: take a kit's result into the report of the run that the kit was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import hash_json
from compress.bench.measurement import Measurement
from compress.disk import write_atomically
from compress.errors import CompressError, UsageError
from compress.kit.result import ModelResult, Result, check_against_kit, read_result
from compress.kit.writing import KITS
from compress.pipeline.cards import write_cards
from compress.pipeline.costs import costs_of
from compress.pipeline.measuring import ONNX, Baseline
from compress.pipeline.rows import mark_pareto
from compress.pipeline.scores import accuracy_of, difference
from compress.pipeline.timings import latency_of, speedup_over
from compress.quantization.isa import isa_name
from compress.report import model as report
from compress.report.files import read_report, write_report
from compress.runtimes.target import Target
from compress.tasks.base import Score, Task, task_from

INGESTED = "ingested"
"""Folder of a run that keeps the results: a rerun takes them in again."""
LIMIT = (
    "Ingested rows were measured by a kit on another machine: compare them with one another, not with rows from here."
)
_LABELS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "torch": "torch"}
_GPU = re.compile(r"cuda|tensorrt|gpu|rocm|migraphx", re.IGNORECASE)


@dataclass(frozen=True)
class _Memory:
    """What a run remembers of a kit: enough to score a result without data and artifacts."""

    kit: Mapping[str, Any]
    task: Task
    reference: str
    targets: np.ndarray | None
    outputs: np.ndarray | None


def ingest(source: Path, run: Path, *, name: str | None = None) -> tuple[report.Report, str]:
    """Validate a result and put its rows, graded ``ingested``, into a run's report, its renderings and its cards.

    A result of the same device, runtime and number of threads replaces the earlier one.

    Args:
        source: result.json of a kit.
        run: the run folder that the kit was made from.
        name: what the report calls the device; None = as the result says.

    Returns:
        The new report, and the name of the target that the rows are on.

    Raises:
        UsageError: the result is malformed, of another kit, or its artifacts are not those of the report.
    """
    record = read_report(run)
    result = read_result(source, device=name)
    merged, target = _merge(record, result, run)
    kept = run / INGESTED / f"{re.sub(r'[^a-z0-9]+', '-', target)}-{hash_json(target)[:8]}.json"
    write_atomically(kept, result.model_dump_json() + "\n")
    write_report(merged, run)
    write_cards(merged, run)
    return merged, target


def reapply(run: Path) -> list[str]:
    """Take the kept results into a report that was just written; return a sentence for each that no longer fits.

    The sentences also stand in the report's limits.
    """
    record, dropped = read_report(run), []
    for file in sorted((run / INGESTED).glob("*.json")):
        try:
            record, _ = _merge(record, read_result(file), run)
        except CompressError as error:
            dropped.append(f"The ingested result {file.name} was left out: {error.what} {error.value}".strip())
    record = record.model_copy(update={"limits": (*record.limits, *dropped)})
    write_report(record, run)
    return dropped


def _merge(record: report.Report, result: Result, run: Path) -> tuple[report.Report, str]:
    memory = _recall(run, result.kit)
    width = None if memory.outputs is None else int(np.prod(memory.outputs.shape[1:]))
    check_against_kit(result, memory.kit, width)
    digests = {step.id: step.digest for step in record.steps}
    for model in result.models:
        if digests.get(model.name) != model.digest:
            raise UsageError(
                f"Step {model.name!r} of the report is another artifact than the one that was measured.",
                value=f"{model.digest[:12]}, in the report {(digests.get(model.name) or 'none')[:12]}",
                fix="Write the kit again (`mcompress kit`) and run it again.",
            )
    target = _target_record(result)
    previous = next((it for it in record.targets if it.name == target.name), None)
    if previous is not None and previous.evidence != "ingested":
        raise UsageError(
            "The report has a target of that name already, and it is not an ingested one.",
            value=target.name,
            fix="Choose another name: `mcompress ingest ... --name NAME`.",
        )
    rows, baselines = _rows(record, result, memory, target)
    others = {key: it for key, it in record.baselines.items() if it.target != target.name}
    changes = {
        "targets": (*(it for it in record.targets if it.name != target.name), target),
        "rows": (*(it for it in record.rows if it.target != target.name), *rows),
        "baselines": others | {key: it for key, it in baselines.items() if key not in others},
        "limits": record.limits if LIMIT in record.limits else (*record.limits, LIMIT),
    }
    return report.Report.model_validate(record.model_copy(update=changes).model_dump()), target.name


def _recall(run: Path, digest: str) -> _Memory:
    place = run / KITS / digest[:16]
    try:
        plain = json.loads((place / "kit.json").read_text(encoding="utf-8"))
        with np.load(place / "answers.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        task, known = task_from(plain["task"]), plain["kit"]["digest"]
    except Exception as error:  # an archive of numpy, JSON and a task, each with errors of its own
        raise _another_run(digest) from error
    if known != digest:
        raise _another_run(digest)
    return _Memory(plain["kit"], task, plain["reference"], arrays.get("targets"), arrays.get("reference"))


def _another_run(digest: str) -> UsageError:
    return UsageError(
        "The result is of a kit that was not made from this run.",
        value=f"kit {digest[:12]}",
        fix="Name the run that the kit was made from (`--into RUN`), or write the kit again.",
    )


def _target_record(result: Result) -> report.TargetRecord:
    runtime, machine, state = result.runtime, result.environment, result.state
    where = runtime.provider.removesuffix("ExecutionProvider").lower()
    on_gpu = runtime.backend == "tensorrt" or bool(_GPU.search(runtime.provider))
    device = re.sub(r"[^\w.]+", "-", result.device.lower()).strip("-")[:40] or "device"
    words = [runtime.backend, where if where != "cpu" else "", "" if on_gpu else f"{runtime.threads}t"]
    notes = {
        "architecture": machine.architecture,
        "governor": machine.governor or "not readable",
        "measured": result.created,
        "temperature": _span(state.before.celsius, state.after.celsius, "°C"),
        "clock": _span(state.before.mhz, state.after.mhz, "MHz"),
        "load": _span(state.before.load, state.after.load, ""),
        "GPU before and after": f"{state.before.gpu} / {state.after.gpu}" if state.before.gpu else "not readable",
    }
    return report.TargetRecord(
        name=f"{device}/{'-'.join(filter(None, words))}",
        description=f"{result.device}, measured there by a kit",
        runtime=runtime.backend,
        device="cuda" if on_gpu else "cpu",
        threads=None if on_gpu else runtime.threads,
        evidence="ingested",
        environment=report.Environment(
            cpu=machine.cpu,
            flags=tuple(machine.flags),
            cores=machine.cores,
            memory_bytes=machine.memory_bytes,
            gpu=machine.gpu,
            os=machine.os,
            python=machine.python,
            packages=machine.packages,
            warnings=tuple(dict.fromkeys(warning for model in result.models for warning in model.warnings)),
            notes=notes,
        ),
    )


def _span(before: float | None, after: float | None, unit: str) -> str:
    if before is None or after is None:
        return "not readable"
    return f"{before:g} → {after:g} {unit}".strip()


def _rows(
    record: report.Report, result: Result, memory: _Memory, target: report.TargetRecord
) -> tuple[Sequence[report.Row], dict[str, report.Baseline]]:
    place = Target(
        name=target.name,
        runtime=target.runtime,
        device="cuda" if target.device == "cuda" else "cpu",
        threads=target.threads,
        evidence="ingested",
    )
    models = {model["name"]: model for model in memory.kit["models"]}
    measured = {it.name: _measurement(it, models[it.name], result, memory, place) for it in result.models}
    plain = record.baselines[ONNX].step if ONNX in record.baselines else ""
    baselines = {}
    if plain in measured and measured[plain].status == "ok":
        same = result.runtime.backend == "onnxruntime" and place.device == "cpu"
        name = ONNX if same else f"{_LABELS[result.runtime.backend]} FP32 ({target.name.partition('/')[0]})"
        baselines[name] = Baseline(name, plain, place)
    rows = []
    for step, m in measured.items():
        known = next((row for row in record.rows if row.step == step and row.evidence != "ingested"), None)
        ratios = {name: speedup_over(b, measured[b.step], m) for name, b in baselines.items()}
        rows.append(
            report.Row(
                step=step,
                target=target.name,
                status=m.status,
                reason=m.reason,
                evidence="ingested",
                isa=isa_name(result.environment.flags, result.environment.architecture)
                if place.device == "cpu"
                else None,
                deliverable=known.deliverable if known else False,
                family=known.family if known else None,
                latency=latency_of(m),
                speedups={name: ratio for name, ratio in ratios.items() if ratio is not None},
                **costs_of(m),
                **_accuracy(memory, m),
                warnings=tuple(m.warnings),
                not_measured={"throughput": "a kit times one input after another"} if m.status == "ok" else {},
            )
        )
    return mark_pareto(rows), {n: report.Baseline(step=b.step, target=b.target.name) for n, b in baselines.items()}


def _measurement(
    model: ModelResult, known: Mapping[str, Any], result: Result, memory: _Memory, place: Target
) -> Measurement:
    warnings = list(model.warnings)
    if model.golden_max_abs:
        warnings.append(f"golden outputs differ by at most {model.golden_max_abs:.2g} from those of the kit")
    return Measurement(
        subject=model.name,
        target=place.name,
        status=model.status,
        reason=model.reason,
        evidence="ingested",
        digest=model.digest,
        size_bytes=known["size_bytes"],
        parameters=known["parameters"],
        runtime_version=result.runtime.version,
        threads=result.runtime.threads,
        samples_ms=model.samples_ms,
        input_indices=memory.kit["sequence"] if model.status == "ok" else [],
        load_ms=model.load_ms,
        first_ms=model.first_ms,
        import_rss_bytes=model.import_rss_bytes,
        peak_rss_bytes=model.peak_rss_bytes,
        warnings=warnings,
        outputs=None if model.outputs is None else np.asarray(model.outputs, dtype=np.float32),
    )


def _accuracy(memory: _Memory, m: Measurement) -> dict[str, Any]:
    """Score the outputs, and pair them with the reference's on the same examples."""
    if m.outputs is None or memory.targets is None:
        return {}
    score: Score = memory.task.score(m.outputs, memory.targets)
    fields: dict[str, Any] = {"accuracy": accuracy_of(score, m.outputs)}
    if memory.outputs is not None:
        base = memory.task.score(memory.outputs, memory.targets)
        fields["difference"] = difference(memory.reference, base, score)
        fields["agreement"] = float(memory.task.agree(memory.outputs, m.outputs).mean())
    return fields
