"""Where a step's model comes from: its family, and what was made of it without changing its widths."""

from __future__ import annotations

from collections.abc import Iterator

from compress.pipeline.planning import SOURCE, PlannedStep
from compress.pipeline.running import RunState
from compress.report.model import Family

RESHAPING = {"prune", "factorize", "trim"}
"""Passes that give a model other shapes."""


def family(state: RunState, id_: str) -> Family:
    """Say how a step's model became small: a student took its place, it was pruned, or neither."""
    if any(step.pass_.name == "distill" and is_student(step) for step in ancestry(state, id_)):
        return "student"
    artifact = state.artifact(id_)
    return "pruned" if artifact is not None and "pruned" in artifact.manifest.traits else "dense"


def is_student(step: PlannedStep) -> bool:
    """Say whether a distillation trains another model than the incoming one."""
    return getattr(step.config, "student", None) is not None


def ancestry(state: RunState, id_: str) -> Iterator[PlannedStep]:
    """Yield a step and those whose model it continues, nearest first; teachers and data do not count."""
    while id_ != SOURCE and id_ in state.plan.by_id:
        step = state.plan.by_id[id_]
        yield step
        id_ = step.parents.get("model", SOURCE)


def same_widths(state: RunState, origin: str) -> Iterator[str]:
    """Yield ``origin`` and the finished steps whose models have its shapes, in the order of the plan."""
    for step in state.plan.steps:
        for ancestor in ancestry(state, step.id):
            if ancestor.id == origin:
                if state.outcomes[step.id].status == "done":
                    yield step.id
                break
            if ancestor.pass_.name in RESHAPING or (ancestor.pass_.name == "distill" and is_student(ancestor)):
                break


def precision(state: RunState, id_: str) -> str:
    """Return the precision of a finished step's artifact: fp32, fp16, bf16, int8 or int4."""
    artifact = state.artifact(id_)
    traits = set(artifact.manifest.traits) if artifact is not None else set()
    return next((name for name in ("int4", "int8", "fp16", "bf16") if name in traits), "fp32")
