"""The command tree."""

from __future__ import annotations

import typer

from compress import __version__
from compress.cli.arm64 import arm64
from compress.cli.bench import bench
from compress.cli.check import check
from compress.cli.compare import compare
from compress.cli.env import env
from compress.cli.export import export
from compress.cli.kit import ingest, kit
from compress.cli.plan import plan, validate
from compress.cli.recipes import cat, cp, ls
from compress.cli.report import report
from compress.cli.run import run
from compress.cli.sensitivity import sensitivity
from compress.cli.store import store
from compress.cli.verify import verify

app = typer.Typer(
    name="mcompress",
    help="Makes fine-tuned models small and fast without losing their accuracy, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 fine, 1 a gate failed, a comparison found a regression or a check an error, 2 usage or "
    "data, 3 something is missing here, 4 a run failed, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mcompress {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Take a fine-tuned model and a recipe; hand back artifacts, each one measured."""


for _command in (
    run,
    plan,
    validate,
    ls,
    cp,
    cat,
    bench,
    check,
    sensitivity,
    report,
    compare,
    export,
    verify,
    kit,
    ingest,
    env,
    arm64,
):
    app.command()(_command)
app.add_typer(store)
