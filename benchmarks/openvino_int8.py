"""Where INT8 loses accuracy in OpenVINO, which INT8 model keeps it there, and what that one gains.

1. One product of unsigned by signed bytes, with 8-bit and with 7-bit weights, against exact arithmetic: does it
   saturate on this CPU?
2. `nncf.quantize` without a model type puts quantizers wherever an operator could take integers. Each group of them
   is kept alone (embeddings, mask, Q.K, P.V, residual sums, ...), then the worst one layer by layer.
3. Candidates: that model, NNCF's for transformers, and our QDQ file, which ONNX Runtime reads too; accuracy, share of
   the linear layers' multiply-accumulates on integers, and latency beside OpenVINO FP32, on one thread.

    python benchmarks/openvino_int8.py --model MODELS/minilm-l6-sst2 --data DATA/sst2

Exits with 1 when no candidate holds: at most 1.0 point below FP32, at least 70 % on integers, and faster. Needs
openvino and nncf (extra "openvino"); NNCF sends usage statistics unless the user has opted out.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.bench.measurement import Measurement
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.bench.statistics import paired_difference
from compress.bench.timing_statistics import ratio_of_totals
from compress.data.encoded import Encoded
from compress.models.loading import load_torch
from compress.quantization.calibration import calibrate
from compress.quantization.isa import isa_name
from compress.quantization.rules import place, quantized_inputs, rules_for
from compress.quantization.writing import Int8Format, write_int8
from compress.runtimes.target import find_target
from compress.search.deploy import deploy
from compress.search.quantizing import throwaway
from compress.tasks.text_classification import TextClassification

TARGET = "openvino-cpu-1t"
MAX_DROP_POINTS, LEAST_SHARE = 1.0, 0.70
GROUPS = (
    ("embeddings", r"embeddings/"),
    ("mask", r"Where|self/Mul/"),
    ("attention Q.K", r"self\.(query|key)/Add"),
    ("attention P.V", r"Softmax|self\.value/Add"),
    ("attention result", r"self/MatMul_2"),
    ("residual sums", r"output(\.dense)?/Add/"),
    ("layernorm results", r"LayerNorm/"),
    ("activation function", r"Gelu"),
    ("head", r"pooler|classifier"),
)
"""Group -> what the names of its quantizers contain, the first that fits."""


@dataclass(frozen=True)
class Material:
    """What every experiment works on."""

    dense: Artifact
    calibration: Encoded
    validation: Encoded

    def right(self, outputs: np.ndarray) -> np.ndarray:
        """Return (n,) whether each validation example is right."""
        assert self.validation.targets is not None
        return np.asarray(outputs.argmax(axis=1) == self.validation.targets)


def saturation(weight_bits: int, terms: int = 64) -> tuple[float, float]:
    """Multiply the largest bytes by the largest weights in OpenVINO; return the result and the exact one."""
    import openvino
    from openvino import opset13 as op

    largest = 2 ** (weight_bits - 1) - 1
    x = op.parameter([-1, terms], np.float32)
    low, high = op.constant(np.float32(0)), op.constant(np.float32(255))
    quantized = op.fake_quantize(x, low, high, low, high, 256)
    integers = op.constant(np.full((32, terms), largest, dtype=np.int8))
    weight = op.multiply(op.convert(integers, np.float32), op.constant(np.ones((32, 1), dtype=np.float32)))
    model = openvino.Model([op.result(op.matmul(quantized, weight, False, True))], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(np.full((1, terms), 255, dtype=np.float32))[0]
    return float(found.flat[0]), float(255 * largest * terms)


def nncf_model(material: Material, *, transformer: bool, plain: bool = False, padded_to: int = 0) -> Any:
    """Quantize the FP32 graph with NNCF, one example at a time.

    Args:
        transformer: whether NNCF is told that the model is one.
        plain: without bias correction, so that a quantizer can be taken out without side effects.
        padded_to: pad calibration examples to so many tokens; 0 = real lengths.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(material.dense.file())
    names = {port.any_name for port in model.inputs}
    encoded = material.calibration

    def feed(index: int) -> dict[str, np.ndarray]:
        batch = {name: array for name, array in encoded.batch([index]).items() if name in names}
        return {n: np.pad(a, ((0, 0), (0, max(0, padded_to - a.shape[1])))) for n, a in batch.items()}

    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=True) if plain else None
    return nncf.quantize(
        model,
        nncf.Dataset(list(range(len(encoded))), feed),
        subset_size=len(encoded),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        advanced_parameters=advanced,
    )


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), "other")


