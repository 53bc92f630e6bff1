from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import RunError, UsageError
from compress.export.onnx_clean import write_onnx
from compress.quantization.attention import find_attention
from compress.quantization.calibration import Calibration, calibrate
from compress.quantization.first_token import keep_first_token
from compress.quantization.graph import Graph
from compress.quantization.products import find_products, weight_of
from compress.quantization.ranges import Range
from compress.quantization.rules import Placement, place, rules_for
from compress.quantization.writing import Int8Format, quantize_weight, write_int8
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
RULES = rules_for("onnxruntime")


@pytest.fixture
def model(tiny_exported: Callable[..., Artifact]) -> onnx.ModelProto:
    return onnx.load(tiny_exported().file())


@pytest.fixture
def encoded(tiny_exported: Callable[..., Artifact]) -> Encoded:
    return TASK.encode(tiny_exported().path, [{"text": text} for text in GOLDEN_TEXTS])


def run(model: onnx.ModelProto, encoded: Encoded, *, padded: bool = False) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    groups = [list(range(len(encoded)))] if padded else [[i] for i in range(len(encoded))]
    feeds = ({n: a for n, a in encoded.batch(group).items() if n in wanted} for group in groups)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def calibrated(model: onnx.ModelProto, encoded: Encoded, placed: list[Placement]) -> Calibration:
    tensors = [p.product.input for p in placed if p.precision == "int8" and p.product and p.product.input]
    return calibrate(model, encoded, tensors)


def linear(weight: np.ndarray, bias: np.ndarray, *, gemm: bool = False) -> onnx.ModelProto:
    """One linear layer, x (n, K) -> y (n, N), as MatMul and Add or as a transposed Gemm."""
    constants = [numpy_helper.from_array(bias, "b")]
    if gemm:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=1)]
        constants.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"))
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["xw"], name="layer"),
            helper.make_node("Add", ["xw", "b"], ["y"], name="bias"),
        ]
        constants.append(numpy_helper.from_array(weight, "w"))
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in zip("xy", weight.shape, strict=True)
    ]
    graph = helper.make_graph(nodes, "linear", value[:1], value[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, it: Range, bits: int, per_channel: bool) -> np.ndarray:
    integers, scale = quantize_weight(weight, bits, per_channel=per_channel)
    codes = np.clip(np.rint(x / np.float32(it.scale)) + it.zero_point, 0, 255).astype(np.int64) - it.zero_point
    return (codes @ integers.astype(np.int64)) * np.float32(it.scale) * scale + bias


@pytest.mark.parametrize("form", ["qdq", "integer"])
@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize(("bits", "per_channel"), [(8, True), (7, True), (8, False)])
def test_a_layer_computes_what_integers_by_hand_give(form: Any, gemm: bool, bits: Any, per_channel: bool) -> None:
    import onnxruntime

    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(48, 32)).astype(np.float32), rng.normal(size=32).astype(np.float32)
    x, it = rng.normal(size=(5, 48)).astype(np.float32), Range(-2.5, 3.0)
    model = linear(weight, bias, gemm=gemm)
    how = Int8Format(form=form, weight_bits=bits, per_channel=per_channel)
    written = write_int8(model, place(model, RULES), {"x": it}, how)
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], by_hand(x, weight, bias, it, bits, per_channel), atol=2e-5
    )


def test_weights_are_rounded_by_the_definition() -> None:
    weight = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    weight[:, 2] = 0.0
    integers, scale = quantize_weight(weight, 7)
    assert np.abs(integers).max() == 63
    assert scale[2] == 1.0
    np.testing.assert_allclose(np.delete(scale, 2), np.abs(np.delete(weight, 2, axis=1)).max(axis=0) / 63, rtol=1e-6)
    assert np.all(np.abs(integers * scale - weight) <= scale / 2 + 1e-7)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_first_token_cut_is_exact_with_and_without_padding(tiny_exported: Callable[..., Artifact], family: str) -> None:
    artifact = tiny_exported(family)
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    model = onnx.load(artifact.file())
    before = model.SerializeToString()
    short = keep_first_token(model)
    assert short is not None
    assert sum(node.op_type == "Slice" and "first_token" in node.name for node in short.graph.node) >= 2
    for padded in (False, True):
        np.testing.assert_allclose(run(short, encoded, padded=padded), run(model, encoded, padded=padded), atol=2e-6)
    assert model.SerializeToString() == before


def test_first_token_cut_leaves_a_graph_alone_that_reads_every_token() -> None:
    assert keep_first_token(linear(np.ones((4, 4), np.float32), np.ones(4, np.float32))) is None


def test_attention_is_found_with_its_parts(model: onnx.ModelProto) -> None:
    found = find_attention(Graph(model))
    assert [it.query.name.split(".")[3] for it in found] == ["0", "1"]
    assert all(it.head_size == 8 and it.usual_scale and it.mask is not None for it in found)


