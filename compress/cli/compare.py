"""``mcompress compare``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json


@guarded
def compare(
    first: Path = typer.Argument(..., metavar="A", help="The earlier run: its folder or report.json."),
    second: Path = typer.Argument(..., metavar="B", help="The later run."),
    max_drop_points: float = typer.Option(1.0, "--max-drop-points", min=0, help="Accuracy loss that is a regression."),
    max_slowdown: float = typer.Option(
        0.05, "--max-slowdown", min=0, help="Loss of speed-up over its own baseline that is a regression (0.05 = 5 %)."
    ),
    json_: bool = JsonOption,
) -> None:
    """Compare two runs row by row; exit with 1 if the second is worse beyond the limits.

    Milliseconds of different sessions are never compared: only each run's speed-up over its own baseline.
    """
    from compress.report.compare import compare_reports
    from compress.report.files import read_report

    result = compare_reports(
        read_report(first), read_report(second), max_drop_points=max_drop_points, max_slowdown=max_slowdown
    )
    if json_:
        print_json(result.model_dump(mode="json"))
    else:
        from rich.console import Console

        from compress.report.compare_view import render_comparison_terminal

        render_comparison_terminal(result, Console())
    raise typer.Exit(0 if result.ok else 1)
