"""Run a plan: take the model in, apply each step through the store, check it, and hand out what passes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from compress import __version__
from compress.artifact import Artifact, hash_json, open_artifact
from compress.bench.launch import without_folders
from compress.data.splits import TaskData
from compress.errors import CompressError, MissingCapabilityError, ParityError, RunError, StorageError
from compress.passes.base import Context, Progress
from compress.pipeline import folder
from compress.pipeline.checking import GateResult, Parity, check_gates, check_parity
from compress.pipeline.inputs import load_inputs
from compress.pipeline.planning import SOURCE, PlannedStep, RunPlan
from compress.pipeline.predictions import Predictions
from compress.pipeline.source import Source, resolve_source
from compress.progress import StepStarted
from compress.recipe import Recipe
from compress.resources import is_full, is_out_of_memory
from compress.store import Store
from compress.tasks.base import Score, Task, tasks

_ROOM, _ROOM_TO_TRAIN = 4, 12
"""Bytes that a step may need in the store, as multiples of its largest input: its payload and three models beside it
while it works. A training checkpoint holds the weights and two moments of each, three times the model, and three
checkpoints lie there while one is written: the last, the best and the new one."""


@dataclass
class StepOutcome:
    """What became of a step.

    Attributes:
        seconds: wall time of the build that finished it, also of an earlier run's; 0 if there is no record.
    """

    status: Literal["done", "skipped", "failed"]
    artifact: Artifact | None = None
    cached: bool = False
    seconds: float = 0.0
    reason: str = ""
    parity: Parity | None = None
    parity_reason: str = ""
    score: Score | None = None
    gates: list[GateResult] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        return self.status == "done" and all(gate.delivered for gate in self.gates)


@dataclass
class RunState:
    """Everything a finished run knows; the report is built from it."""

    plan: RunPlan
    data: TaskData
    task: Task
    outcomes: dict[str, StepOutcome]
    source: Source | None

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def artifact(self, step: str) -> Artifact | None:
        outcome = self.outcomes.get(step)
        return outcome.artifact if outcome else None

    @property
    def failed_gates(self) -> list[str]:
        """Steps that a gate of theirs holds back and that are not optional."""
        return [
            step.id
            for step in self.plan.steps
            if self.outcomes[step.id].status == "done" and not self.outcomes[step.id].delivered and not step.optional
        ]


def run_steps(plan: RunPlan, out: Path, store: Store, emit: Progress) -> RunState:
    """Apply every step of a plan and write the deliverables that pass into ``out``.

    Finished steps are taken from the store, so running again is resuming.

    Raises:
        CompressError: a step that is not optional failed; what was finished stays in the store.
    """
    recipe = plan.recipe
    folder.check_place(out, recipe.name)
    source = resolve_source(recipe, store, emit)
    data, task = load_inputs(plan, source)
    state = RunState(plan, data, task, {}, source)
    text = recipe.to_yaml()
    record = folder.prepare(out, recipe.name, text, hash_json(text))
    if source is not None:
        state.outcomes[SOURCE] = StepOutcome("done", open_artifact(source.path), cached=source.cached)
    predictions = Predictions(store, recipe.run, emit)
    for number, step in enumerate(plan.steps, 1):
        emit(StepStarted(step.id, step.plan.summary, number, len(plan.steps)))
        outcome, key = _run_step(step, state, store, emit)
        state.outcomes[step.id] = outcome
        if outcome.status == "done":
            outcome = state.outcomes[step.id] = _checked(step, state, predictions)
        entry = folder.StepRecord(
            status=outcome.status,
            key=key,
            digest=outcome.artifact.digest if outcome.artifact else None,
            cached=outcome.cached,
            seconds=outcome.seconds,
            delivered=step.id in plan.leaves and outcome.delivered,
            reason=outcome.reason,
        )
        if entry.delivered and outcome.artifact is not None:
            folder.deliver(outcome.artifact, out / folder.DELIVERABLES / step.id)
        record.steps[step.id] = entry
        folder.save(out, record)
        emit(_one_line(step, outcome, plan))
    return state


def _run_step(step: PlannedStep, state: RunState, store: Store, emit: Progress) -> tuple[StepOutcome, str | None]:
    if step.reason:
        return StepOutcome("skipped", reason=step.reason), None
    inputs: dict[str, Artifact] = {}
    for role, parent in step.parents.items():
        artifact = state.artifact(parent)
        if artifact is None:
            return _without_parent(step, parent, state.outcomes[parent]), None
        inputs[role] = artifact
    run = state.recipe.run
    key = step_key(step, inputs, state)

    def build(payload: Path) -> None:
        with store.workspace() as scratch:
            context = Context(
                out=payload,
                scratch=scratch,
                checkpoint=store.partial(key),
                task=state.task,
                data=state.data,
                store=store,
                seed=run.seed,
                device=run.device,
                threads=_threads(run.threads),
                emit=emit,
            )
            _apply(step, inputs, context)

    try:
        path, cached = store.get_or_build(
            key,
            f"{state.recipe.name}:{step.id}",
            build,
            made_from=[artifact.path for artifact in inputs.values()],
            space=_space(step, inputs),
        )
    except StorageError:
        raise
    except MissingCapabilityError as error:
        if not step.optional:
            raise
        return StepOutcome("skipped", reason=without_folders(error.what)), None
    except CompressError as error:
        if not step.optional:
            raise
        return StepOutcome("failed", reason=without_folders(str(error))), None
    return StepOutcome("done", open_artifact(path), cached, store.seconds(key) or 0.0), key


def _apply(step: PlannedStep, inputs: Mapping[str, Artifact], context: Context) -> None:
    """Apply the pass; what a library raises inside it becomes a RunError, so that an optional step may fail of it."""
    try:
        step.pass_.apply(inputs, step.config, context)
    except CompressError:
        raise
    except Exception as error:  # torch, transformers, onnx and plugins raise types of their own
        if is_full(error):  # the store says which folder
            raise
        if is_out_of_memory(error):
            raise RunError(
                f"Step {step.id!r} ran out of memory.",
                value=f"{type(error).__name__}: {without_folders(str(error)).strip()}".partition("\n")[0].rstrip(": "),
                fix="Lower the step's batch size or max_length, close other programs, or use a larger machine; "
                "finished steps are kept.",
            ) from error
        lines = without_folders(str(error)).strip().splitlines()
        raise RunError(
            f"Step {step.id!r} failed: {step.pass_.name!r} was stopped by an error that is not mcompress's own.",
            value=": ".join([type(error).__name__, *lines[:1]]),
            fix="Change the step's options, or make it `optional: true`; MCOMPRESS_DEBUG=1 shows the traceback.",
        ) from error


def _without_parent(step: PlannedStep, parent: str, outcome: StepOutcome) -> StepOutcome:
    if step.optional:
        return StepOutcome("skipped", reason=f"{parent!r} made nothing")
    raise RunError(
        f"Step {step.id!r} cannot run: its input {parent!r} was {outcome.status}.",
        value=outcome.reason,
        fix=f"Make {step.id!r} optional as well, or repair {parent!r}.",
    )


def _space(step: PlannedStep, inputs: Mapping[str, Artifact]) -> int:
    """Return the bytes that a step may need in the store: an upper estimate."""
    sizes = [sum(file.bytes for file in artifact.manifest.files.values()) for artifact in inputs.values()]
    return (_ROOM_TO_TRAIN if step.pass_.trains else _ROOM) * max(sizes, default=0)


def step_key(step: PlannedStep, inputs: Mapping[str, Artifact], state: RunState) -> str:
    """Return the store key of a step: everything that its bytes depend on."""
    run = state.recipe.run
    splits = {name: state.data[name].digest for name in step.pass_.reads(step.config) if name in state.data}
    return hash_json(
        {
            "mcompress": __version__,
            "pass": [step.pass_.name, step.pass_.version],
            "config": step.config.model_dump(mode="json", exclude=set(step.pass_.roles)),
            "settled": step.pass_.settle(step.config),
            "inputs": {role: artifact.digest for role, artifact in inputs.items()},
            "task": state.task.dump(),
            "data": splits,
            "seed": run.seed,
            "where": [run.device, _threads(run.threads)] if step.pass_.trains else [],
            "versions": step.pass_.versions() | tasks.versions(state.task.name),
        }
    )


def _checked(step: PlannedStep, state: RunState, predictions: Predictions) -> StepOutcome:
    """Check a finished step; an optional one that breaks its promise is a failed one, and the run goes on."""
    try:
        _check(step, state, predictions)
    except StorageError:
        raise
    except RunError as error:
        if not step.optional:
            raise
        return StepOutcome("failed", reason=without_folders(str(error)))
    return state.outcomes[step.id]


def _check(step: PlannedStep, state: RunState, predictions: Predictions) -> None:
    """Measure the step on validation; compare with its parent and with the reference."""
    outcome = state.outcomes[step.id]
    if outcome.artifact is None:
        return
    declared = step.gates if step.id in state.plan.leaves or _declares(step, state.recipe) else {}
    outputs, encoded, reason = predictions.of(outcome.artifact, state.task, state.data)
    if outputs is None or encoded is None or encoded.targets is None:
        if declared != {} and outcome.artifact.kind != "tensorrt":
            raise RunError(
                f"Step {step.id!r} cannot be measured, so its gate cannot be judged.",
                value=reason or "the validation split has no labels",
                fix="Remove the cause, or declare `gates: {}` beside the step to deliver it unjudged.",
            )
        outcome.parity_reason = f"not checked: {reason}"
        return
    outcome.score = state.task.score(outputs, encoded.targets)
    parent = state.artifact(step.parents["model"]) if "model" in step.parents else None
    if parent is not None:
        before, _, reason = predictions.of(parent, state.task, state.data)
        if before is not None and before.shape == outputs.shape:
            outcome.parity = check_parity(state.task, before, outputs, step.pass_.preserves)
            _demand_parity(step, outcome.parity, bound=step.id in state.plan.leaves or step.pass_.preserves == "exact")
        else:
            outcome.parity_reason = f"not checked: {reason or 'the outputs have another shape'}"
    if declared != {}:
        outcome.gates = check_gates(_reference_score(state, predictions), outcome.score, declared)


def _declares(step: PlannedStep, recipe: Recipe) -> bool:
    return any(s.id == step.id and s.gates for s in recipe.steps)


def _demand_parity(step: PlannedStep, parity: Parity, *, bound: bool) -> None:
    if bound and not parity.ok:
        raise ParityError(
            f"Step {step.id!r} changed outputs that {step.pass_.name!r} must preserve.",
            value=f"max difference {parity.max_abs:.3g}, cosine {parity.cosine:.5f}, "
            f"same decision on {100 * parity.agreement:.1f} % of {parity.samples}; demanded: {parity.tolerance}",
            fix="Leave the step out, or keep more of the model in float32; the artifact was not delivered.",
        )


def _reference_score(state: RunState, predictions: Predictions) -> Score:
    reference = state.outcomes[state.plan.reference]
    if reference.score is None and reference.artifact is not None:
        outputs, encoded, reason = predictions.of(reference.artifact, state.task, state.data)
        if outputs is None or encoded is None or encoded.targets is None:
            raise RunError(
                "The reference model cannot be measured, so no gate can be judged.",
                value=reason,
                fix="Give the validation split labels, or declare `gates: {}`.",
            )
        reference.score = state.task.score(outputs, encoded.targets)
    if reference.score is None:
        raise RunError(
            "The reference model was not made, so no gate can be judged.",
            value=state.plan.reference,
            fix="Let the step that makes it not be optional, or declare `gates: {}`.",
        )
    return reference.score


def _threads(threads: int | None) -> int:
    return threads or os.cpu_count() or 1


def _one_line(step: PlannedStep, outcome: StepOutcome, plan: RunPlan) -> str:
    if outcome.status != "done" or outcome.artifact is None:
        return f"      {outcome.status}: {outcome.reason}"
    parts = [f"{outcome.artifact.size_bytes / 1e6:.1f} MB"]
    if outcome.score is not None:
        value = outcome.score.value
        shown = f"{100 * value:.2f} %" if outcome.score.direction == "higher" else f"{value:.4g}"
        parts.append(f"{outcome.score.metric} {shown} on validation")
    parts += [f"gate {gate.verdict}" + ("" if gate.delivered else ", not delivered") for gate in outcome.gates]
    parts.append("from the store" if outcome.cached else f"{outcome.seconds:.0f} s")
    return "      " + ", ".join(parts)
