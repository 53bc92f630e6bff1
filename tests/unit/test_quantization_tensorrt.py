"""INT8 for TensorRT: arithmetic against integers by hand, a case for every rule, and what the real parser takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import TensorSpec
from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.export.onnx_clean import write_onnx
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths, profile_of_shapes
from compress.pruning.ladder import Widths
from compress.quantization.calibration import calibrate
from compress.quantization.fp16 import cast_fp16
from compress.quantization.half_emulation import emulate_half
from compress.quantization.int8 import quantize_static
from compress.quantization.products import Product
from compress.quantization.ranges import Histogram, Range, Statistics, vanishing_share
from compress.quantization.rules import Placement, Seen, place, quantized_inputs, rules_for
from compress.quantization.sensitivity import sqnr_db
from compress.quantization.variants import Variants
from compress.quantization.writing import Int8Format, quantize_weight, write_int8
from compress.search.template import Layer, locate, resize
from compress.tasks.image_classification import ImageClassification

needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
RULES = rules_for("tensorrt")
HOW = Int8Format(activation="int8")
IMAGES = ImageClassification(("bad", "fine", "good"))
CASES = ["bert", "roberta", "distilbert", "vit", "bert-pruned", "distilbert-pruned", "bert-gone", "roberta-gone"]


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[onnx.ModelProto, Encoded]]:
    """Return ``build(case)``: the graph and inputs of a random classifier with heads of 16, wide enough for every rule.

    Two layers, hidden 64, each family exported once. Pruned ones keep 1 and 3 heads, 48 and 80 neurons; of gone ones
    the first layer has no attention and the second no feed-forward network.
    """
    dense: dict[str, tuple[onnx.ModelProto, tuple[Layer, ...], Encoded]] = {}

    def build(case: str) -> tuple[onnx.ModelProto, Encoded]:
        family, _, change = case.partition("-")
        if family not in dense:
            dense[family] = _export(family, tmp_path_factory.mktemp(family))
        model, layers, encoded = dense[family]
        widths = {"pruned": Widths((1, 3), (48, 80)), "gone": Widths((0, 4), (128, 0))}
        return (resize(model, layers, widths[change]) if change else model), encoded

    return build


def _export(family: str, folder: Path) -> tuple[onnx.ModelProto, tuple[Layer, ...], Encoded]:
    import torch

    from compress.export.onnx_export import export_onnx

    torch.manual_seed(0)
    model, inputs, encoded = _images(folder) if family == "vit" else _texts(family)
    for name, parameter in model.named_parameters():  # biases that differ, or the exporter stores them once
        if parameter.ndim == 2 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.15)
    export_onnx(model, folder / "model.onnx", inputs=inputs)
    graph = onnx.load(folder / "model.onnx")
    return graph, locate(graph.graph, model), encoded


def _texts(family: str) -> tuple[Any, Any, Encoded]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    if family == "distilbert":
        sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
    options = {"vocab_size": 50, "max_position_embeddings": 66, "num_labels": 3, "initializer_range": 0.15}
    config = AutoConfig.for_model(family, **sizes, **options, pad_token_id=0)
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 50, size) for size in rng.integers(3, 20, 12)]
    masks = [np.ones(len(row), dtype=np.int64) for row in ids]
    encoded = Encoded({"input_ids": ids, "attention_mask": masks}, {"input_ids": 0, "attention_mask": 0})
    inputs = [TensorSpec(name=n, dtype="int64", shape=("batch", "sequence")) for n in encoded.inputs]
    return AutoModelForSequenceClassification.from_config(config).eval(), inputs, encoded


def _images(folder: Path) -> tuple[Any, Any, Encoded]:
    from compress.models.fresh_images import fresh_vit
    from compress.models.loading import load_torch

    sizes = {"patch_size": 2, "layers": 2, "hidden": 64, "heads": 4, "intermediate": 128}
    fresh_vit(IMAGES, folder, image_size=8, num_channels=1, seed=0, **sizes)
    pixels = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    inputs = [TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 1, 8, 8))]
    return load_torch(folder, IMAGES), inputs, Encoded({"pixel_values": list(pixels)}, {})


def quantized(model: onnx.ModelProto, encoded: Encoded) -> tuple[onnx.ModelProto, list[Placement]]:
    seen = calibrate(model, encoded, quantized_inputs(place(model, RULES)))
    placed = place(model, RULES, seen=Seen(32, seen.vanishing()))
    return write_int8(model, placed, seen.ranges("minmax"), HOW), placed


def outputs(model: onnx.ModelProto, encoded: Encoded) -> np.ndarray:
    return Variants(model, as_written=True).run(model, encoded)


def computed(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    """Run pairs and products one by one in float, as they are written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def levels(values: np.ndarray, scale: np.float32) -> np.ndarray:
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int64)


