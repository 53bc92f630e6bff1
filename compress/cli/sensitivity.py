"""``mcompress sensitivity``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json, print_wrapped
from compress.cli.progress import ProgressPrinter


class Method(StrEnum):
    """When the ranges of activations are taken."""

    dynamic = "dynamic"
    static = "static"


@guarded
def sensitivity(
    source: str = typer.Argument(..., metavar="DIR|RUN[:STEP]", help="A float ONNX or torch artifact, or a run's."),
    data: Path | None = typer.Option(
        None, "--data", help="A file of rows, or a folder with a validation file; built-in examples if left out."
    ),
    samples: int = typer.Option(64, "--samples", min=1, help="Examples to run, at most."),
    tensors: bool = typer.Option(False, "--tensors", help="Also round activation and weight one at a time."),
    method: Method = typer.Option(
        Method.dynamic, "--method", help="Ranges of activations: at run time, or calibrated."
    ),
    json_: bool = JsonOption,
) -> None:
    """Rank the layers of a model by what each loses when it alone runs in INT8, worst first."""
    from compress.pipeline.sensitivities import analyse
    from compress.store import Store

    progress = ProgressPrinter()
    try:
        record = analyse(
            source,
            data,
            samples=samples,
            tensors=tensors,
            method=method.value,
            store=Store.default(),
            emit=progress,
        )
    finally:
        progress.close()
    if json_:
        print_json(record.model_dump(mode="json"))
        return
    from rich.console import Console

    from compress.report.sections_sensitivity import advice, conclusion
    from compress.report.terminal import print_ranking

    print_ranking(record, Console())
    print_wrapped(conclusion(record), hanging=0)
    print_wrapped(advice(record), hanging=2)
