"""``mcompress report``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json
from compress.errors import UsageError


@guarded
def report(
    run: Path | None = typer.Argument(None, metavar="RUN", help="A run folder, or a report.json."),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of report.json and stop."),
    markdown: bool = typer.Option(False, "--markdown", help="Print short Markdown to paste into a pull request."),
    json_: bool = JsonOption,
) -> None:
    """Show a report, and render report.md and report.html again from report.json."""
    if schema:
        from compress.report.schema import json_schema, schema_text

        if json_:
            print_json(json_schema())
        else:
            print(schema_text(), end="")
        return
    if run is None:
        raise UsageError("There is no report to show.", fix="Name a run folder or a report.json, or ask for --schema.")
    from compress.report.files import read_report, render_report

    record = read_report(run)
    if markdown:
        from compress.report.pull_request import render_pull_request

        print(render_pull_request(record), end="\n" if json_ else "")
    if json_:
        print_json(record.model_dump(mode="json"))
    if json_ or markdown:
        return
    from rich.console import Console

    from compress.report.terminal import render_terminal

    paths = render_report(record, run if run.is_dir() else run.parent)
    render_terminal(record, Console())
    print(f"report: {paths['html']}")
