"""``mcompress plan`` and ``mcompress validate``."""

from __future__ import annotations

import typer

from compress.cli.console import (
    JsonOption,
    SetOption,
    TrustOption,
    VarOption,
    guarded,
    print_json,
    print_wrapped,
    say,
    with_trust,
)


@guarded
def plan(
    recipe: str = typer.Argument(..., help="A recipe: file or built-in name."),
    sets: list[str] = SetOption,
    trust: str | None = TrustOption,
    variables: list[str] = VarOption,
    json_: bool = JsonOption,
) -> None:
    """Say what a recipe would do: steps, inputs, predicted sizes, what is missing here. Reads no weights."""
    from compress.models.remote_code import CUSTOM_CODE, RISK
    from compress.pipeline.planning import describe, make_plan
    from compress.recipe import load_recipe

    planned = make_plan(load_recipe(recipe, with_trust(sets, trust), variables))
    steps = describe(planned)
    if planned.source is not None and CUSTOM_CODE in planned.source.traits:
        say(f"note: a run of this recipe runs Python code of the model's author. {RISK}")
    if json_:
        print_json(steps)
        return
    for number, step in enumerate(steps, 1):
        inputs = ", ".join(p if role == "model" else f"{role}: {p}" for role, p in step["parents"].items())
        mark = "; deliverable" if step["deliverable"] else ""
        print_wrapped(f"{number:2}. {step['id']} ({step['pass']}){' <- ' + inputs if inputs else ''}")
        size = f"; about {step['parameters']:,} parameters" if step["parameters"] else ""
        print_wrapped(f"{step['does']}{size}", 6)
        print_wrapped(f"gives {step['gives']} {' '.join(step['traits'])}{mark}", 6)
        if step["skipped"]:
            print_wrapped(f"will be skipped: {step['skipped']}", 6)


@guarded
def validate(
    recipe: str = typer.Argument(..., help="A recipe: file or built-in name."),
    sets: list[str] = SetOption,
    trust: str | None = TrustOption,
    variables: list[str] = VarOption,
) -> None:
    """Check everything that a run checks before its first step: recipe, order, targets, model and data.

    Reads the model and the data; keeps nothing.
    """
    from compress.pipeline.inputs import check_inputs
    from compress.pipeline.planning import make_plan
    from compress.recipe import load_recipe

    checked = make_plan(load_recipe(recipe, with_trust(sets, trust), variables))
    data = check_inputs(checked, _quiet)
    skipped = [step for step in checked.steps if step.reason]
    for step in skipped:
        say(f"note: {step.id} will be skipped: {step.reason}")
    rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    print(f"{checked.recipe.name}: {len(checked.steps)} steps; {rows}; fine.")


def _quiet(message: str, done: int | None = None, total: int | None = None) -> None:
    pass
