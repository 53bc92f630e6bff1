"""What a run starts from: examples that fit the model, and the task; everything that can be refused before work."""

from __future__ import annotations

import tempfile
from typing import Any

from compress.data.config import Problem
from compress.data.sources import load_data
from compress.data.splits import TaskData
from compress.errors import DataError, ModelError, RecipeError, did_you_mean
from compress.passes.base import Progress
from compress.passes.distill import DistillConfig
from compress.passes.prune import PruneConfig
from compress.pipeline.planning import RunPlan
from compress.pipeline.source import Source, place_of, resolve_source, trusting_source
from compress.recipe import Recipe
from compress.store import Store
from compress.tasks.base import Task, tasks


def load_inputs(plan: RunPlan, source: Source | None) -> tuple[TaskData, Task]:
    """Read the data and settle the task.

    Args:
        plan: of the recipe.
        source: the recipe's model, taken in; None if the recipe makes its own.

    Raises:
        ModelError: the model has no head for the task, and nothing trains one.
        DataError: a split that the recipe needs is not there or too small, or labels do not match.
        RecipeError: a gate names a metric that the task does not have, or bounds it on the wrong side.
    """
    data = _load(plan, source)
    task = _choose_task(plan, source, data)
    _check_classes(task, data)
    _check_gates(plan, task)
    _check_amounts(plan, data)
    return data, task


def check_inputs(plan: RunPlan, emit: Progress) -> TaskData:
    """Take the model in and read the data as a run would, in a temporary folder; keep nothing.

    A model of the hub is not downloaded: its labels are not compared with the data's.

    Raises:
        CompressError: whatever a run would refuse before its first step.
    """
    model = plan.recipe.model
    if model is not None and not place_of(plan.recipe.expand(model)).exists():
        return load_inputs(plan, None)[0]
    with trusting_source(plan.recipe, emit), tempfile.TemporaryDirectory() as folder:
        return load_inputs(plan, resolve_source(plan.recipe, Store(folder), emit))[0]


def _load(plan: RunPlan, source: Source | None) -> TaskData:
    """Read the data; labels are matched with the model's, unless a fine-tuning makes a new head."""
    recipe = plan.recipe
    if source is not None and not source.trained and not _begins_with_tuning(plan):
        raise ModelError(
            "The model has no trained head for the task.",
            value=recipe.model,
            fix="Begin the recipe with a `finetune` step, or give a fine-tuned model.",
        )
    data = load_data(
        recipe.data,
        expand=recipe.expand,
        text_columns=tasks.get(recipe.task).columns,
        problem=_problem(recipe, source),
        known_labels=None if source is None or _begins_with_tuning(plan) else source.options["labels"] or None,
    )
    needed = {"validation": "gates and checkpoints"}
    for step in plan.steps:
        reads = () if step.reason else step.pass_.reads(step.config)
        spared = ("transfer", *step.pass_.spares)
        needed |= {name: f"step {step.id!r}" for name in reads if name not in spared}
    for name, by in needed.items():
        if name not in data:
            raise DataError(
                f"The recipe has no {name} split, which {by} need{'s' if by.startswith('step') else ''}.",
                value=f"splits: {', '.join(data.splits)}",
                fix=f"Add `{name}:` to `data:`, or carve it: `{name}: {{from: train, fraction: 0.1}}`.",
            )
    return data


def _choose_task(plan: RunPlan, source: Source | None, data: TaskData) -> Task:
    """The model's own labels and lengths; the data's where a fine-tuning comes first."""
    recipe = plan.recipe
    if source is not None and not (_begins_with_tuning(plan) and set(source.options["labels"]) != set(data.labels)):
        return tasks.get(recipe.task).parse(source.options)
    options: dict[str, Any] = {
        "name": recipe.task,
        "labels": list(data.labels),
        "problem": _problem(recipe, source),
        "max_length": recipe.max_length or (source.options["max_length"] if source else 128),
    }
    return tasks.get(recipe.task).parse(options)


def _check_classes(task: Task, data: TaskData) -> None:
    """Refuse a task of one class, which every model solves."""
    if task.dump().get("problem") == "single_label" and len(task.labels) < 2:
        raise DataError(
            "There is nothing to tell apart: every row has the same label.",
            value=f"labels: {', '.join(map(repr, task.labels)) or 'none'}; splits: {', '.join(data.splits)}",
            fix="Give rows of every class; numbers as labels need `problem: regression`.",
        )


def _check_gates(plan: RunPlan, task: Task) -> None:
    """Refuse an unknown metric, or a bound on its wrong side, before any work, not after an hour of training."""
    right, wrong = ("max_drop_points", "min"), ("max_increase", "max")
    if task.direction == "lower":
        right, wrong = wrong, right
    for gates in (plan.recipe.gates, *(step.gates for step in plan.steps)):
        for name, rule in (gates or {}).items():
            if name != task.metric:
                raise RecipeError(
                    f"A gate names the metric {name!r}, which this task does not have.",
                    fix=did_you_mean(name, [task.metric]),
                )
            if given := [bound for bound in wrong if getattr(rule, bound) is not None]:
                raise RecipeError(
                    f"A gate bounds {name!r} on the wrong side: {task.direction} is better.",
                    value=f"{name}: {given[0]}: {getattr(rule, given[0]):g}",
                    fix=f"Use `{right[0]}` or `{right[1]}`.",
                )


def _check_amounts(plan: RunPlan, data: TaskData) -> None:
    """Refuse a step that asks for more examples than the data has."""
    for step in plan.steps:
        config = step.config
        if step.reason:
            continue
        if isinstance(config, PruneConfig):
            labelled = sum(row.get("label") is not None for row in data["train"].rows)
            if config.samples is not None and config.samples > labelled:
                raise DataError(
                    f"Step {step.id!r} asks for more labelled training rows than there are.",
                    value=f"{config.samples} samples of {labelled} rows",
                    fix=f"Lower `samples` of the step to at most {labelled}.",
                )
        if isinstance(config, DistillConfig) and config.transfer and not ("transfer" in data and len(data["transfer"])):
            raise RecipeError(
                f"Step {step.id!r} has `transfer: true`, but the recipe gives no transfer data.",
                fix="Add `transfer:` to `data:`, or leave `transfer` out of the step.",
            )


def _begins_with_tuning(plan: RunPlan) -> bool:
    return plan.steps[0].pass_.name == "finetune"


def _problem(recipe: Recipe, source: Source | None) -> Problem:
    return recipe.problem or (source.options["problem"] if source else "single_label")
