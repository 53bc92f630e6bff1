"""How much memory pruning takes: peak resident set of a process that does nothing else.

MiniLM-L6 as given, and a BERT-base with random weights, made here with MiniLM's tokenizer. Each is taken in and pruned
to half of its multiply-accumulates by OBS, in a fresh process with a fresh store.

    python benchmarks/pruning_memory.py --model MODELS/minilm-l6-sst2 --data DATA/sst2

Exits with 1 when a peak is above its bar: 4 and 12 GB. Reading the peak of a process needs Linux.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from compress.bench.memory import peak_resident_bytes

GB = 1e9
BARS = {"MiniLM-L6": 4.0, "BERT-base, random weights": 12.0}
"""What is pruned -> the most that it may take, GB."""
VALIDATION = 32
"""Validation rows: they are read in other processes, whose memory is not what is measured."""


def make_bert_base(tokenizer_from: Path, out: Path) -> None:
    """Write a BERT-base classifier with random weights and the labels and the tokenizer of another model."""
    import torch
    import transformers

    from compress.models.loading import quiet

    given = json.loads((tokenizer_from / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    labels = {int(key): name for key, name in given["id2label"].items()}
    config = transformers.BertConfig(id2label=labels, label2id={name: key for key, name in labels.items()})
    with quiet():
        transformers.BertForSequenceClassification(config).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_from / name, out / name)


def prune(model: Path, data: Path, samples: int, threads: int) -> dict[str, float]:
    """Prune a model in this process; return its peak resident set in bytes and the seconds it took."""
    from compress.pipeline.planning import make_plan
    from compress.pipeline.running import run_steps
    from compress.recipe import load_recipe
    from compress.store import Store

    recipe = {
        "recipe": 1,
        "model": "${MODEL}",
        "data": {
            "train": {"path": "${DATA}/train.csv"},
            "validation": {"path": "${DATA}/validation.csv", "limit": VALIDATION},
            "calibration": {"samples": 0},
        },
        "run": {"threads": threads},
        "gates": {},
        "steps": [{"prune": {"macs": 0.5, "importance": "obs", "samples": samples}}],
        "measure": {"baselines": []},
    }
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        loaded = load_recipe(file, (), [f"MODEL={model}", f"DATA={data}"])
        run_steps(make_plan(loaded), Path(folder) / "run", Store(Path(folder) / "store"), _say)
    return {"peak_rss_bytes": peak_resident_bytes(), "seconds": time.monotonic() - begun}


def in_child(model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return what ``prune`` returns in a fresh process."""
    command = [sys.executable, __file__, "--child", "--model", str(model), "--data", str(options.data)]
    command += ["--samples", str(options.samples), "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of MiniLM-L6, fine-tuned")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and validation.csv")
    parser.add_argument("--samples", type=int, default=1024, help="training examples to prune by (default: 1024)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--only", choices=BARS, help="one of the two models; default: both")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(prune(options.model, options.data, options.samples, options.threads)))
        return 0
    above = False
    with tempfile.TemporaryDirectory() as folder:
        for name, bar in BARS.items():
            if options.only not in (None, name):
                continue
            model = options.model
            if name.startswith("BERT"):
                model = Path(folder) / "bert-base"
                make_bert_base(options.model, model)
            found = in_child(model, options)
            peak = found["peak_rss_bytes"] / GB
            above |= peak > bar
            shown = f"peak {peak:.2f} GB, bar {bar:g} GB, {found['seconds']:.0f} s"
            print(f"{name:26} {shown}, {options.samples} samples", flush=True)
    return int(above)


def _say(message: str, done: int | None = None, total: int | None = None) -> None:
    if done is None:
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
