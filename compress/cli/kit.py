"""``mcompress kit`` and ``mcompress ingest``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, VarOption, guarded, print_json
from compress.cli.progress import ProgressPrinter
from compress.errors import UsageError


@guarded
def kit(
    sources: list[str] = typer.Argument(
        ..., metavar="RUN[:STEP]... OUT", help="A run, or steps of one run; then a new folder for the kit."
    ),
    variables: list[str] = VarOption,
) -> None:
    """Write a folder that measures a run's models on another device: models, inputs, one program, no text.

    Without a STEP: the plain ONNX export and the step that the report ships, side by side.
    """
    from compress.kit.writing import write_kit
    from compress.pipeline.folder import split_step
    from compress.store import Store

    if len(sources) < 2:
        raise UsageError("A kit needs a run and a folder.", value=sources[0], fix="Write `mcompress kit RUN OUT`.")
    pairs = [split_step(source) for source in sources[:-1]]
    runs = {run for run, _ in pairs}
    if len(runs) > 1:
        raise UsageError(
            "A kit is of one run.", value=", ".join(map(str, sorted(runs))), fix="Write one kit for each run."
        )
    progress = ProgressPrinter()
    try:
        steps = [step for _, step in pairs if step]
        made = write_kit(
            runs.pop(), steps, Path(sources[-1]), variables=variables, store=Store.default(), emit=progress
        )
    finally:
        progress.close()
    print(f"{made.path}: {', '.join(made.steps)}, {made.size_bytes / 1e6:.1f} MB, kit {made.digest[:12]}")
    print("Copy the folder to the device and run: python3 run.py")


@guarded
def ingest(
    result: Path = typer.Argument(..., metavar="RESULT", help="The result.json that a kit's run.py wrote."),
    into: Path = typer.Option(..., "--into", metavar="RUN", help="The run that the kit was made from."),
    name: str | None = typer.Option(None, "--name", help="What the report calls the device; else as the result says."),
    json_: bool = JsonOption,
) -> None:
    """Put a device's result into the run's report; the same device and runtime again replaces its rows."""
    from compress.kit.ingesting import ingest as take_in

    report, target = take_in(result, into, name=name)
    if json_:
        print_json([row.model_dump(mode="json") for row in report.rows if row.target == target])
        return
    from rich.console import Console

    from compress.report.terminal import render_terminal

    render_terminal(report, Console())
    print(f"ingested: {target}; report: {into / 'report.html'}")
