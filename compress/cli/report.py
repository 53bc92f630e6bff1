"""``mcompress report``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json


@guarded
def report(
    run: Path = typer.Argument(..., help="A run folder, or a report.json."),
    json_: bool = JsonOption,
) -> None:
    """Show a report, and render report.md and report.html again from report.json."""
    from compress.report.files import read_report, write_report

    record = read_report(run)
    if json_:
        print_json(record.model_dump(mode="json"))
        return
    from rich.console import Console

    from compress.report.terminal import render_terminal

    paths = write_report(record, run if run.is_dir() else run.parent)
    render_terminal(record, Console())
    print(f"report: {paths['html']}")
