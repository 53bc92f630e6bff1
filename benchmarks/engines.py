"""Every family, pruned and not, in every precision, through the real TensorRT parser and builder, without a GPU.

    python benchmarks/engines.py --models MODELS --data DATA

BERT, RoBERTa, DistilBERT and ViT of the size of MiniLM-L6 with random weights: dense, with unequal heads and neurons,
and with sub-layers that are gone; then the fine-tuned models SST-2 and Banking77. Each is exported, cast and quantized
as the passes do it, checked by ``mcompress check``, and built by TensorRT-RTX. The ONNX file answers in ONNX Runtime,
16-bit values rounded as a GPU rounds them: how far its logits are from FP32's, and how many test examples are right.

Holds if every engine was built, every check agrees, and every form keeps its bound. Writes engines.json and README.md
to --out; exits with 1 when it does not hold. Without --models the fine-tuned ones are left out.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from compress.artifact import TensorSpec
from compress.bench.environment import environment
from compress.checks.checking import check_model
from compress.data.encoded import Encoded
from compress.errors import CompressError
from compress.export.onnx_clean import write_onnx
from compress.export.onnx_export import export_onnx
from compress.export.trt_api import load_trt
from compress.export.trt_build import build
from compress.export.trt_inspect import EngineSummary, inspect_engine
from compress.export.trt_profile import profile_from_lengths, profile_of_shapes
from compress.models.families import encoder_layers
from compress.models.fresh_images import fresh_vit
from compress.models.loading import load_torch
from compress.models.structure import keep_units
from compress.quantization.calibration import calibrate
from compress.quantization.fp16 import cast_half
from compress.quantization.half_emulation import emulate_half
from compress.quantization.half_ranges import measure_ranges
from compress.quantization.rules import Seen, place, quantized_inputs, rules_for
from compress.quantization.sensitivity import sqnr_db
from compress.quantization.variants import Variants
from compress.quantization.writing import Int8Format, write_int8
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import TextClassification

FAMILIES = ("bert", "roberta", "distilbert", "vit")
PRECISIONS = ("fp32-strict", "tf32", "fp16", "bf16", "int8")
SETS = ("sst2", "banking77")
WIDTHS = {
    "dense": ((12, 1536),) * 6,
    "pruned": ((11, 1376), (7, 1248), (9, 864), (3, 320), (12, 64), (1, 32)),
    "gone": ((0, 1536), (12, 0), (4, 64), (0, 512), (8, 0), (2, 32)),
}
"""Heads and neurons that each of six layers keeps; 0: the sub-layer is gone."""
BOUNDS_DB = {"fp32-strict": 80.0, "tf32": 80.0, "fp16": 40.0, "bf16": 25.0, "int8": 12.0}
"""Least signal over noise of random models: 40 dB is 1 % of noise, 12 dB 25 %. TF32 is the FP32 file."""
MOST_POINTS = 1.0
"""What a form may lose on a fine-tuned model, of the test split."""
RULES = rules_for("tensorrt")
LENGTH = 128


class Case(NamedTuple):
    """A float32 graph with examples; ``targets`` where it was fine-tuned."""

    name: str
    model: onnx.ModelProto
    calibration: Encoded
    test: Encoded
    targets: np.ndarray | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with minilm-l6-sst2 and minilm-l6-banking77")
    parser.add_argument("--data", type=Path, help="folder with sst2 and banking77")
    parser.add_argument("--out", type=Path, default=Path("reports/engines"))
    options = parser.parse_args(arguments)

    trt, rows = load_trt(), []
    with tempfile.TemporaryDirectory() as name:
        for case in cases(options.models, options.data, Path(name)):
            reference = Variants(case.model).run(case.model, case.test)
            for precision in PRECISIONS:
                rows.append(measure(case, precision, reference, Path(name)))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    record = {
        "schema_version": 1,
        "created": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "library": f"{trt.library} {trt.version}",
        "environment": environment(),
        "holds": all(row["holds"] for row in rows),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engines.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = markdown(record)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not record["holds"])


def cases(models: Path | None, data: Path | None, work: Path) -> Iterator[Case]:
    for family in FAMILIES:
        for name, widths in WIDTHS.items():
            folder = work / f"{family}-{name}"
            folder.mkdir()
            network, inputs, encoded = images(folder) if family == "vit" else texts(family)
            for layer, (heads, neurons) in zip(encoder_layers(network), widths, strict=True):
                keep_units(layer, range(heads), range(neurons))
            export_onnx(network, folder / "model.onnx", inputs=inputs)
            yield Case(f"{family}, {name}", onnx.load(folder / "model.onnx"), encoded, encoded)
    for name in SETS if models and data else ():
        yield fine_tuned(models / f"minilm-l6-{name}", data / name, work / name)


def texts(family: str) -> tuple[Any, list[TensorSpec], Encoded]:
    """Return a random encoder of the size of MiniLM-L6, its inputs and 32 sequences of ids."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    if family == "distilbert":
        sizes = {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536}
    torch.manual_seed(0)
    options = {"vocab_size": 30522, "max_position_embeddings": 514, "num_labels": 3, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **options, initializer_range=0.05)
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 30522, size) for size in rng.integers(8, 64, 32)]
    encoded = Encoded(
        {"input_ids": ids, "attention_mask": [np.ones(len(row), dtype=np.int64) for row in ids]},
        {"input_ids": 0, "attention_mask": 0},
    )
    inputs = [TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in encoded.inputs]
    return with_biases(AutoModelForSequenceClassification.from_config(config)), inputs, encoded


