"""Sensitivity beside numpy: the two distances, one product alone, its two inputs apart, planted outliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.special
import scipy.stats
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import RunError, UsageError
from compress.models.loading import load_torch
from compress.quantization.graph import Graph
from compress.quantization.products import find_products
from compress.quantization.ranges import Range
from compress.quantization.rules import Placement, place, rules_for
from compress.quantization.sensitivity import (
    EXACT_DB,
    Probe,
    Sensitivity,
    divergence,
    measure_sensitivity,
    noise_shares,
    sensitivity_notes,
    sqnr_db,
)
from compress.quantization.writing import Int8Format, write_half
from compress.search.deploy import deploy
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

RNG = np.random.default_rng(5)


def network(weights: list[np.ndarray], *, gemm: bool = False) -> onnx.ModelProto:
    """x -> product -> Relu -> ... -> logits; ``gemm`` stores the weights transposed, with a bias of 0.5."""
    nodes, constants, name = [], [], "x"
    for i, weight in enumerate(weights):
        last = i == len(weights) - 1
        out = "logits" if last else f"p{i}"
        if gemm:
            constants.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{i}"))
            constants.append(numpy_helper.from_array(np.full(weight.shape[1], 0.5, np.float32), f"b{i}"))
            nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [out], name=f"layer{i}", transB=1))
        else:
            constants.append(numpy_helper.from_array(weight, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [out], name=f"layer{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"], name=f"relu{i}"))
            name = f"r{i}"
    shape_in, shape_out = ["batch", weights[0].shape[0]], ["batch", weights[-1].shape[1]]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def examples(count: int, width: int) -> Encoded:
    rows = [row for row in RNG.normal(size=(count, width)).astype(np.float32)]
    return Encoded({"x": rows}, {})


def weight(rows: int, columns: int) -> np.ndarray:
    return RNG.normal(size=(rows, columns)).astype(np.float32)


def placed(model: onnx.ModelProto) -> list[Placement]:
    return place(model, rules_for("onnxruntime"))


def round_weight(w: np.ndarray, bits: int = 8) -> np.ndarray:
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=0) / largest
    return np.rint(w / scale) * scale


def round_activation(x: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def round_at_run_time(x: np.ndarray) -> np.ndarray:
    return round_activation(x, min(float(x.min()), 0.0), max(float(x.max()), 0.0))


def ratio(reference: np.ndarray, outputs: np.ndarray) -> float:
    signal = sum(float(v) ** 2 for v in reference.ravel())
    noise = sum(float(a - b) ** 2 for a, b in zip(reference.ravel(), outputs.ravel(), strict=True))
    return 10 * math.log10(signal / noise)


def test_sqnr_is_its_definition_and_has_an_end_at_both_sides() -> None:
    a, b = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 3))
    assert sqnr_db(a, b) == pytest.approx(ratio(a, b))
    assert sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr_db(a, a) == EXACT_DB
    assert sqnr_db(a, np.where(a > 0, np.nan, a)) == -EXACT_DB
    assert sqnr_db(np.zeros(3), np.ones(3)) == -EXACT_DB


def test_divergence_is_that_of_the_softmaxes() -> None:
    a, b = 5 * RNG.normal(size=(9, 4)), 5 * RNG.normal(size=(9, 4))
    p, q = scipy.special.softmax(a, axis=1), scipy.special.softmax(b, axis=1)
    assert divergence(a, b) == pytest.approx(np.mean([scipy.stats.entropy(x, y) for x, y in zip(p, q, strict=True)]))
    assert divergence(a, a + 7.0) == pytest.approx(0.0, abs=1e-12)
    assert divergence(1e4 * a, 1e4 * a[::-1]) > 1.0
    assert divergence(a[:, :1], b[:, :1]) is None


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("bits", [8, 7])
def test_one_product_alone_is_what_numpy_computes_at_run_time_ranges(gemm: bool, bits: int) -> None:
    first, second = weight(24, 32), weight(32, 16)
    model, encoded = network([first, second], gemm=gemm), examples(6, 24)
    rows = measure_sensitivity(
        Probe(model, encoded, how=Int8Format("integer", weight_bits=bits)), placed(model), tensors=True
    )
    bias, x = 0.5 if gemm else 0.0, np.stack(encoded.inputs["x"])
    inner = np.maximum(x @ first + bias, 0)
    reference = inner @ second + bias
    rounded = np.stack([round_at_run_time(row) for row in inner])
    expected = {
        "both": rounded @ round_weight(second, bits) + bias,
        "activation": rounded @ second + bias,
        "weight": inner @ round_weight(second, bits) + bias,
    }
    row = next(row for row in rows if row.node == "layer1")
    found = {"both": row.sqnr_db, "activation": row.activation_sqnr_db, "weight": row.weight_sqnr_db}
    assert found == {name: pytest.approx(ratio(reference, values), abs=0.02) for name, values in expected.items()}
    assert row.kl == pytest.approx(divergence(reference, expected["both"]), rel=0.02)
    assert {row.node: row.macs_share for row in rows} == {"layer0": pytest.approx(0.6), "layer1": pytest.approx(0.4)}


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_one_product_alone_is_what_numpy_computes_with_given_ranges(activation: str) -> None:
    first = weight(24, 20)
    model, encoded = network([first]), examples(6, 24)
    probe = Probe(model, encoded, ranges={"x": Range(-1.5, 2.0)}, how=Int8Format("qdq", activation=activation))
    (row,) = measure_sensitivity(probe, placed(model), tensors=True)
    x = np.stack(encoded.inputs["x"])
    if activation == "uint8":
        rounded = round_activation(x, -1.5, 2.0)
    else:
        rounded = np.clip(np.rint(x / np.float32(2.0 / 127)), -128, 127) * np.float32(2.0 / 127)
    assert row.sqnr_db == pytest.approx(ratio(x @ first, rounded @ round_weight(first)), abs=0.02)
    assert row.activation_sqnr_db == pytest.approx(ratio(x @ first, rounded @ first), abs=0.02)
    assert row.weight_sqnr_db == pytest.approx(ratio(x @ first, x @ round_weight(first)), abs=0.02)


def test_an_activation_without_a_range_is_an_error() -> None:
    model = network([weight(24, 20)])
    (product,) = find_products(Graph(model))
    with pytest.raises(UsageError, match="no range"):
        write_half(model, product, "activation", {})


def outlier_networks() -> dict[str, list[np.ndarray]]:
    """Three layers; in the middle one an input that is always 0 has huge weights, or one that is huge has none."""
    layers = [weight(24, 32), weight(32, 32), weight(32, 16)]
    layers[0][:, 0], layers[1][0] = 0.0, 500.0
    by_weight = [layer.copy() for layer in layers]
    layers[0][:, 0], layers[1][0] = 500.0 * layers[0][:, 1], 0.0
    return {"weight": by_weight, "activation": layers}


@pytest.mark.parametrize("half", ["weight", "activation"])
def test_a_planted_outlier_is_ranked_first_and_its_tensor_is_told(half: str) -> None:
    model = network(outlier_networks()[half])
    rows = measure_sensitivity(Probe(model, examples(12, 24)), placed(model), tensors=True)
    assert rows[0].node == "layer1"
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert rows[0].sqnr_db < rows[1].sqnr_db - 10
    pair = {"weight": rows[0].weight_sqnr_db, "activation": rows[0].activation_sqnr_db}
    assert pair.pop(half) < min(pair.values()) - 10
    assert noise_shares(rows)[0] > 0.9


def test_an_encoder_is_ranked_with_tables_and_metric_and_stays_as_it_was(
    tiny_exported: Callable[..., Artifact],
) -> None:
    artifact = tiny_exported()
    model, task = onnx.load(artifact.file()), TextClassification(("bad", "fine", "good"), max_length=32)
    before = model.SerializeToString()
    texts = [{"text": text, "label": task.labels[i % 3]} for i, text in enumerate(GOLDEN_TEXTS)]
    encoded = task.encode(artifact.path, texts)
    probe, placements = Probe(model, encoded, task=task), placed(model)
    rows = measure_sensitivity(probe, placements, tensors=True)
    assert model.SerializeToString() == before
    assert {row.node for row in rows} == {it.node for it in placements if it.precision == "int8"}
    tables = [row for row in rows if row.operator == "Gather"]
    assert len(tables) == 3
    assert all(row.activation_sqnr_db is None and row.weight_sqnr_db == row.sqnr_db for row in tables)
    score = task.score(probe.reference, encoded.targets)
    for row in rows:
        assert row.drop_points == pytest.approx(100 / len(texts) * round(row.drop_points * len(texts) / 100))
        assert -100 * (1 - score.value) <= row.drop_points <= 100 * score.value
    shares = {row.node: row.macs_share for row in rows}
    assert 0.9 < sum(shares.values()) <= 1.0
    dense = shares["bert.encoder.layer.0.output.dense/MatMul"]
    length = int(np.sort(encoded.lengths)[len(encoded) // 2])
    assert dense / shares["bert.pooler.dense/Gemm"] == pytest.approx(64 * 32 * length / (32 * 32))
    together = probe.effect(placements)
    noise = sum(10 ** (-row.sqnr_db / 10) for row in rows)
    assert together.sqnr_db == pytest.approx(-10 * math.log10(noise), abs=3)


def test_an_image_encoder_is_ranked_too(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    folder, task = tiny_images("vit"), ImageClassification(("bad", "fine", "good"))
    artifact = deploy(load_torch(folder, task), folder, task, "fp32", tmp_path / "onnx")
    model, encoded = onnx.load(artifact.file()), task.encode(folder, task.golden_rows(folder))
    rows = measure_sensitivity(Probe(model, encoded), placed(model))
    assert len(rows) == 12  # query, key, value, output, two of the feed-forward network, twice
    assert all(10 < row.sqnr_db < EXACT_DB and row.kl > 0 for row in rows)


def test_an_unlabelled_example_has_no_metric_and_no_example_is_an_error() -> None:
    model = network([weight(24, 20)])
    task = TextClassification(tuple(map(str, range(20))))
    (row,) = measure_sensitivity(Probe(model, examples(2, 24), task=task), placed(model))
    assert (row.drop_points, row.activation_sqnr_db, row.weight_sqnr_db) == (None, None, None)
    with pytest.raises(RunError, match="no example"):
        Probe(model, Encoded({"x": []}, {}))


def test_a_regression_counts_its_error_in_its_own_unit() -> None:
    model, encoded = network([weight(24, 32), weight(32, 1)]), examples(5, 24)
    targets = np.zeros(5)
    task = TextClassification((), problem="regression")
    probe = Probe(model, Encoded(encoded.inputs, {}, targets), task=task)
    (row,) = measure_sensitivity(probe, placed(model))
    outputs = round_runs(np.stack(encoded.inputs["x"]), model)
    assert row.drop_points == pytest.approx(np.abs(outputs).mean() - np.abs(probe.reference).mean(), abs=2e-3)
    assert row.kl is None


def round_runs(x: np.ndarray, model: onnx.ModelProto) -> np.ndarray:
    first, second = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    rounded = np.stack([round_at_run_time(row) for row in x])
    return np.maximum(rounded @ round_weight(first), 0) @ second


def test_a_model_that_does_not_run_or_is_not_finite_is_an_error() -> None:
    model = network([weight(24, 20)])
    with pytest.raises(RunError, match="could not be run"):
        Probe(model, examples(2, 23))
    with pytest.raises(RunError, match="not finite"):
        Probe(network([np.full((24, 20), np.inf, np.float32)]), examples(2, 24))


def test_notes_hold_every_field_and_the_reason() -> None:
    row = Sensitivity("a", "MatMul", 4.1, 0.2, 1.5, 0.25)
    (note,) = sensitivity_notes([row], {"a": "sensitivity 4.1 dB"})
    assert note.pop("excluded") == "sensitivity 4.1 dB"
    assert Sensitivity(**note) == row
    assert sensitivity_notes([row])[0]["excluded"] == ""
