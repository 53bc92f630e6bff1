"""``mcompress compare``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json


@guarded
def compare(
    first: Path = typer.Argument(..., metavar="A", help="The earlier run: its folder or report.json."),
    second: Path = typer.Argument(..., metavar="B", help="The later run."),
    max_drop_points: float = typer.Option(1.0, "--max-drop-points", min=0, help="Same as --margin accuracy=POINTS."),
    max_slowdown: float = typer.Option(
        0.05, "--max-slowdown", min=0, help="Same as --margin speedup=SHARE (0.05: takes 5 % more time)."
    ),
    margin: list[str] = typer.Option(
        [],
        "--margin",
        metavar="NAME=VALUE",
        help="How much worse a metric may get: accuracy in points; speedup, end_to_end, size, parameters, peak_rss "
        "as a share (5% or 0.05). Repeatable.",
    ),
    strict: bool = typer.Option(False, "--strict", help="Fail also where the interval does not exclude no change."),
    markdown: bool = typer.Option(False, "--markdown", help="Print Markdown to paste into a pull request."),
    json_: bool = JsonOption,
) -> None:
    """Compare two runs row by row; exit with 1 if the second is worse beyond the margins.

    Milliseconds of different sessions are never compared: only each run's speed-up over its own baseline.
    """
    from compress.pipeline.comparing import compare_runs
    from compress.pipeline.margins import parse_margins
    from compress.report.compare_view import render_comparison_markdown, render_comparison_terminal

    margins = parse_margins(margin, {"accuracy": max_drop_points, "speedup": max_slowdown})
    result = compare_runs(first, second, margins, strict=strict)
    if markdown:
        print(render_comparison_markdown(result), end="" if not json_ else "\n")
    if json_:
        print_json(result.model_dump(mode="json"))
    elif not markdown:
        from rich.console import Console

        render_comparison_terminal(result, Console())
    raise typer.Exit(0 if result.ok else 1)
