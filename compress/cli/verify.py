"""``mcompress verify``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json
from compress.errors import UsageError


@guarded
def verify(
    folder: Path = typer.Argument(..., metavar="DIR", help="What `mcompress export` wrote, or any artifact."),
    digests: bool = typer.Option(False, "--digests", help="Check the files only; do not run the model."),
    json_: bool = JsonOption,
) -> None:
    """Check a folder here: every file against its digest, and the golden outputs on this machine's runtime.

    Exit code 1 if something differs, 3 if the golden outputs could not be run.
    """
    from compress import verifying

    if not folder.is_dir():
        raise UsageError("This is not a folder.", value=folder, fix="Name a folder that `mcompress export` wrote.")
    record = verifying.verify(folder, run=not digests)
    code = verifying.exit_code(record)
    if code == 2:
        raise UsageError(
            "There is nothing to check: no SHA256SUMS and no artifact.json.",
            value=folder,
            fix="Name a folder that `mcompress export` wrote.",
        )
    if json_:
        print_json(record)
    else:
        for line in verifying.lines(record):
            print(line)
    if code:
        raise typer.Exit(code)
