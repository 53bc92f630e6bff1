"""What a latency table predicts against what pruned models take: random unequal structures of one model.

The table is measured for the model's architecture, or read from the store. Then the model is cut to random widths,
missing sub-layers among them, deployed as it would be, and timed beside its dense FP32 form.

    python benchmarks/latency_table.py --model MODELS/minilm-l6-sst2 --data DATA/sst2/validation.csv
    python benchmarks/latency_table.py ... --deploy int8 --target ort-cpu-1t --structures 5

Exits with 1 when a prediction is off by more than --tolerance. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress.bench.timing_statistics import ratio_of_totals
from compress.models.families import Dimensions, dimensions, encoder_layers
from compress.models.loading import load_torch
from compress.models.structure import keep_units
from compress.pruning.ladder import Widths
from compress.runtimes.target import find_target
from compress.search.deploy import deploy, spread_over_lengths, time_side_by_side
from compress.search.fitting import quiet_totals
from compress.search.latency import latency_table
from compress.store import Store
from compress.tasks.text_classification import TextClassification

GRID = 32
INPUTS = 64


def random_structures(size: Dimensions, count: int, seed: int) -> list[Widths]:
    """Return structures from nearly dense to nearly gone; one sub-layer in five is missing."""
    rng = np.random.default_rng(seed)
    found = []
    for share in np.linspace(1.0, 0.15, count):
        heads = np.maximum(1, rng.integers(0, round(share * size.heads) + 1, size.layers))
        neurons = np.maximum(1, rng.integers(0, round(share * size.neurons / GRID) + 1, size.layers)) * GRID
        heads[rng.random(size.layers) < 0.2] = 0
        neurons[rng.random(size.layers) < 0.2] = 0
        found.append(Widths(tuple(map(int, heads)), tuple(map(int, neurons))))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--deploy", choices=("fp32", "int8", "fp16"), default="fp32")
    parser.add_argument("--target", default="ort-cpu-1t")
    parser.add_argument("--structures", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.10, help="allowed relative error (default: 0.10)")
    parser.add_argument("--store", type=Path, default=None, help="default: MCOMPRESS_HOME")
    options = parser.parse_args(arguments)

    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    size, target = dimensions(config), find_target(options.target)
    task = TextClassification(tuple(config["id2label"].values()))
    with options.data.open(encoding="utf-8", newline="") as file:
        encoded = task.encode(options.model, [{"text": row["text"]} for row in csv.DictReader(file)])
    store = Store(options.store) if options.store else Store.default()
    begun = time.monotonic()
    table = latency_table(size, config, task, encoded, target, options.deploy, store=store, grid=GRID)
    print(f"table: {time.monotonic() - begun:.0f} s, {table.variants} models, median {table.tokens:g} tokens")
    print(
        f"fixed {table.costs.fixed:.3f} ms, dense FP32 {table.dense_fp32_ms:.2f} ms, fit within {table.worst_fit:.1%}"
    )

    structures = random_structures(size, options.structures, options.seed)
    dense = load_torch(options.model, task)
    chosen = encoded.select(spread_over_lengths(encoded.lengths, INPUTS))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        begun = time.monotonic()
        artifacts = {"dense": deploy(dense, options.model, task, "fp32", work / "dense", target=target)}
        print(f"export of the dense model: {time.monotonic() - begun:.0f} s")
        for number, widths in enumerate(structures):
            model = copy.deepcopy(dense)
            for layer, heads, neurons in zip(encoder_layers(model), widths.heads, widths.neurons, strict=True):
                keep_units(layer, range(heads), range(neurons))
            folder = work / f"{number}"
            artifacts[folder.name] = deploy(model, options.model, task, options.deploy, folder, target=target)
        rows = time_side_by_side(artifacts, chosen, target, work=work, rounds=options.rounds, seconds=300.0)
    samples = np.array([row.samples_ms[0] for row in rows])
    quiet = quiet_totals(samples) / len(chosen)
    print(f"\n{'predicted':>9} {'measured, 95 % interval':>24} {'fastest':>8} {'error':>7}   heads; neurons")
    worst = 0.0
    for row, own, widths in zip(rows[1:], quiet[1:], structures, strict=True):
        predicted, ratio = table.speedup(widths), ratio_of_totals(rows[0].samples_ms, row.samples_ms)
        error = predicted / ratio.value - 1
        worst = max(worst, abs(error))
        shown = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        units = f"{' '.join(map(str, widths.heads))}; {' '.join(map(str, widths.neurons))}"
        print(f"{predicted:8.2f}x {shown:>24} {quiet[0] / own:7.2f}x {error:+7.1%}   {units}")
    print(f"\nspeed-ups over the dense FP32 model; worst error {worst:.1%}, allowed {options.tolerance:.0%}")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
