"""Plan a recipe: resolve configs and inputs, check the order rules, predict sizes; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from compress.errors import MissingCapabilityError, ModelError, RecipeError, did_you_mean
from compress.models.remote_code import AUTO_MAP, CUSTOM_CODE, read_code, refuse_code
from compress.passes.base import ModelInfo, Pass, PassConfig, Plan, passes
from compress.pipeline.source import place_of
from compress.recipe import GateRule, Recipe, Step, explain
from compress.runtimes.base import runtimes
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.target import find_targets

SOURCE = "model"
"""The id under which steps name the recipe's own model."""
BASELINE_ONNX = "onnx-fp32"
"""The id of the implicit export of the uncompressed model, the second baseline of every report."""


@dataclass(frozen=True)
class PlannedStep:
    """One step, resolved.

    Attributes:
        parents: role -> id of the step (or ``model``) it takes.
        reason: why it will be skipped; empty if it will run.
        implicit: added by the planner, not by the recipe.
    """

    id: str
    pass_: Pass
    config: PassConfig
    parents: Mapping[str, str]
    plan: Plan
    gates: Mapping[str, GateRule] | None
    optional: bool
    reason: str = ""
    implicit: bool = False


@dataclass(frozen=True)
class RunPlan:
    """Every step in order, each with its inputs and its predicted result."""

    recipe: Recipe
    source: ModelInfo | None
    steps: tuple[PlannedStep, ...]

    @cached_property
    def by_id(self) -> dict[str, PlannedStep]:
        return {step.id: step for step in self.steps}

    @property
    def leaves(self) -> list[str]:
        """The deliverables: steps of the recipe that no other step takes as an input.

        What an engine is built from is one as well: the engine fits one GPU, its ONNX file fits all.
        """
        taking = [step for step in self.steps if not step.implicit and step.plan.result.kind != "tensorrt"]
        used = {parent for step in taking for parent in step.parents.values()}
        return [step.id for step in self.steps if step.id not in used and not step.implicit]

    @property
    def reference(self) -> str:
        """What accuracy is compared with: the recipe's model, or the last of the fine-tunings it begins with."""
        return _reference(self.source, [(step.id, step.pass_, step.parents) for step in self.steps])


def make_plan(recipe: Recipe) -> RunPlan:
    """Resolve and check a recipe.

    Raises:
        RecipeError: an unknown key of a pass or an unknown target, an input that does not exist, steps in an
            impossible order.
        ModelError: the model does not exist.
        MissingCapabilityError: a step that is not optional needs something that is not here.
    """
    for target in find_targets(recipe.measure.targets):
        runtimes.get(target.runtime)
    source = read_source(recipe)
    infos: dict[str, ModelInfo] = {} if source is None else {SOURCE: source}
    steps: list[PlannedStep] = []
    previous = None if source is None else SOURCE
    for number, step in enumerate(recipe.steps, 1):
        planned = _plan_step(step, number, previous, infos, {s.id: s for s in steps}, recipe)
        steps.append(planned)
        infos[step.id] = planned.plan.result
        previous = step.id
    if implicit := _baseline(recipe, source, steps, infos):
        steps.append(implicit)
    return RunPlan(recipe, source, tuple(steps))


def read_source(recipe: Recipe) -> ModelInfo | None:
    """Say what the recipe's model is, from its config alone; code that comes with it is read, not run."""
    named = recipe.names_code
    if recipe.model is None:
        return None
    text = recipe.expand(recipe.model)
    place = text if text == recipe.model else f"{recipe.model} = {text}"
    path = place_of(text)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ModelError("The model file does not exist.", value=place, fix="Correct `model:`.")
        from compress.export.onnx_source import read_onnx
        from compress.export.signature import traits_of

        return ModelInfo("onnx", frozenset(traits_of(read_onnx(path))))
    if path.is_dir():
        from compress.models.loading import read_config

        config = read_config(path)
        if AUTO_MAP in config and not named:
            raise refuse_code(path)
        code = read_code(path, config)
        return ModelInfo("torch", frozenset() if code is None else frozenset({CUSTOM_CODE}), config)
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ModelError("The model folder does not exist.", value=place, fix="Correct `model:`.")
    return ModelInfo("torch", frozenset({CUSTOM_CODE} if named else ()))


def _plan_step(
    step: Step,
    number: int,
    previous: str | None,
    infos: Mapping[str, ModelInfo],
    earlier: Mapping[str, PlannedStep],
    recipe: Recipe,
) -> PlannedStep:
    pass_ = passes.get(step.uses)()
    try:
        config = pass_.Config.model_validate(step.config)
    except ValidationError as error:
        raise explain(error, pass_.Config, f"step {number} {step.id!r}") from error
    config = pass_.expand(config, recipe.expand)
    parents = _parents(step, number, pass_, config, previous, infos)
    inputs = {role: infos[parent] for role, parent in parents.items()}
    _check_order(step, number, pass_, inputs.get("model"), parents.get("model"), earlier)
    plan = pass_.plan(inputs, config)
    dead = [f"{parent!r} is skipped" for parent in parents.values() if parent in earlier and earlier[parent].reason]
    missing = [*plan.missing, *_missing_device(pass_, recipe), *dead]
    if missing and not step.optional:
        raise MissingCapabilityError(
            f"Step {number} {step.id!r} cannot run here.",
            value="; ".join(missing),
            fix="Install what is missing, or write `optional: true` beside the step to go on without it.",
        )
    gates = recipe.gates if step.gates is None else step.gates
    return PlannedStep(step.id, pass_, config, parents, plan, gates, step.optional, "; ".join(missing))


