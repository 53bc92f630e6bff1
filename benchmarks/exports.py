"""Exports of one run open with each stock loader in a clean environment that lacks this package, with its answers.

For each loader an environment is made with that loader alone (virtual environments, and a Node.js project). There the
folder's own ``verify.py`` runs, and a short script in ``loaders/`` opens the folder as its users would and answers the
first texts of DATA, one at a time. Its logits are compared with those of ``compress.load`` on the step that was
exported. Writes README.md and results.json into --out; exits with 1 unless everything opened and agreed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import compress
from compress.shipping.layouts import layouts
from compress.shipping.shipment import open_shipment
from compress.shipping.writing import ship
from compress.store import Store

ROOT = Path(__file__).parents[1]
LOADERS = ROOT / "benchmarks" / "loaders"
EXACT = 1e-3
"""Share of the largest logit by which float32 may differ."""
HALF = 2e-2


@dataclass(frozen=True)
class Loader:
    """A stock loader: what it installs, the step and layout that it opens, and the files there by step."""

    name: str
    packages: tuple[str, ...]
    script: str
    step: str
    layout: str
    files: tuple[tuple[str, str], ...]


@dataclass
class Result:
    """One opened file."""

    loader: str
    layout: str
    file: str
    step: str
    version: str = ""
    verify: str = ""
    texts: int = 0
    largest_difference: float | None = None
    same_labels: int | None = None
    problem: str = ""


def onnx_files(folder: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (step, f"{folder}model{end}.onnx") for step, end in (("onnx", ""), ("int8", "_quantized"), ("fp16", "_fp16"))
    )


IR = (("onnx", "openvino_model.xml"),)
USUAL = (
    Loader("Transformers", ("torch", "transformers"), "open_transformers.py", "trim", "transformers", (("trim", ""),)),
    Loader("ONNX Runtime", ("onnxruntime", "tokenizers"), "open_onnxruntime.py", "int8", "onnxruntime", onnx_files("")),
    Loader(
        "Optimum",
        ("torch==2.13.0", "optimum-onnx[onnxruntime]"),
        "open_optimum.py",
        "int8",
        "onnxruntime",
        onnx_files(""),
    ),
    Loader("OpenVINO", ("openvino", "tokenizers"), "open_openvino.py", "onnx", "openvino", IR),
    Loader("OpenVINO, INT8", ("openvino", "tokenizers"), "open_openvino.py", "int8", "openvino", (("int8", IR[0][1]),)),
    Loader(
        "Optimum Intel", ("torch==2.13.0", "optimum-intel[openvino]"), "open_optimum_intel.py", "onnx", "openvino", IR
    ),
    Loader(
        "transformers.js",
        ("@huggingface/transformers",),
        "open_transformers_js.mjs",
        "int8",
        "transformers.js",
        onnx_files("onnx/"),
    ),
    Loader(
        "TensorRT-RTX",
        ("numpy", "tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"),
        "open_tensorrt_rtx.py",
        "engine",
        "tensorrt",
        (("engine", "model.engine"),),
    ),
)
UNPINNED = {"Optimum", "Optimum Intel"}
"""Loaders that want an older Transformers than the one we are tested with."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run of benchmarks/recipes/exports.yaml")
    parser.add_argument("--data", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--work", type=Path, required=True, help="new folder for environments and exports")
    parser.add_argument("--only", action="append", default=[], help="names of loaders")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "exports")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with options.data.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][: options.texts]
    (options.work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    chosen = [loader for loader in USUAL if not options.only or loader.name in options.only]
    results = [result for loader in chosen for result in try_loader(loader, options.run, options.work, texts)]
    options.out.mkdir(parents=True, exist_ok=True)
    record = [asdict(result) for result in results]
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = render(results, len(texts))
    (options.out / "README.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if any(result.problem for result in results) else 0


def try_loader(loader: Loader, run: Path, work: Path, texts: list[str]) -> list[Result]:
    place = work / loader.name.lower().replace(" ", "-").replace(",", "")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    folder = place / "exported"
    ship(open_shipment(f"{run}:{loader.step}", Store.default()), layouts.get(loader.layout)(), folder)
    results = [Result(loader.name, loader.layout, file, step) for step, file in loader.files]
    try:
        command, python = make_environment(loader, place)
    except subprocess.CalledProcessError as error:
        for result in results:
            result.problem = f"cannot be installed: {last_line(error.stderr)}"
        return results
    for result in results:
        open_one(result, loader, command, folder, place, run, texts)
    digests = ["--digests"] if loader.script.endswith(".mjs") else []  # Node.js has no Python runtime
    checked = subprocess.run([python, "verify.py", *digests], cwd=folder, env=plain(), capture_output=True, text=True)
    for result in results:
        result.verify = f"{'digests: ' if digests else ''}{last_line(checked.stdout)}"
        if checked.returncode != 0:
            result.problem = result.problem or f"verify.py: {checked.stdout.strip()}"
    return results


def open_one(
    result: Result, loader: Loader, command: list[str], folder: Path, place: Path, run: Path, texts: list[str]
) -> None:
    """Let the loader's script answer, and compare with our own answers of the same step."""
    out = place / "answers.json"
    out.unlink(missing_ok=True)
    words = [*command, str(folder), result.file, str(place.parent / "texts.json"), str(out)]
    done = subprocess.run(words, cwd=place, env=plain(), capture_output=True, text=True, timeout=1200)
    if done.returncode != 0 or not out.is_file():
        result.problem = last_line(done.stderr) or f"exit code {done.returncode}"
        return
    answers = json.loads(out.read_text(encoding="utf-8"))
    result.version = answers["version"]
    if answers["logits"] is None:
        return
    shipment = open_shipment(f"{run}:{result.step}", Store.default())
    with compress.load(shipment.artifact.path, threads=1) as predictor:
        wanted, labels = predictor.logits(texts), list(predictor.task.labels)
    compare(result, np.array(answers["logits"]), wanted, shipment.artifact.traits)
    if answers["labels"] != labels:
        result.problem = f"labels {answers['labels']} instead of {labels}"


def compare(result: Result, found: np.ndarray, wanted: np.ndarray, traits: frozenset[str]) -> None:
    result.texts = len(wanted)
    result.largest_difference = float(np.abs(found - wanted).max())
    result.same_labels = int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
    allowed = (HALF if "fp16" in traits else EXACT) * max(1.0, float(np.abs(wanted).max()))
    if "int8" in traits:
        if result.same_labels < 0.98 * len(wanted):
            result.problem = f"{result.same_labels} of {len(wanted)} labels are the same"
    elif result.largest_difference > allowed:
        result.problem = f"logits differ by {result.largest_difference:.3g}"


def make_environment(loader: Loader, place: Path) -> tuple[list[str], str]:
    """Install a loader; return the command that runs its script, and a Python without our package."""
    environment = place / "venv"
    quiet: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
    subprocess.run([sys.executable, "-m", "venv", str(environment)], **quiet)
    python = str(environment / "bin" / "python")
    script = LOADERS / loader.script
    if script.suffix == ".mjs":
        (place / "package.json").write_text('{"type": "module"}', encoding="utf-8")
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *loader.packages], cwd=place, **quiet
        )
        shutil.copyfile(script, place / script.name)  # imports are looked for beside the script
        return ["node", str(place / script.name)], python
    pins = [] if loader.name in UNPINNED else ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "-q", *pins, *loader.packages], env=plain(), **quiet)
    if loader.name in UNPINNED:  # a torchvision that was built for another torch breaks every import
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], **quiet)
    seen = subprocess.run([python, "-c", "import compress"], cwd=place, env=plain(), capture_output=True)
    if seen.returncode == 0:
        sys.exit(f"{loader.name}: the environment is not clean, it has our package")
    return [python, str(script)], python


