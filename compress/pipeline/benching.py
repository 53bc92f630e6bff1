"""Measure artifact folders side by side, outside of any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compress.artifact import Artifact, open_artifact
from compress.bench.protocol import Measurement, Subject, fits, measure
from compress.bench.settings import MeasureSettings
from compress.bench.statistics import paired_difference
from compress.data.sources import read_rows
from compress.errors import UsageError, did_you_mean
from compress.passes.base import Progress
from compress.pipeline.costs import missing_of
from compress.pipeline.emulated import part_of
from compress.pipeline.measuring import Baseline
from compress.pipeline.scenarios import scenarios_of
from compress.pipeline.scores import accuracy_of
from compress.pipeline.throughput import throughputs_of
from compress.pipeline.timings import end_to_end_of, latency_of, speedups_of
from compress.report.frozen import Speedup, Unit
from compress.report.measured_model import Scenario, ScenarioResult, ThroughputPoint
from compress.runtimes.target import Target, find_target, find_targets
from compress.store import Store
from compress.tasks.base import Score, Task, task_from

_OWN_TARGET = {"torch": "torch-cpu-1t", "onnx": "ort-cpu-1t", "openvino": "openvino-cpu-1t", "tensorrt": "tensorrt"}


class BenchRow(BaseModel):
    """One artifact on one target; differences are against the first row, speed-ups against the first of its group.

    Shares and differences of them are fractions; ``speedup_text`` is "faster", "slower" or "no difference".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str
    target: str
    status: str
    reason: str = ""
    size_mb: float
    metric: str | None = None
    unit: Unit = "percent"
    direction: Literal["higher", "lower"] = "higher"
    value: float | None = None
    value_low: float | None = None
    value_high: float | None = None
    n: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p50_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_text: str = ""
    end_to_end_ms: float | None = None
    end_to_end_speedup: float | None = None
    end_to_end_speedup_low: float | None = None
    end_to_end_speedup_high: float | None = None
    end_to_end_speedup_text: str = ""
    throughput_per_s: float | None = None
    throughputs: tuple[ThroughputPoint, ...] = ()
    scenarios: tuple[ScenarioResult, ...] = ()
    not_measured: dict[str, str] = {}
    peak_rss_bytes: int | None = None
    warnings: list[str] = []


def bench_artifacts(
    folders: Sequence[Path],
    data: Path,
    targets: Sequence[str],
    *,
    inputs: int,
    rounds: int,
    emit: Progress,
    scenarios: Sequence[str] = (),
    server_latency_ms: float | None = None,
) -> list[BenchRow]:
    """Measure artifacts on the same examples, interleaved in one run.

    Args:
        folders: artifact folders, all of the same task; the first is the baseline.
        data: one labelled file with the task's columns.
        targets: names or YAML paths; empty = each artifact's usual CPU target.
        inputs, rounds: size of the timed sequence and most passes over it, per launch.
        scenarios: MLPerf-style scenarios to run with LoadGen.
        server_latency_ms: what the server scenario's 99th percentile must keep; None = derived.

    Raises:
        UsageError: no such target or scenario, a bound without its scenario, tasks differ, or nothing fits the targets.
    """
    settings = MeasureSettings(
        inputs=inputs, rounds=rounds, scenarios=_scenarios(scenarios), server_latency_ms=server_latency_ms
    )
    if server_latency_ms is not None and "server" not in settings.scenarios:
        raise UsageError(
            "The server scenario is not asked for, so it has no bound.",
            value=f"server_latency_ms {server_latency_ms:g}",
            fix="Add it: `--scenarios server`, or leave the bound out.",
        )
    artifacts = [(_name(folder, folders), open_artifact(folder)) for folder in folders]
    task = task_from(artifacts[0][1].manifest.task)
    for name, artifact in artifacts[1:]:
        other = task_from(artifact.manifest.task)
        if (other.name, other.labels) != (task.name, task.labels):
            raise UsageError(
                "The artifacts do not answer the same question.",
                value=f"{name}: {other.name}, labels {', '.join(other.labels[:5])}",
                fix="Compare artifacts of one task with the same labels.",
            )
    rows = read_rows(data, text_columns=task.columns, problem=str(task.dump().get("problem", "single_label")))
    wanted = find_targets(targets)
    subjects = [
        Subject(name, artifact, task_from(artifact.manifest.task).encode(artifact.path, rows), target, rows)
        for name, artifact in artifacts
        for target in (wanted or [_own_target(artifact)])
        if fits(artifact.kind, target)
    ]
    if not subjects:
        raise UsageError(
            "No artifact fits any of the targets.", value=", ".join(targets), fix="See `mcompress ls targets`."
        )
    with Store.default().workspace() as work:
        measured = measure(subjects, settings=settings, work=work, emit=emit)
    answers = subjects[0].encoded.targets
    groups = [
        (s.target.device, s.target.emulate, m.threads, s.target.isa) for s, m in zip(subjects, measured, strict=True)
    ]
    return [
        _row(m, measured[0], measured[groups.index(group)], subjects[groups.index(group)].target, task, answers)
        for m, group in zip(measured, groups, strict=True)
    ]


