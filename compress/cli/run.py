"""``mcompress run``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, SetOption, TrustOption, VarOption, guarded, print_json, say, with_trust
from compress.cli.progress import ProgressPrinter


@guarded
def run(
    what: str = typer.Argument(..., metavar="RECIPE|MODEL", help="A recipe (file or built-in name), or a model."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the run; the same folder again resumes it."),
    data: Path | None = typer.Option(
        None, "--data", help="With a MODEL: a folder with train, validation and test files (csv, tsv, jsonl, parquet)."
    ),
    sets: list[str] = SetOption,
    trust: str | None = TrustOption,
    variables: list[str] = VarOption,
    examples: bool = typer.Option(
        False, "--examples", help="Quote examples whose answer changed in the report; else it holds no dataset text."
    ),
    track: list[str] = typer.Option(
        [],
        "--track",
        metavar="NAME[:PLACE]",
        help="Also log to tensorboard[:DIR], mlflow[:URI] or wandb[:PROJECT]. Repeatable; off unless named.",
    ),
    json_: bool = JsonOption,
) -> None:
    """Run a recipe: apply its steps, check and measure them, write deliverables and a report.

    With a MODEL and --data, a built-in recipe is chosen and printed first.
    """
    from compress.api import run as run_recipe
    from compress.pipeline.public import command_line
    from compress.recipe import load_recipe, parse_recipe

    sets = with_trust(sets, trust)
    if data is None:
        recipe = load_recipe(what, sets, variables)
    else:
        from compress.pipeline.picking import pick_recipe

        text = pick_recipe(what, data, own_code=trust is not None)
        say(text)
        recipe = parse_recipe(text, sets, variables, origin="the chosen recipe")
    place = None if data is None else str(data)
    flags = ("--examples",) if examples else ()
    command = command_line(recipe, what, str(out), sets, variables, place, flags)
    progress = ProgressPrinter()
    try:
        result = run_recipe(recipe, out, emit=progress, command=command, examples=examples, track=track)
    finally:
        progress.close()
    if json_:
        print_json(result.report.model_dump(mode="json"))
    else:
        from rich.console import Console

        from compress.report.terminal import render_terminal

        render_terminal(result.report, Console())
        print(f"report: {out / 'report.html'}")
    for step in result.failed_gates:
        say(f"gate failed: {step} was not delivered; see the report.")
    raise typer.Exit(result.exit_code)
