"""Turn a run and its measurements into the report: every number of it is computed here, once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress import __version__
from compress.artifact import Artifact
from compress.bench.environment import environment
from compress.data.config import Source
from compress.models.remote_code import CUSTOM_CODE
from compress.pipeline.checking import GateResult
from compress.pipeline.emulated import environment_of
from compress.pipeline.engines import engine_records
from compress.pipeline.examples import changed_examples
from compress.pipeline.gpu import state_in_words
from compress.pipeline.int8 import int8_searches
from compress.pipeline.measuring import Measured
from compress.pipeline.planning import SOURCE
from compress.pipeline.provenance import reproduce
from compress.pipeline.public import public_path
from compress.pipeline.rows import build_rows
from compress.pipeline.running import RunState, StepOutcome
from compress.pipeline.scores import PERCENT
from compress.pipeline.searches import latency_searches, widths
from compress.pipeline.sensitivities import sensitivity_records
from compress.pipeline.stages import stages
from compress.pipeline.students import student_matches
from compress.pipeline.verdict import choose
from compress.report import model as report
from compress.runtimes.base import runtimes
from compress.runtimes.target import Target


def summarise(state: RunState, measured: Measured, command: str, *, examples: bool = False) -> report.Report:
    """Build the report of a run.

    Args:
        state: the finished steps.
        measured: what the bench found.
        command: the command line that repeats the run, without machine paths.
        examples: whether the texts of examples with a changed answer may stand in it.
    """
    recipe = state.recipe
    rows = build_rows(state, measured)
    verdict = choose(state, measured, rows)
    return report.Report(
        version=__version__,
        title=recipe.description or recipe.name,
        recipe=recipe.name,
        created=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict,
        subject=_subject(state),
        steps=tuple(_steps(state)),
        data=_data(state, measured.split),
        targets=tuple(_target(target, measured) for target in measured.targets),
        rows=tuple(rows),
        stages=tuple(stages(state, measured, rows, verdict)),
        searches=tuple(latency_searches(state, measured)),
        int8=tuple(int8_searches(state)),
        engines=tuple(engine_records(state)),
        students=tuple(student_matches(state, measured)),
        sensitivities=tuple(sensitivity_records(state)),
        baselines=_baseline_records(measured),
        environment=_environment(measured),
        reproduce=reproduce(state, command),
        examples=changed_examples(state, measured, rows, verdict) if examples else (),
        limits=tuple(_limits(state, measured)),
    )


def _subject(state: RunState) -> report.Subject:
    reference = state.artifact(state.plan.reference)
    manifest = reference.manifest if reference else None
    name = state.recipe.model
    notes = () if name else ("made by the recipe itself from a fresh encoder",)
    return report.Subject(
        model=public_path(name) if name else f"step {state.plan.reference!r} of the recipe",
        hub=_hub_model(state),
        digest=manifest.digest if manifest else "",
        task=state.task.name,
        problem=str(state.task.dump().get("problem", "")),
        labels=len(state.task.labels),
        parameters=manifest.parameters if manifest else None,
        size_bytes=reference.size_bytes if reference else None,
        notes=(*notes, *_precision(reference), *_own_code(reference)),
    )


def _hub_model(state: RunState) -> str | None:
    """Return what was fetched: a name that is no place on this machine."""
    name = state.recipe.expand(state.recipe.model or "")
    return name if name and not Path(name).expanduser().exists() else None


def _hub_data(state: RunState, split: str) -> str | None:
    source = getattr(state.recipe.data, split, None)
    if isinstance(source, Source) and source.from_:
        source = state.recipe.data.train
    return source.hub if isinstance(source, Source) else None


def _steps(state: RunState) -> Iterable[report.Step]:
    if SOURCE in state.outcomes:
        yield _step(SOURCE, "model", {}, {}, state.outcomes[SOURCE])
    for planned in state.plan.steps:
        config = planned.config.model_dump(mode="json")
        yield _step(planned.id, planned.pass_.name, dict(planned.parents), config, state.outcomes[planned.id])


def _step(id_: str, name: str, parents: dict[str, str], config: dict[str, Any], outcome: StepOutcome) -> report.Step:
    artifact = outcome.artifact
    manifest = artifact.manifest if artifact else None
    return report.Step(
        id=id_,
        name=name,
        parents=parents,
        config=config,
        status=outcome.status,
        reason=outcome.reason,
        kind=artifact.kind if artifact else None,
        traits=manifest.traits if manifest else (),
        digest=manifest.digest if manifest else None,
        cached=outcome.cached,
        seconds=round(outcome.seconds, 3) or None,
        size_bytes=artifact.size_bytes if artifact else None,
        parameters=manifest.parameters if manifest else None,
        macs=manifest.macs if manifest else None,
        parity=_parity(parents.get("model", ""), outcome),
        gates=tuple(_gate(gate) for gate in outcome.gates),
        widths=widths(manifest.notes) if manifest else None,
        notes={**(manifest.notes if manifest else {}), **_parity_note(outcome)},
    )


def _precision(reference: Artifact | None) -> tuple[str, ...]:
    if reference is None or reference.kind != "torch":
        return ()
    return ("weights are loaded and measured as float32, whatever they were stored in",)


def _own_code(reference: Artifact | None) -> tuple[str, ...]:
    if reference is None or CUSTOM_CODE not in reference.traits:
        return ()
    return (
        "its classes are Python code of its author, which this run was told to trust: it ran with the user's rights, "
        "in no sandbox",
    )


def _parity_note(outcome: StepOutcome) -> dict[str, str]:
    return {"parity": outcome.parity_reason} if outcome.parity_reason else {}


def _parity(parent: str, outcome: StepOutcome) -> report.Parity | None:
    parity = outcome.parity
    if parity is None:
        return None
    return report.Parity(
        reference=parent,
        samples=parity.samples,
        max_abs=parity.max_abs,
        mean_abs=parity.mean_abs,
        cosine=parity.cosine,
        agreement=parity.agreement,
        tolerance=parity.tolerance,
        verdict=None if not parity.tolerance else "pass" if parity.ok else "fail",
    )


def _gate(gate: GateResult) -> report.Gate:
    percent = gate.metric in PERCENT
    scale = 100.0 if percent else 1.0
    words = {"pass": "holds", "fail": "fails", "unresolved": f"not resolvable at N = {gate.n}"}[gate.verdict]
    return report.Gate(
        metric=gate.metric,
        unit="percent" if percent else "plain",
        limit=gate.limit,
        baseline=gate.baseline,
        value=gate.value,
        points=scale * gate.delta,
        low=scale * gate.low,
        high=scale * gate.high,
        n=gate.n,
        verdict=gate.verdict,
        delivered=gate.delivered,
        text=f"{words}: the estimate {'is within' if gate.delivered else 'breaks'} the limit"
        if gate.verdict == "unresolved"
        else words,
    )


def _data(state: RunState, split: str) -> report.Data:
    data = state.data
    calibration = len(data["calibration"]) if "calibration" in data else None
    return report.Data(
        synthetic=data.synthetic,
        evaluated=split,
        preprocessing=state.task.preprocessing,
        problem=str(state.task.dump().get("problem", "")),
        splits=tuple(
            report.SplitRecord(
                name=s.name, source=public_path(s.source), hub=_hub_data(state, s.name), rows=len(s), digest=s.digest
            )
            for s in data.splits.values()
        ),
        overlaps=tuple(
            report.OverlapRecord(first=o.first, second=o.second, count=o.count, action=o.action) for o in data.overlaps
        ),
        calibration=None
        if calibration is None
        else report.Calibration(asked=int(data.notes.get("calibration_asked", calibration)), used=calibration),
        notes=tuple(f"{count:,} rows dropped from {name}" for name, count in data.notes.get("dropped", {}).items()),
    )


def _target(target: Target, measured: Measured) -> report.TargetRecord:
    available = runtimes.get(target.runtime)().available(target)
    return report.TargetRecord(
        name=target.name,
        description=target.description,
        runtime=target.runtime,
        device=target.device,
        threads=target.threads,
        memory_bytes=target.memory_bytes,
        isa=target.isa,
        evidence=target.evidence,
        available=available.ok,
        reason=available.reason,
        environment=environment_of(target, measured.measurements),
    )


def _baseline_records(measured: Measured) -> dict[str, report.Baseline]:
    out: dict[str, report.Baseline] = {}
    for group in measured.baselines.values():
        for baseline in group:
            out.setdefault(baseline.name, report.Baseline(step=baseline.step, target=baseline.target.name))
    return out


def _environment(measured: Measured) -> report.Environment:
    found = environment()
    cpu, system = found["cpu"], found["system"]
    notes = {"architecture": cpu["architecture"], "governor": cpu["governor"] or "not readable"}
    if found["gpus"]:
        notes["GPU driver"] = found["gpus"][0]["driver"]
    if words := state_in_words(measured.measurements):
        notes["GPU while measuring"] = words
    if system["container"]["in_container"]:
        notes["container"] = "yes"
    return report.Environment(
        cpu=cpu["model"],
        flags=tuple(cpu["flags"]),
        cores=cpu["usable_cores"],
        memory_bytes=found["memory_bytes"],
        gpu=", ".join(gpu["name"] for gpu in found["gpus"]) or None,
        os=f"{system['name']} {system['kernel']}",
        python=found["python"],
        packages=found["packages"],
        warnings=tuple(dict.fromkeys(w for m in measured.measurements for w in m.warnings)),
        notes=notes,
    )


def _limits(state: RunState, measured: Measured) -> Iterable[str]:
    if state.data.synthetic:
        yield "The text is generated: accuracies here are about this data only and say nothing about yours."
    if measured.split != "test":
        yield "There is no test split: accuracies are on validation, on which gates and checkpoints were decided too."
    second = any(m.end_to_end_ms for m in measured.measurements)
    yield "Latency is model only, one input in flight at its real length; " + (
        "end to end adds preprocessing and decoding, on a clock of its own." if second else "tokenization is not timed."
    )
    yield (
        "Speed-ups are ratios of total time over the same inputs, interleaved in one run; "
        "milliseconds of another run or machine are not comparable."
    )
    if state.recipe.measure.launches == 1:
        yield "Each artifact ran in one process: intervals of speed-ups do not contain the variation between processes."
    if any(target.evidence == "proxy" for target in measured.targets):
        yield (
            "A proxy target limits threads and memory on this machine; "
            "it shows what fits and ratios, not a board's milliseconds."
        )
    if any(target.evidence == "emulated" for target in measured.targets):
        n = max((len(m.examples) for m in measured.measurements if m.examples is not None), default=0)
        yield (
            f"Emulated rows answer {n} examples, drawn once, under an emulated CPU: accuracy and agreement only; "
            "their intervals are wider than those of rows on all examples."
        )
    trained = [
        s.id
        for s in state.plan.steps
        if s.pass_.trains and state.outcomes[s.id].status == "done" and getattr(s.config, "seeds", 1) == 1
    ]
    if trained:
        names = ", ".join(trained)
        yield f"Trained with one seed ({state.recipe.run.seed}): {names}. Another seed gives another model."


def write_samples(measured: Measured, path: Path) -> None:
    """Write the raw latency samples beside the report."""
    from compress.disk import write_atomically
    from compress.pipeline.folder import as_json

    plain = [m.model_dump(mode="json", exclude={"outputs"}) for m in measured.measurements]
    write_atomically(path, as_json({"schema_version": 1, "split": measured.split, "measurements": plain}))