def graph_of(
    nodes: list[Any], inputs: dict[str, list[Any]], constants: dict[str, np.ndarray], out: list[Any]
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
    graph = helper.make_graph(nodes, "g", values, result, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_layer_and_its_residual_sum_are_what_integers_by_hand_give() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(32, 32)).astype(np.float32), rng.normal(size=32).astype(np.float32)
    x = rng.normal(size=(5, 32)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="layer"),
        helper.make_node("Add", ["xw", "b"], ["branch"], name="bias"),
        helper.make_node("Add", ["branch", "x"], ["y"], name="sum"),
    ]
    model = graph_of(nodes, {"x": ["n", 32]}, {"w": w, "b": b}, ["n", 32])
    placed = place(model, RULES)
    assert {it.node: it.precision for it in placed} == {"layer": "int8", "bias": "float32", "sum": "int8"}
    ranges = {"x": Range(-2.0, 3.0), "branch": Range(-9.0, 8.0)}
    written = write_int8(model, placed, ranges, HOW)

    integers, scale = quantize_weight(w, 8)
    step, wide = np.float32(3.0 / 127), np.float32(9.0 / 127)
    branch = (levels(x, step) @ integers.astype(np.int64)) * step * scale + b
    expected = levels(branch, wide) * wide + levels(x, step) * step
    found = computed(written, x=x)
    off = np.abs(found - expected)
    assert np.quantile(off, 0.9) < 1e-4
    assert off.max() < wide + 1e-4  # float rounding may move a branch value across one level
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == 2  # x is quantized once


def test_a_product_of_two_activations_is_what_integers_by_hand_give() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1, 4, 6)).astype(np.float32), rng.normal(size=(1, 6, 3)).astype(np.float32)
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="scores")
    model = graph_of([node], {"a": [1, 4, 6], "b": [1, 6, 3]}, {}, [1, 4, 3])
    placed = [Placement("scores", "MatMul", "int8", product=Product("scores", "MatMul", "attention", "a", other="b"))]
    ranges = {"a": Range(-1.0, 2.0), "b": Range(-1.5, 1.0)}
    steps = np.float32(2.0 / 127), np.float32(1.5 / 127)
    found = computed(write_int8(model, placed, ranges, HOW), a=a, b=b)
    np.testing.assert_allclose(found, (levels(a, steps[0]) @ levels(b, steps[1])) * steps[0] * steps[1], atol=1e-5)
    with pytest.raises(UsageError, match="no operator for two activations"):
        write_int8(model, placed, ranges, Int8Format("integer"))


def test_the_share_that_vanishes_is_what_brute_force_counts() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.4, 9999), [222.0]]).astype(np.float32)
    statistics = Statistics(histogram=Histogram())
    statistics.update(values)
    exact = np.mean(np.rint(values / (222.0 / 127)) == 0)
    assert 0.9 < exact < 1.0
    assert vanishing_share(statistics) == pytest.approx(exact, abs=0.05)
    plain = Statistics(histogram=Histogram())
    plain.update(rng.normal(0, 0.4, 10_000).astype(np.float32))
    assert vanishing_share(plain) < 0.05