def keep_quantizers(model: Any, keep: Callable[[str], bool]) -> tuple[Any, list[str]]:
    """Return a copy whose activation quantizers are those that ``keep`` names, and their names; weights stay 8-bit."""
    copy, kept = model.clone(), []
    for node in copy.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            if keep(node.get_friendly_name()):
                kept.append(node.get_friendly_name())
            else:
                node.output(0).replace(node.input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy, kept


def run(model: Any, encoded: Encoded) -> np.ndarray:
    """Return (n, labels) outputs of an openvino.Model, one example at a time."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    names = {port.any_name for port in compiled.inputs}
    feeds = ({n: a for n, a in encoded.batch([i]).items() if n in names} for i in range(len(encoded)))
    return np.stack([np.array(compiled(feed)[0][0]) for feed in feeds])


def signal_to_noise(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Return the ratio of the energy of a signal to that of its error, dB."""
    noise = float(((reference - outputs) ** 2).sum())
    return float("inf") if noise == 0 else float(10 * np.log10((reference**2).sum() / noise))


def isolate(material: Material) -> None:
    """Print what each group of quantizers alone does, then the worst one by layer."""
    import openvino

    model = nncf_model(material, transformer=False, plain=True)
    reference = run(openvino.Core().read_model(material.dense.file()), material.validation)
    print(
        f"\nFP32: {material.right(reference).sum()}/{len(reference)} right. Weights in 8 bits, and of the quantizers:"
    )
    print(f"{'kept':34} {'count':>5} {'SQNR, dB':>9} {'right':>6} {'points':>7}")

    def show(label: str, keep: Callable[[str], bool], model: Any = model) -> float:
        kept_model, kept = keep_quantizers(model, keep)
        outputs = run(kept_model, material.validation)
        noise, right = signal_to_noise(reference, outputs), int(material.right(outputs).sum())
        points = 100.0 * (right - int(material.right(reference).sum())) / len(reference)
        print(f"{label:34} {len(kept):5} {noise:9.1f} {right:6} {points:+7.2f}", flush=True)
        return noise

    names = [n.get_friendly_name() for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]
    show("none", lambda name: False)
    show("all", lambda name: True)
    noise = {
        group: show(f"only {group}", lambda n, g=group: group_of(n) == g) for group in Counter(map(group_of, names))
    }
    worst = min(noise, key=lambda group: noise[group])
    show(f"all but {worst}", lambda name: group_of(name) != worst)
    layers = sorted({match[1] for name in names if (match := re.search(r"layer\.(\d+)\.", name))}, key=int)
    for layer in layers:
        show(f"only {worst}, layer {layer}", lambda n, t=f"layer.{layer}.": group_of(n) == worst and t in n)
    longest = int(material.calibration.lengths.max())
    padded = nncf_model(material, transformer=False, plain=True, padded_to=longest)
    show("only mask, calibrated on padding", lambda name: group_of(name) == "mask", padded)
    print(f"the cause: {worst}")


def ir_artifact(model: Any, source: Artifact, out: Path) -> Artifact:
    """Write an openvino.Model as an artifact that can be measured."""
    import openvino

    out.mkdir()
    openvino.save_model(model, out / "model.xml", compress_to_fp16=False)
    graph = source.manifest.graphs["model"].model_copy(update={"file": "model.xml"})
    made = PassRecord(name="benchmark", version=1, config={})
    return create_artifact(out, kind="openvino", task=source.manifest.task, graphs={"model": graph}, made_by=made)


def qdq_artifact(material: Material, weight_bits: int, tables: bool, out: Path) -> Artifact:
    """Write our QDQ form of the FP32 graph, placed by the rules of OpenVINO."""
    import onnx

    model = onnx.load(material.dense.file())
    placed = place(model, rules_for("openvino"), tables=tables)
    inputs = quantized_inputs(placed)
    ranges = calibrate(model, material.calibration, inputs, histograms=False).ranges("minmax")
    out.mkdir()
    bits: Any = weight_bits
    return throwaway(write_int8(model, placed, ranges, Int8Format(weight_bits=bits)), material.dense, out)


def candidates(material: Material, work: Path) -> dict[str, Artifact]:
    """Return label -> artifact; FP32 is first."""
    bits = rules_for("openvino").isa[isa_name()].weight_bits
    plain, told = nncf_model(material, transformer=False), nncf_model(material, transformer=True)
    return {
        "FP32": material.dense,
        "NNCF, no model type": ir_artifact(plain, material.dense, work / "nncf-plain"),
        "NNCF, transformer": ir_artifact(told, material.dense, work / "nncf-transformer"),
        f"QDQ, {bits}-bit weights": qdq_artifact(material, bits, False, work / "qdq"),
        f"QDQ, {bits}-bit weights, 8-bit tables": qdq_artifact(material, bits, True, work / "qdq-tables"),
    }


def judge(rows: Sequence[Measurement], material: Material) -> list[str]:
    """Print one line per candidate; return the labels of those that hold."""
    base, held = rows[0], []
    assert base.outputs is not None
    right = material.right(base.outputs)
    print(f"\n{'candidate':40} {'right':>6} {'points, 95 % interval':>24} {'integers':>9} {'speed-up':>22} {'MB':>6}")
    for row in rows:
        if row.status != "ok" or row.outputs is None:
            print(f"{row.subject:40} {row.status}: {row.reason}")
            continue
        now = material.right(row.outputs)
        drop, ratio = paired_difference(right, now), ratio_of_totals(base.samples_ms, row.samples_ms)
        share = row.placement.get("integer_mac_share", 0.0)
        points = f"{100 * drop.value:+.2f} ({100 * drop.low:+.2f} to {100 * drop.high:+.2f})"
        speed = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        print(f"{row.subject:40} {now.sum():6} {points:>24} {share:9.1%} {speed:>22} {row.size_bytes / 1e6:6.1f}")
        if row is not base and 100 * drop.value >= -MAX_DROP_POINTS and share >= LEAST_SHARE and ratio.low > 1.0:
            held.append(row.subject)
    return held


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and validation.csv")
    parser.add_argument("--samples", type=int, default=300, help="calibration examples (default: 300)")
    parser.add_argument("--limit", type=int, default=None, help="validation examples (default: all)")
    parser.add_argument("--inputs", type=int, default=64, help="examples that are timed (default: 64)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-isolate", action="store_true", help="leave out part 2")
    options = parser.parse_args(arguments)

    task = TextClassification(tuple(json.loads((options.model / "config.json").read_text())["id2label"].values()))
    train, validation = (_rows(options.data / f"{name}.csv") for name in ("train", "validation"))
    drawn = np.sort(np.random.default_rng(0).permutation(len(train))[: options.samples])
    print(f"this CPU multiplies bytes as {isa_name()}")
    for bits in (8, 7):
        found, exact = saturation(bits)
        print(f"  {bits}-bit weights: {found:,.0f} of {exact:,.0f}{'' if found == exact else ': SATURATES'}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        dense = deploy(load_torch(options.model, task), options.model, task, "fp32", work / "fp32")
        encode = [task.encode(options.model, rows) for rows in ([train[i] for i in drawn], validation[: options.limit])]
        material = Material(dense, *encode)
        if not options.no_isolate:
            isolate(material)
        target = find_target(TARGET)
        subjects = [Subject(k, v, material.validation, target) for k, v in candidates(material, work).items()]
        settings = MeasureSettings(
            inputs=options.inputs, rounds=options.rounds, launches=1, precision=None, seconds=300.0
        )
        held = judge(measure(subjects, settings=settings, work=work), material)
    verdict = (
        f"OpenVINO INT8 holds: {'; '.join(held)}" if held else "no INT8 candidate holds: ship FP32 or ONNX Runtime"
    )
    print(f"\nverdict on {TARGET}, {isa_name()}: {verdict}")
    return 0 if held else 1


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
