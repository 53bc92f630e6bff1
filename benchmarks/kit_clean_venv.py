"""A kit runs in a clean virtual environment that has numpy and onnxruntime only, and its result comes back.

Makes a kit of RUN, a virtual environment, runs the kit's program there with nothing of this environment on its path,
ingests the result, and exits with 1 unless every row came back with the accuracy that the run itself measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from compress.kit.ingesting import ingest
from compress.kit.writing import write_kit
from compress.report.files import read_report
from compress.report.model import Report, Row
from compress.store import Store

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--step", action="append", default=[], help="steps; default: plain export and what ships")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="variables of the recipe")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the timed rounds")
    parser.add_argument("--name", default="clean-venv", help="name of the device in the report")
    options = parser.parse_args()
    before = read_report(options.run)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        kit = write_kit(options.run, options.step, work / "kit", variables=options.var, store=Store.default(), emit=say)
        python = clean_environment(work / "venv")
        command = [python, "run.py", "--seconds", str(options.seconds), "--name", options.name]
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCOMPRESS"))}
        subprocess.run([*command, "--out", str(work / "result.json")], cwd=kit.path, env=plain, check=True)
        after, target = ingest(work / "result.json", options.run)
    return check(before, after, target)


def clean_environment(folder: Path) -> str:
    """Make a virtual environment with numpy and onnxruntime; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, "numpy", "onnxruntime"], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    print("clean environment:", " ".join(listed.stdout.split()))
    return python


def check(before: Report, after: Report, target: str) -> int:
    """Print each ingested row beside the run's own; return the exit code."""
    wrong = 0
    for row in (row for row in after.rows if row.target == target):
        own = next((it for it in before.rows if it.step == row.step and same_place(before, it)), None)
        same = own is not None and row.accuracy == own.accuracy
        wrong += not same
        if row.accuracy is not None and row.latency is not None:
            print(
                f"{row.step} on {target}: {100 * row.accuracy.value:.2f} % of {row.accuracy.n}, "
                f"p50 {row.latency.p50_ms:.2f} ms: accuracy {'equals' if same else 'DIFFERS FROM'} the run's own row"
            )
        else:
            print(f"{row.step} on {target}: {row.status}: {row.reason}")
    return 1 if wrong else 0


def same_place(report: Report, row: Row) -> bool:
    """Say whether a row was measured by ONNX Runtime on this CPU."""
    found = next((target for target in report.targets if target.name == row.target), None)
    return found is not None and (found.runtime, found.evidence) == ("onnxruntime", "measured")


def say(message: str, done: int | None = None, total: int | None = None) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
