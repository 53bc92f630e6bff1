"""``mcompress export``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import guarded
from compress.errors import UsageError


@guarded
def export(
    source: str = typer.Argument(..., metavar="RUN[:STEP]", help="A run folder; with a step, that step's artifact."),
    out: Path = typer.Argument(..., metavar="DIR", help="New folder for the artifact."),
) -> None:
    """Copy an artifact out of a run, with its model card: the one that the report says to ship, or the one of STEP."""
    from compress.artifact import open_artifact
    from compress.pipeline.cards import write_card
    from compress.pipeline.folder import deliver, find_artifact, split_step
    from compress.report.files import read_report
    from compress.store import Store

    run, step = split_step(source)
    if not step:
        chosen = read_report(run).verdict.step
        if chosen is None:
            raise UsageError(
                "The report ships nothing.", value=run, fix="Name a step: `mcompress export RUN:STEP DIR`."
            )
        step = chosen
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The folder exists and is not empty.", value=out, fix="Choose another one.")
    artifact = find_artifact(run, step, Store.default())
    out.parent.mkdir(parents=True, exist_ok=True)
    deliver(artifact, out)
    if (run / "report.json").is_file():
        write_card(read_report(run), step, open_artifact(out, verify=False))
    print(f"{out}: {artifact.kind}, {artifact.size_bytes / 1e6:.1f} MB, step {step}, {artifact.digest[:12]}")
