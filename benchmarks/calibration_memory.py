"""How much memory calibration takes, against that of running the float32 model on the same examples.

Both run in a fresh process each, one example at a time at its real length.

    python benchmarks/calibration_memory.py --model MODELS/minilm-l6-sst2 --data DATA/sst2/train.csv

Exits with 1 when a peak is above twice that of running the model.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BAR = 2.0
"""The most that calibration may take, in times of running the model."""


def main(arguments: Sequence[str] | None = None) -> int:
    import onnx

    from compress.bench.protocol import inspect
    from compress.models.loading import load_torch
    from compress.quantization.calibration import calibrate
    from compress.quantization.rules import place, quantized_inputs, rules_for
    from compress.runtimes.target import find_target
    from compress.search.deploy import deploy
    from compress.tasks.text_classification import TextClassification

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="CSV with a column text")
    parser.add_argument("--samples", type=int, default=512, help="examples (default: 512)")
    options = parser.parse_args(arguments)
    target = find_target("ort-cpu-1t")
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    task = TextClassification(tuple(name for _, name in sorted(config["id2label"].items(), key=lambda it: int(it[0]))))
    with options.data.open(encoding="utf-8", newline="") as file:
        rows = [{"text": row["text"]} for row in csv.DictReader(file)][: options.samples]
    encoded = task.encode(options.model, rows)
    with tempfile.TemporaryDirectory() as folder:
        artifact = deploy(load_torch(options.model, task), options.model, task, "fp32", Path(folder) / "onnx")
        base = inspect(artifact, target, encoded, work=Path(folder)).peak_rss_bytes
        model = onnx.load(artifact.file())
    placed = place(model, rules_for(target.runtime))
    tensors = quantized_inputs(placed)
    print(f"{'float32':38} {base / 1e6:7.1f} MB, {len(encoded)} examples", flush=True)
    above = False
    for name, histograms in (("minmax, average", False), ("percentile, mse, entropy (histograms)", True)):
        begun = time.monotonic()
        peak = calibrate(model, encoded, tensors, histograms=histograms).peak_rss_bytes
        above |= peak > BAR * base
        seconds = time.monotonic() - begun
        print(f"{name:38} {peak / 1e6:7.1f} MB, {peak / base:.2f} times, {seconds:.0f} s", flush=True)
    return int(above)


if __name__ == "__main__":
    sys.exit(main())