def plain() -> dict[str, str]:
    """Return the environment without what could bring our package in, or reach a hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCOMPRESS"))}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:200]


def render(results: list[Result], texts: int) -> str:
    lines = [
        "# Exports and stock loaders",
        "",
        "`mcompress run benchmarks/recipes/exports.yaml --out RUN --var MODELS=... --var DATA=...`, then",
        "`python benchmarks/exports.py RUN --data DATA/sst2/test.csv --work DIR`. MiniLM-L6 fine-tuned on SST-2, its",
        "vocabulary trimmed. Each loader sits in an environment of its own, without mcompress; it answered the first",
        f"{texts} texts of the test split one at a time, tokenized by its own means. Differences are from",
        "`compress.load` of the same step. INT8 must give the same label for 98 %, FP16 agree to 2 %, FP32 to 0.1 % of",
        "the largest logit.",
        "",
        "| loader | layout | file | largest difference of a logit | same label | `python verify.py` there |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for result in results:
        gap = "–" if result.largest_difference is None else f"{result.largest_difference:.2g}"
        same = "–" if result.same_labels is None else f"{result.same_labels} of {result.texts}"
        what = f"{result.loader} ({result.version})" if result.version else result.loader
        verdict = f"FAILED: {result.problem}" if result.problem else result.verify
        lines.append(f"| {what} | {result.layout} | {result.file or 'the folder'} | {gap} | {same} | {verdict} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