def _row(m: Measurement, base: Measurement, beside: Measurement, target: Target, task: Task, answers: Any) -> BenchRow:
    """Compare accuracy with ``base``, and speed with ``beside``: the first row of the same group, on ``target``."""
    score, first, second = _score(m, task, answers), _score(base, task, answers, m), _score(m, task, answers, base)
    fields: dict[str, Any] = {}
    if score is not None:
        accuracy = accuracy_of(score)
        fields |= {"metric": score.metric, "unit": accuracy.unit, "direction": score.direction, "value": score.value}
        fields |= {"value_low": accuracy.low, "value_high": accuracy.high, "n": len(score.outcomes)}
    if first is not None and second is not None and m is not base:
        paired = paired_difference(first.outcomes, second.outcomes)
        fields |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
    place = Baseline(beside.subject, beside.subject, target)
    cells = {} if m is beside else {(beside.subject, target.name): beside}
    latency, whole = latency_of(m), end_to_end_of(m, [place], cells)
    if latency is not None:
        fields |= {"p50_ms": latency.p50_ms} | _ratio("speedup", speedups_of(m, [place], cells))
    if whole is not None:
        fields |= {"end_to_end_ms": whole.latency.p50_ms} | _ratio("end_to_end_speedup", whole.speedups)
    return BenchRow(
        artifact=m.subject,
        target=m.target,
        status=m.status,
        reason=m.reason,
        size_mb=m.size_bytes / 1e6,
        throughput_per_s=m.throughput_per_s,
        throughputs=throughputs_of(m),
        scenarios=scenarios_of(m),
        not_measured=missing_of(m),
        peak_rss_bytes=m.peak_rss_bytes,
        warnings=m.warnings,
        **fields,
    )


def _scenarios(names: Sequence[str]) -> list[Scenario]:
    known: list[Scenario] = ["single-stream", "offline", "server"]
    for name in names:
        if name not in known:
            raise UsageError(f"Unknown scenario {name!r}.", fix=did_you_mean(name, known))
    return [name for name in known if name in names]


def _ratio(name: str, speedups: Mapping[str, Speedup]) -> dict[str, Any]:
    """Return the fields of the one ratio there is, if any."""
    for it in speedups.values():
        return {name: it.ratio, f"{name}_low": it.low, f"{name}_high": it.high, f"{name}_text": it.text}
    return {}


def _score(m: Measurement, task: Task, answers: Any, like: Measurement | None = None) -> Score | None:
    """Score a measurement, on the examples of ``like`` if it ran no more than a part of them."""
    if m.outputs is None or answers is None:
        return None
    if like is not None and like.examples is not None and m.examples is None:
        return task.score(part_of(m.outputs, like), part_of(answers, like))
    return task.score(m.outputs, part_of(answers, m))


def _own_target(artifact: Artifact) -> Target:
    return find_target(_OWN_TARGET[artifact.kind])


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name, with its parent's where two folders share it."""
    name = folder.resolve().name
    twins = sum(other.resolve().name == name for other in folders)
    return name if twins == 1 else f"{folder.resolve().parent.name}/{name}"