@pytest.mark.parametrize(
    ("product", "head_size", "seen", "words"),
    [
        (Product("n", "Gather", "table", weight="w", depth=99, width=64), 0, Seen(), "embedding table"),
        (Product("n", "Gemm", "linear", "x", "w", 64, 64, one_row=True), 0, Seen(), "GEMV"),
        (Product("n", "MatMul", "linear", "x", "w", 8, 64), 0, Seen(), "K = 8 < 16"),
        (Product("n", "MatMul", "linear", "x", "w", 64, 15), 0, Seen(), "N = 15 < 16"),
        (Product("n", "MatMul", "linear", "x", "w", 16, 16), 0, Seen(), ""),
        (Product("n", "MatMul", "attention", "q", other="k"), 0, Seen(), "not part of softmax"),
        (Product("n", "MatMul", "attention", "q", other="k"), 8, Seen(), "16, 32 or 64, not 8"),
        (Product("n", "MatMul", "attention", "q", other="k"), 48, Seen(), "16, 32 or 64, not 48"),
        (Product("n", "MatMul", "attention", "q", other="k"), 64, Seen(513), "up to 512 tokens, not 513"),
        (Product("n", "MatMul", "attention", "q", other="k"), 64, Seen(512), ""),
        (Product("n", "MatMul", "attention", "q", other="k"), 32, Seen(), ""),
        (Product("n", "Add", "residual", "a", other="b"), 0, Seen(vanishing={"a": 0.1, "b": 0.87}), "87% of an input"),
        (Product("n", "Add", "residual", "a", other="b"), 0, Seen(vanishing={"a": 0.1, "b": 0.2}), ""),
    ],
)
def test_every_rule_has_a_case_and_a_reason(product: Product, head_size: int, seen: Seen, words: str) -> None:
    reasons = [rule.reason for rule in RULES.float if rule.family and rule.holds(product, head_size, seen)]
    assert bool(reasons) == bool(words)
    if words:
        filled = reasons[0].format(
            depth=product.depth,
            width=product.width,
            head_size=head_size,
            length=seen.length,
            vanishing=seen.vanishing_of(product),
        )
        assert words in filled


@pytest.mark.parametrize("case", CASES)
def test_every_node_is_placed_with_a_reason_where_it_stays_in_float(case: str, wide: Callable[..., Any]) -> None:
    model, encoded = wide(case)
    _, placed = quantized(model, encoded)
    assert all(bool(it.reason) == (it.precision == "float32") for it in placed)
    families = {it.node: it.product.family for it in placed if it.precision == "int8" and it.product}
    linear = [it for it in placed if it.product is not None and it.product.family == "linear"]
    heads = [it for it in linear if it.precision == "float32"]
    assert all("GEMV" in it.reason for it in heads)
    assert len(heads) == (1 if case == "vit" else 2)
    attention = [name for name, family in families.items() if family == "attention"]
    assert len(attention) == (2 if case.endswith("gone") else 4)
    sums = [it for it in placed if it.product is not None and it.product.family == "residual"]
    assert len(sums) == (2 if case.endswith("gone") else 4)


def test_attention_stays_whole(wide: Callable[..., Any]) -> None:
    """One product in float, or the layer that reads the result, takes the other products along."""
    model, _ = wide("bert")
    names = [it.node for it in place(model, RULES) if it.product is not None and it.product.family == "attention"]
    for left in (names[0], names[1], "bert.encoder.layer.0.attention.output.dense/MatMul"):
        placed = {it.node: it for it in place(model, RULES, excluded={left: "asked for"})}
        assert [placed[name].precision for name in names] == ["float32", "float32", "int8", "int8"]
        other = next(placed[name] for name in names[:2] if name != left)
        assert f"needs {left} in 8 bits too" in other.reason


