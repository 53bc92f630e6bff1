"""``mcompress bench``."""

from __future__ import annotations

from pathlib import Path

import typer

from compress.cli.console import JsonOption, guarded, print_json
from compress.cli.progress import ProgressPrinter


@guarded
def bench(
    folders: list[Path] = typer.Argument(..., metavar="DIR...", help="Artifact folders; the first is the baseline."),
    data: Path = typer.Option(..., "--data", help="A labelled file: csv, tsv, jsonl or parquet (text, label)."),
    targets: str = typer.Option("", "--targets", help="Targets, comma-separated; each artifact's own if left out."),
    inputs: int = typer.Option(200, "--inputs", min=1, help="Examples in the timed sequence."),
    rounds: int = typer.Option(7, "--rounds", min=3, help="Most passes over the sequence, per launch."),
    scenarios: str = typer.Option(
        "", "--scenarios", help="MLPerf-style, with LoadGen: single-stream, offline, server; comma-separated."
    ),
    server_latency_ms: float = typer.Option(
        None, "--server-latency-ms", min=0.001, help="What the server scenario's 99th percentile must keep."
    ),
    json_: bool = JsonOption,
) -> None:
    """Measure artifacts side by side: accuracy, latency, throughput, memory, each in a fresh process."""
    from compress.pipeline.benching import bench_artifacts
    from compress.pipeline.loads import load_lines

    progress = ProgressPrinter()
    try:
        names, loads = ([word.strip() for word in text.split(",") if word.strip()] for text in (targets, scenarios))
        rows = bench_artifacts(
            folders,
            data,
            names,
            inputs=inputs,
            rounds=rounds,
            emit=progress,
            scenarios=loads,
            server_latency_ms=server_latency_ms,
        )
    finally:
        progress.close()
    if json_:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    from rich.console import Console

    from compress.pipeline.bench_table import bench_lines

    console = Console()
    width = min(console.width, 110)
    for line in bench_lines(rows, width, "─" if console.is_terminal else "-"):
        console.print(line, width=width)
    print("\n".join(load_lines(rows)))