def images(folder: Path) -> tuple[Any, list[TensorSpec], Encoded]:
    """Return a random ViT of 65 tokens and otherwise the same sizes, its inputs and 32 images of noise."""
    task = ImageClassification(("0", "1", "2"))
    sizes = {"patch_size": 8, "layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536}
    fresh_vit(task, folder, image_size=64, num_channels=3, seed=0, **sizes)
    pixels = np.random.default_rng(0).normal(size=(32, 3, 64, 64)).astype(np.float32)
    inputs = [TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 64, 64))]
    return with_biases(load_torch(folder, task)), inputs, Encoded({"pixel_values": list(pixels)}, {})


def with_biases(network: Any) -> Any:
    """Draw biases, which begin as zeros: equal ones would be stored once."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def fine_tuned(model: Path, data: Path, work: Path) -> Case:
    """Export a fine-tuned model; 256 training texts calibrate, the test split is answered."""
    work.mkdir()
    labels = json.loads((model / "config.json").read_text(encoding="utf-8"))["id2label"]
    task = TextClassification(tuple(labels[key] for key in sorted(labels, key=int)), max_length=LENGTH)
    export_onnx(load_torch(model, task), work / "model.onnx", inputs=task.inputs(model))
    train, test = (read(data / f"{name}.csv") for name in ("train", "test"))
    chosen = np.random.default_rng(0).choice(len(train), 256, replace=False)
    calibration = task.encode(model, [{"text": train[i]["text"]} for i in chosen])
    targets = np.array([task.labels.index(row["label"]) for row in test])
    encoded = task.encode(model, [{"text": row["text"]} for row in test])
    return Case(model.name, onnx.load(work / "model.onnx"), calibration, encoded, targets)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def form(case: Case, precision: str) -> onnx.ModelProto:
    """Return the graph in a precision, by the defaults of ``cast`` and the rules of ``quantize``."""
    if precision in ("fp32-strict", "tf32"):
        return case.model
    if precision == "bf16":
        return cast_half(case.model, "bfloat16")[0]
    model = case.model
    if precision == "int8":
        seen = calibrate(model, case.calibration, quantized_inputs(place(model, RULES)))
        placed = place(model, RULES, seen=Seen(LENGTH, seen.vanishing()))
        model = write_int8(model, placed, seen.ranges("minmax"), Int8Format(activation="int8"))
    return cast_half(model, "float16", ranges=measure_ranges(model, case.calibration))[0]


def measure(case: Case, precision: str, reference: np.ndarray, work: Path) -> dict[str, Any]:
    """Check, build and answer one form of a model."""
    file, engine = work / "form.onnx", work / "form.engine"
    model = form(case, precision)
    write_onnx(model, file)
    refusals = [f"{it.rule}: {it.node}" for it in check_model(file, "tensorrt").of("error")]
    row: dict[str, Any] = {"model": case.name, "precision": precision, "onnx_mb": file.stat().st_size / 1e6}
    begun = time.monotonic()
    try:
        built = build(file, engine, profile(model, case), tf32=precision == "tf32")
    except CompressError as error:
        return row | {"built": False, "refusals": refusals, "reason": str(error), "holds": False}
    seconds, summary = time.monotonic() - begun, inspect_engine(engine, file, built.listing)
    layers = summary.model_dump() if isinstance(summary, EngineSummary) else {"not_inspected": summary}
    answering = model if precision in ("fp32-strict", "tf32") else emulate_half(model)
    outputs = Variants(answering, as_written=True).run(answering, case.test)
    db = sqnr_db(*(it - it.mean(axis=1, keepdims=True) for it in (reference, outputs)))
    holds = not refusals and built.record.precision == precision
    if case.targets is None:
        holds = holds and db >= BOUNDS_DB[precision]
    else:
        right, before = (int((it.argmax(axis=1) == case.targets).sum()) for it in (outputs, reference))
        row |= {"right": right, "of": len(case.targets), "points": 100 * (right - before) / len(case.targets)}
        holds = holds and row["points"] >= -MOST_POINTS
    return row | {
        "built": True,
        "build_s": round(seconds, 1),
        "engine_mb": engine.stat().st_size / 1e6,
        "signal_to_noise_db": round(db, 1),
        "layers": layers,
        "refusals": refusals,
        "holds": holds,
    }


def profile(model: onnx.ModelProto, case: Case) -> dict[str, Any]:
    names = [value.name for value in model.graph.input]
    if names == ["pixel_values"]:
        return profile_of_shapes({"pixel_values": case.calibration.inputs["pixel_values"][0].shape})
    return profile_from_lengths(names, case.calibration.lengths, LENGTH)


def markdown(record: dict[str, Any]) -> str:
    """Return the page: a line for each engine."""
    rows = record["rows"]
    built, held = (sum(row[key] for row in rows) for key in ("built", "holds"))
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in BOUNDS_DB.items())
    lines = [
        "# Engines",
        "",
        f"{record['library']} on a CPU, {record['created']}: {built} of {len(rows)} engines built, {held} hold. None "
        "has been run: that takes a GPU. Everything is in [engines.json](engines.json).",
        "",
        "Models of the size of MiniLM-L6: random ones dense, *pruned* to unequal heads and neurons, and with "
        "sub-layers that are *gone*; then two fine-tuned ones. `mcompress check` finds no error where it holds. "
        f"Signal over noise is of the ONNX file's centred logits against FP32's, bounds in dB: {bounds}. A fine-tuned "
        f"model may lose {MOST_POINTS:g} point of the test split. INT8 ranges run from smallest to largest value; "
        "`quantize: {target: tensorrt}` tries five ways to choose them.",
        "",
        "| model | precision | ONNX, MB | engine, MB | build, s | layers | fused attention | against FP32 | holds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    if not row["built"]:
        return f"| {row['model']} | {row['precision']} | {row['onnx_mb']:.1f} | not built | | | | | no |"
    layers = row["layers"]
    types = ", ".join(f"{count} {name}" for name, count in layers.get("precisions", {}).items())
    fused = f"{layers['fused_attention']} of {layers['attention']}" if "attention" in layers else ""
    against = f"{row['signal_to_noise_db']:.1f} dB"
    if "right" in row:
        against = f"{row['right']:,} of {row['of']:,} right ({row['points']:+.2f} points)"
    return (
        f"| {row['model']} | {row['precision']} | {row['onnx_mb']:.1f} | {row['engine_mb']:.1f} | "
        f"{row['build_s']:.1f} | {types} | {fused} | {against} | {'yes' if row['holds'] else 'no'} |"
    )


if __name__ == "__main__":
    sys.exit(main())