@pytest.mark.parametrize("pruned", [False, True])
def test_every_form_agrees_with_the_others(tiny_exported: Callable[..., Artifact], pruned: bool) -> None:
    """QDQ, integer operators and fused attention round the same numbers; a layer of one narrow head stays in float."""
    artifact = tiny_exported("bert", pruned)
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    model = onnx.load(artifact.file())
    placed = place(model, RULES)
    ranges = calibrated(model, encoded, placed).ranges("minmax")
    exact = run(model, encoded, padded=True)
    made = {
        "qdq": write_int8(model, placed, ranges),
        "integer": write_int8(model, placed, ranges, Int8Format("integer")),
        "fused": write_int8(model, placed, ranges, Int8Format("integer", fused=True)),
    }
    outputs = {name: run(it, encoded, padded=True) for name, it in made.items()}
    assert 0 < np.abs(outputs["qdq"] - exact).max() < 0.1 * np.abs(exact).max()
    for name in ("integer", "fused"):
        assert np.abs(outputs[name] - outputs["qdq"]).max() < 0.02 * np.abs(exact).max()
    kinds = Counter(node.op_type for node in made["fused"].graph.node)
    assert kinds["QAttention"] == (1 if pruned else 2)
    assert kinds["Softmax"] == (1 if pruned else 0)


def test_dynamic_ranges_are_taken_from_each_run(model: onnx.ModelProto, encoded: Encoded) -> None:
    placed = place(model, RULES)
    exact = run(model, encoded)
    for fused in (False, True):
        written = write_int8(model, placed, None, Int8Format("integer", fused=fused))
        assert any(node.op_type == "DynamicQuantizeLinear" for node in written.graph.node)
        assert 0 < np.abs(run(written, encoded) - exact).max() < 0.1 * np.abs(exact).max()


def test_qdq_is_a_valid_standard_graph_that_quantizes_a_shared_tensor_once(
    model: onnx.ModelProto, encoded: Encoded, tmp_path: Any
) -> None:
    placed = place(model, RULES)
    written = write_int8(model, placed, calibrated(model, encoded, placed).ranges("mse"))
    write_onnx(written, tmp_path / "model.onnx")
    assert {node.domain for node in written.graph.node} <= {"", "ai.onnx"}
    inputs = {p.product.input for p in placed if p.precision == "int8" and p.product and p.product.input}
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == len(inputs)
    assert len(written.SerializeToString()) < 0.6 * len(model.SerializeToString())


def test_symmetric_int8_activations_have_no_zero_point() -> None:
    rng = np.random.default_rng(0)
    model = linear(rng.normal(size=(32, 32)).astype(np.float32), np.zeros(32, np.float32))
    written = write_int8(model, place(model, RULES), {"x": Range(-1.0, 2.54)}, Int8Format(activation="int8"))
    stored = {it.name: numpy_helper.to_array(it) for it in written.graph.initializer}
    assert stored["x.zero_point"].dtype == np.int8
    assert stored["x.zero_point"] == 0
    assert stored["x.scale"] == pytest.approx(0.02)


def test_every_float_node_has_a_reason(model: onnx.ModelProto) -> None:
    placed = place(model, RULES, excluded={"classifier/Gemm": "asked for"}, tables=False)
    reasons = {p.node: p.reason for p in placed if p.precision == "float32"}
    assert all(reasons.values())
    assert reasons["bert.embeddings.word_embeddings/Gather"] == "embedding tables were not asked for"
    assert reasons["classifier/Gemm"] == "asked for"
    assert "attention product" in reasons["bert.encoder.layer.0.attention.self/MatMul"]
    assert any("normalization" in reason for reason in reasons.values())
    assert "N = 3 < 16" in {p.node: p.reason for p in place(model, RULES)}["classifier/Gemm"]


def test_products_know_their_shapes(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    products = {product.node: product for product in find_products(graph)}
    first = products["bert.encoder.layer.0.intermediate.dense/MatMul"]
    assert (first.family, first.depth, first.width, first.macs) == ("linear", 32, 64, 2048)
    assert weight_of(graph, first).shape == (32, 64)
    head = products["classifier/Gemm"]
    assert weight_of(graph, head).shape == (32, 3)
    with pytest.raises(UsageError, match="no constant weight"):
        weight_of(graph, products["bert.encoder.layer.0.attention.self/MatMul"])


def test_calibration_sees_the_extremes_of_the_unpadded_examples(model: onnx.ModelProto, encoded: Encoded) -> None:
    import onnxruntime

    placed = place(model, RULES)
    seen = calibrated(model, encoded, placed)
    assert seen.examples == len(encoded)
    assert seen.peak_rss_bytes > 10_000_000
    name = "layer_norm"
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    feeds = ({n: a for n, a in encoded.batch([i]).items() if n in wanted} for i in range(len(encoded)))
    values = [session.run([name], feed)[0] for feed in feeds]
    assert seen.ranges("minmax")[name] == pytest.approx((min(v.min() for v in values), max(v.max() for v in values)))
    histogram = seen.statistics[name].histogram
    assert histogram is not None
    assert histogram.counts.sum() == sum(v.size for v in values)


def test_calibration_without_examples_or_with_a_broken_model_says_so(model: onnx.ModelProto, encoded: Encoded) -> None:
    with pytest.raises(RunError, match="no example"):
        calibrate(model, encoded.select([]), ["layer_norm"])
    with pytest.raises(RunError, match="could not be run"):
        calibrate(model, encoded, ["no_such_tensor"])


def test_qdq_without_ranges_and_a_missing_range_are_refused() -> None:
    model = linear(np.ones((32, 32), np.float32), np.ones(32, np.float32))
    placed = place(model, RULES)
    with pytest.raises(UsageError, match="need ranges"):
        write_int8(model, placed, None)
    with pytest.raises(UsageError, match="no range"):
        write_int8(model, placed, {})