def _missing_device(pass_: Pass, recipe: Recipe) -> list[str]:
    """Say why ``run.device`` is not there for a pass that computes on it."""
    why = why_no_cuda() if recipe.run.device == "cuda" and (pass_.trains or pass_.produces == "torch") else ""
    return [f"`run: {{device: cuda}}`: {why}"] if why else []


def _parents(
    step: Step, number: int, pass_: Pass, config: PassConfig, previous: str | None, infos: Mapping[str, ModelInfo]
) -> dict[str, str]:
    parents: dict[str, str] = {}
    start = step.from_ or previous
    if start is not None:
        parents["model"] = start
    elif pass_.consumes and not getattr(config, "init", None):
        raise RecipeError(
            f"Step {number} {step.id!r} has no model to work on.",
            fix="Give the recipe a `model:`, or begin with `- finetune: {init: {...}}`.",
        )
    for role in pass_.roles:
        if role != "model":
            parents[role] = str(getattr(config, role))
    for role, parent in parents.items():
        if parent not in infos:
            raise RecipeError(
                f"Step {number} {step.id!r} takes its {role} from {parent!r}, which is not an earlier step.",
                fix=did_you_mean(parent, list(infos)) if infos else "Give the recipe a `model:`.",
            )
    return parents


def _check_order(
    step: Step,
    number: int,
    pass_: Pass,
    model: ModelInfo | None,
    parent: str | None,
    earlier: Mapping[str, PlannedStep],
) -> None:
    if model is None:
        return
    where = f"step {number} {step.id!r} ({pass_.name}) continues from {parent!r}"
    maker = earlier[parent].pass_.name if parent is not None and parent in earlier else "the recipe's model"
    if pass_.consumes and model.kind not in pass_.consumes:
        wanted = " or ".join(sorted(pass_.consumes))
        bridge = "Put an `export` step before it" if wanted == "onnx" else f"Let it continue `from:` a {wanted} step"
        raise RecipeError(
            f"{pass_.name!r} needs a {wanted} model, but {parent!r} ({maker}) gives a {model.kind} model.",
            value=where,
            fix=f"{bridge}.",
        )
    if lacking := sorted(pass_.requires - model.traits):
        raise RecipeError(
            f"{pass_.name!r} needs a model that is {', '.join(lacking)}; {parent!r} ({maker}) is not.",
            value=where,
            fix="Reorder the steps, or choose another `from:`.",
        )
    if CUSTOM_CODE in pass_.forbids & model.traits:
        raise RecipeError(
            f"{pass_.name!r} must know the parts of a model, and those of {parent!r} ({maker}) are its author's own.",
            value=where,
            fix="Leave the step out: a model with code of its own can be fine-tuned, distilled and exported, and its "
            "ONNX form quantized and cast.",
        )
    if clash := sorted(pass_.forbids & model.traits):
        raise RecipeError(
            f"{pass_.name!r} cannot follow {parent!r} ({maker}), whose model is already {', '.join(clash)}.",
            value=where,
            fix="Let the step continue `from:` an earlier one.",
        )


def _reference(source: ModelInfo | None, steps: list[tuple[str, Pass, Mapping[str, str]]]) -> str:
    reference = SOURCE if source is not None else None
    for id_, pass_, parents in steps:
        if pass_.name != "finetune" or parents.get("model") != reference:
            break
        reference = id_
    return reference or steps[0][0]


def _baseline(
    recipe: Recipe, source: ModelInfo | None, steps: list[PlannedStep], infos: Mapping[str, ModelInfo]
) -> PlannedStep | None:
    """Add the plain export of the reference model, unless the recipe has it or cannot."""
    reference = _reference(source, [(step.id, step.pass_, step.parents) for step in steps])
    if "onnx" not in recipe.measure.baselines or infos[reference].kind != "torch":
        return None
    if any(step.pass_.name == "export" and step.parents["model"] == reference for step in steps):
        return None
    if BASELINE_ONNX in infos:
        raise RecipeError(
            f"A step is called {BASELINE_ONNX!r}, which is the name of the plain export of the uncompressed model.",
            fix="Give the step another `id:`.",
        )
    export = passes.get("export")()
    config = export.Config()
    plan = export.plan({"model": infos[reference]}, config)
    if plan.missing:
        return None
    return PlannedStep(BASELINE_ONNX, export, config, {"model": reference}, plan, {}, True, implicit=True)


def onnx_baseline(plan: RunPlan) -> str | None:
    """Return the id of the plain ONNX form of the reference model, if the plan has one."""
    if plan.source is not None and plan.source.kind == "onnx" and plan.reference == SOURCE:
        return SOURCE
    for step in plan.steps:
        if step.pass_.name == "export" and step.parents.get("model") == plan.reference:
            return step.id
    return None


def describe(plan: RunPlan) -> list[dict[str, Any]]:
    """Return one plain record per step, for `mcompress plan`."""
    leaves = set(plan.leaves)
    return [
        {
            "id": step.id,
            "pass": step.pass_.name,
            "parents": dict(step.parents),
            "does": step.plan.summary,
            "gives": step.plan.result.kind,
            "traits": sorted(step.plan.result.traits),
            "parameters": step.plan.result.parameters,
            "macs": step.plan.result.macs,
            "reads": list(step.pass_.reads(step.config)),
            "deliverable": step.id in leaves,
            "optional": step.optional,
            "skipped": step.reason or None,
        }
        for step in plan.steps
    ]