def test_other_runtimes_see_no_residual_sums(wide: Callable[..., Any]) -> None:
    model, _ = wide("bert")
    for runtime in ("onnxruntime", "openvino"):
        placed = place(model, rules_for(runtime))
        assert not [it for it in placed if it.product is not None and it.product.family == "residual"]


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_is_what_tensorrt_takes(case: str, rest: str, wide: Callable[..., Any]) -> None:
    """Symmetric, no 32-bit bias, weights stored in 8 bits with a scale per output, every 8-bit product fed by pairs."""
    model, encoded = wide(case)
    written, placed = quantized(model, encoded)
    if rest == "float16":
        written, _ = cast_fp16(written)
    stored = {it.name: numpy_helper.to_array(it) for it in written.graph.initializer}
    makers = {name: node for node in written.graph.node for name in node.output}
    pairs = [node for node in written.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    float_type = np.float16 if rest == "float16" else np.float32
    for node in pairs:
        scale, zero = stored[node.input[1]], stored[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == float_type
        assert (scale > 0).all()
    weights = [node for node in pairs if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    linear = [it for it in placed if it.precision == "int8" and it.product and it.product.family == "linear"]
    assert len(weights) == len(linear)
    for node in weights:
        integers, scale = stored[node.input[0]], stored[node.input[1]]
        assert integers.dtype == np.int8
        assert scale.shape == (integers.shape[1],)
        assert {a.name: a.i for a in node.attribute}["axis"] == 1
    products = {node.name: node for node in written.graph.node}
    for it in placed:
        if it.precision == "int8":
            assert all(makers[name].op_type == "DequantizeLinear" for name in products[it.node].input[:2])


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_stay_close(case: str, rest: str, wide: Callable[..., Any]) -> None:
    """The noise of 8 bits everywhere is at most a hundredth of the signal, with FP16 rounded too."""
    model, encoded = wide(case)
    written, _ = quantized(model, encoded)
    if rest == "float16":
        written = emulate_half(cast_fp16(written)[0])
    assert 20.0 < sqnr_db(outputs(model, encoded), outputs(written, encoded)) < 80.0


@needs_trt
@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_the_real_parser_and_builder_take_it(case: str, rest: str, wide: Callable[..., Any], tmp_path: Path) -> None:
    model, encoded = wide(case)
    written, _ = quantized(model, encoded)
    if rest == "float16":
        written, _ = cast_fp16(written)
    write_onnx(written, tmp_path / "model.onnx")
    names = [value.name for value in written.graph.input]
    text = profile_from_lengths(names, [5, 12, 20], 32, max_batch=4)
    profile = profile_of_shapes({"pixel_values": (1, 8, 8)}, opt_batch=1, max_batch=4) if case == "vit" else text
    info = build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", profile)
    assert info["precision"] == "int8"


@needs_trt
def test_a_convolutional_network_has_no_integer_bias_and_builds(
    tiny_images: Callable[[str], Path], tmp_path: Path
) -> None:
    from compress.export.onnx_export import export_onnx
    from compress.models.loading import load_torch

    inputs = [TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 1, 16, 16))]
    export_onnx(load_torch(tiny_images("resnet"), IMAGES), tmp_path / "float.onnx", inputs=inputs)
    pixels = np.random.default_rng(0).normal(size=(8, 1, 16, 16)).astype(np.float32)
    encoded = Encoded({"pixel_values": list(pixels)}, {})
    written, notes = quantize_static(onnx.load(tmp_path / "float.onnx"), encoded, activation="int8", embeddings=False)
    assert notes["nodes_quantized"]["Conv"] == 8
    assert not [it for it in written.graph.initializer if it.data_type == TensorProto.INT32]
    write_onnx(cast_fp16(written)[0], tmp_path / "model.onnx")
    profile = profile_of_shapes({"pixel_values": (1, 16, 16)}, opt_batch=1, max_batch=4)
    assert build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", profile)["precision"] == "int8"
