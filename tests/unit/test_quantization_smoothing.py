from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.quantization.attention import find_attention
from compress.quantization.calibration import calibrate
from compress.quantization.first_token import keep_first_token
from compress.quantization.graph import Graph
from compress.quantization.products import find_products, weight_of
from compress.quantization.ranges import Statistics
from compress.quantization.rules import Placement
from compress.quantization.smoothing import Formula, smooth, smoothing_scales
from compress.quantization.writing import write_int8
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
WIDTH = 4


@pytest.fixture
def encoded(tiny_exported: Callable[..., Artifact]) -> Encoded:
    return encode(tiny_exported())


def encode(artifact: Artifact) -> Encoded:
    return TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return np.asarray(session.run(None, {name: array for name, array in feed.items() if name in wanted})[0])


def all_int8(model: onnx.ModelProto, *, but: Sequence[str] = ()) -> list[Placement]:
    linear = [product for product in find_products(Graph(model)) if product.family == "linear"]
    return [
        Placement(p.node, p.operator, "float32" if p.node in but else "int8", macs=p.macs, product=p) for p in linear
    ]


def inputs_of(placements: Sequence[Placement]) -> list[str]:
    return [placement.product.input for placement in placements if placement.product is not None]


def peaks_of(model: onnx.ModelProto, encoded: Encoded) -> dict[str, np.ndarray]:
    return calibrate(model, encoded, inputs_of(all_int8(model)), histograms=False).channel_peaks()


def sqnr(exact: np.ndarray, close: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10(np.square(exact).sum() / np.square(close - exact).sum()))


def static_sqnr(model: onnx.ModelProto, encoded: Encoded) -> float:
    """SQNR of the logits of a static QDQ model with the range of all values, against the model in float."""
    placements = all_int8(model)
    ranges = calibrate(model, encoded, inputs_of(placements), histograms=False).ranges("minmax")
    feed = encoded.batch(range(len(encoded)))
    return sqnr(run(model, feed), run(write_int8(model, placements, ranges), feed))


def plant_outlier(model: onnx.ModelProto, channel: int, factor: float) -> onnx.ModelProto:
    """Make one channel of every attention output larger, and its row of the output projection smaller: exact."""
    graph = Graph(model)
    products = {product.node: product for product in find_products(graph)}
    readers = {product.input: product for product in products.values()}
    for attention in find_attention(graph):
        added = graph.bias_of(attention.value)
        assert added is not None
        bias, output = graph.constant(added[1]), readers[attention.merge.output[0]]
        assert bias is not None
        columns = np.ones(bias.size, dtype=np.float32)
        columns[channel] = factor
        value = weight_of(graph, products[attention.value.name])
        attention.value.input[1] = graph.add_constant(f"{attention.value.name}.planted", value * columns)
        graph.add_constant(added[1], bias * columns)
        weight = weight_of(graph, output) / columns[:, None]
        graph.node(output.node).input[1] = graph.add_constant(f"{output.node}.planted", weight)
    return graph.finish()


def build(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    """A graph of x (batch, WIDTH) float32."""
    row = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    values = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}{i}"
    graph = helper.make_graph(list(nodes), "g", [row], ends, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rows(seed: int = 0, count: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def constants(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    squares = {name: rng.normal(size=(WIDTH, WIDTH)) for name in ("w1", "w2", "w3")}
    return squares | {name: rng.normal(size=WIDTH) for name in ("b1", "b2", "gain", "shift")}


LAYER_NORM = "x gain shift"
PEAKS = np.array([20.0, 0.5, 1.0, 2.0])


def test_scales_follow_the_equation() -> None:
    activation, weight = np.array([4.0, 9.0]), np.array([1.0, 0.25])
    assert smoothing_scales(activation, weight, 0.5) == pytest.approx([2.0, 6.0])
    assert smoothing_scales(activation, weight, 1.0) == pytest.approx([4.0, 9.0])
    assert smoothing_scales(activation, weight, 0.0) == pytest.approx([1.0, 4.0])


def test_scales_of_activations_alone_leave_everything_at_an_alpha_of_zero() -> None:
    activation, weight = np.array([4.0, 9.0]), np.array([1.0, 0.25])
    assert smoothing_scales(activation, weight, 0.5, "activations") == pytest.approx([2.0, 3.0])
    assert smoothing_scales(activation, weight, 0.0, "activations") == pytest.approx([1.0, 1.0])


def test_scale_of_a_channel_that_is_always_zero_is_one() -> None:
    scales = smoothing_scales(np.array([0.0, 2.0, np.inf, 2.0]), np.array([1.0, 0.0, 1.0, 2.0]), 0.5)
    assert scales == pytest.approx([1.0, 1.0, 1.0, 1.0])
    assert scales.dtype == np.float32


def test_peaks_even_out_at_an_alpha_of_a_half_and_layers_of_a_tensor_share_a_scale() -> None:
    values = constants()
    nodes = [node("MatMul", "x w1", "q"), node("MatMul", "x w2", "k"), node("Add", "q k", "y")]
    model = build(nodes, values)
    smoothed, notes = smooth(model, {"x": PEAKS}, all_int8(model), alpha=0.5)
    assert notes == [
        {
            "tensor": "x",
            "nodes": ["MatMul0", "MatMul1"],
            "folded_into": "Mul",
            "reason": "the input cannot take a scale",
        }
    ]
    graph = Graph(smoothed)
    factor = graph.constant("x.smoothed.factor")
    weights = [weight_of(graph, product) for product in find_products(graph)]
    assert factor is not None
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    assert largest == pytest.approx(PEAKS * factor, rel=1e-5)
    assert weights[0] * factor[:, None] == pytest.approx(values["w1"], rel=1e-5)
    assert run(smoothed, {"x": rows()}) == pytest.approx(run(model, {"x": rows()}), abs=1e-5)


NORMALIZED = [node("LayerNormalization", LAYER_NORM, "n"), node("MatMul", "n w1", "h")]
RESIDUAL = [*NORMALIZED, node("Add", "h n", "y")]
FOLDS = {
    "a normalization that nothing else reads": (
        [*NORMALIZED, node("Relu", "h", "y")],
        ["LayerNormalization"],
    ),
    "a normalization that a residual reads": (RESIDUAL, ["Mul"]),
    "a normalization without a shift": (
        [node("LayerNormalization", "x gain", "n"), node("MatMul", "n w1", "y")],
        ["LayerNormalization"],
    ),
    "a normalization whose gain another one shares": (
        [
            node("LayerNormalization", LAYER_NORM, "n"),
            node("MatMul", "n w1", "h"),
            node("LayerNormalization", "h gain shift", "y"),
        ],
        ["LayerNormalization"],
    ),
    "a layer and a bias": (
        [node("MatMul", "x w1", "m"), node("Add", "b1 m", "h"), node("MatMul", "h w2", "y")],
        ["Mul", "linear layer"],
    ),
    "a layer without a bias": ([node("MatMul", "x w1", "h"), node("MatMul", "h w2", "y")], ["Mul", "linear layer"]),
    "a weight that two layers share": (
        [node("MatMul", "x w1", "h"), node("MatMul", "h w1", "y")],
        ["Mul", "linear layer"],
    ),
    "a Gemm and a ReLU": (
        [node("Gemm", "x w1 b1", "m", transB=1), node("Relu", "m", "h"), node("Gemm", "h w2 b2", "y", transB=1)],
        ["Mul", "linear layer"],
    ),
    "a Gemm and a row added to it": (
        [node("Gemm", "x w1 b1", "m"), node("Add", "m b2", "h"), node("MatMul", "h w2", "y")],
        ["Mul", "linear layer"],
    ),
    "three layers": (
        [node("MatMul", "x w1", "h"), node("MatMul", "h w2", "i"), node("MatMul", "i w3", "y")],
        ["Mul", "linear layer", "linear layer"],
    ),
    "a layer whose output is an output of the graph": (
        [node("MatMul", "x w1", "h"), node("MatMul", "h w2", "y")],
        ["Mul", "Mul"],
    ),
    "a ReLU whose input is read besides": (
        [
            node("MatMul", "x w1", "m"),
            node("Relu", "m", "h"),
            node("MatMul", "h w2", "i"),
            node("Add", "i m", "y"),
        ],
        ["Mul", "Mul"],
    ),
    "a GELU": (
        [node("MatMul", "x w1", "m"), node("Gelu", "m", "h"), node("MatMul", "h w2", "y")],
        ["Mul", "Mul"],
    ),
    "a product that doubles its input": (
        [node("MatMul", "x w1", "m"), node("Add", "m m", "h"), node("MatMul", "h w2", "y")],
        ["Mul", "Mul"],
    ),
}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", FOLDS)
def test_a_scale_goes_where_it_is_exact(case: str, alpha: float) -> None:
    nodes, expected = FOLDS[case]
    outputs = ("y", "h") if "output of the graph" in case else ("y",)
    copies = [onnx.NodeProto.FromString(entry.SerializeToString()) for entry in nodes]
    model = build(copies, constants(), outputs)
    peaks = {placement.product.input: PEAKS for placement in all_int8(model) if placement.product is not None}
    before = model.SerializeToString()
    smoothed, notes = smooth(model, peaks, all_int8(model), alpha=alpha)
    assert [note["folded_into"] for note in notes] == expected
    assert Counter(entry.op_type for entry in smoothed.graph.node)["Mul"] == expected.count("Mul")
    exact = run(model, {"x": rows()})
    assert run(smoothed, {"x": rows()}) == pytest.approx(exact, rel=1e-5, abs=1e-5 * float(np.abs(exact).max()))
    assert model.SerializeToString() == before


def test_tensors_that_would_need_an_operator_are_left_without_copies() -> None:
    model = build(RESIDUAL, constants())
    smoothed, notes = smooth(model, {"n": PEAKS}, all_int8(model), alpha=0.5, copies=False)
    assert notes == [
        {"tensor": "n", "nodes": ["MatMul1"], "folded_into": None, "reason": "another node reads the tensor as it is"}
    ]
    assert [entry.op_type for entry in smoothed.graph.node] == ["LayerNormalization", "MatMul", "Add"]
    assert np.array_equal(run(smoothed, {"x": rows()}), run(model, {"x": rows()}))


def test_tensors_without_peaks_of_their_channels_are_left() -> None:
    model = build(RESIDUAL, constants())
    for peaks in ({}, {"n": PEAKS[:2]}):
        _, notes = smooth(model, peaks, all_int8(model), alpha=0.5)
        assert notes[0]["folded_into"] is None
        assert notes[0]["reason"] == "calibration has no peaks of its channels"


def test_layers_that_stay_in_float_keep_reading_the_tensor() -> None:
    nodes = [*NORMALIZED, node("MatMul", "n w2", "k"), node("Add", "h k", "y")]
    model = build(nodes, constants())
    smoothed, notes = smooth(model, {"n": PEAKS}, all_int8(model, but=["MatMul2"]), alpha=0.5)
    assert notes[0]["nodes"] == ["MatMul1"]
    assert {entry.name: entry.input[0] for entry in smoothed.graph.node if entry.op_type == "MatMul"} == {
        "MatMul1": "n.smoothed",
        "MatMul2": "n",
    }
    assert run(smoothed, {"x": rows()}) == pytest.approx(run(model, {"x": rows()}), abs=1e-5)


def test_weights_stay_finite_where_channels_and_rows_are_zero() -> None:
    values = constants()
    values["gain"][1] = values["shift"][1] = 0.0
    values["w1"][2] = 0.0
    model = build([*NORMALIZED, node("Relu", "h", "y")], values)
    smoothed, _ = smooth(model, {"n": np.array([3.0, 0.0, 1.0, 2.0])}, all_int8(model), alpha=0.5)
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in smoothed.graph.initializer)
    gain = Graph(smoothed).constant(smoothed.graph.node[0].input[1])
    assert gain is not None
    assert gain[2] == np.float32(values["gain"][2])
    assert run(smoothed, {"x": rows()}) == pytest.approx(run(model, {"x": rows()}), abs=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_alpha_that_is_no_share_is_refused(alpha: float) -> None:
    model = build(RESIDUAL, constants())
    with pytest.raises(UsageError, match="share"):
        smooth(model, {}, all_int8(model), alpha=alpha)


@pytest.mark.parametrize(
    ("family", "pruned"), [("bert", False), ("bert", True), ("roberta", False), ("distilbert", False)]
)
def test_a_smoothed_encoder_gives_the_same_logits(
    tiny_exported: Callable[..., Artifact], family: str, pruned: bool
) -> None:
    artifact = tiny_exported(family, pruned)
    model, encoded = onnx.load(artifact.file()), encode(artifact)
    peaks, feed = peaks_of(model, encoded), encoded.batch(range(len(encoded)))
    exact = run(model, feed)
    cases: list[tuple[float, Formula]] = [(alpha, "smoothquant") for alpha in (0.0, 0.3, 0.5, 0.7, 1.0)]
    for alpha, formula in [*cases, (0.5, "activations")]:
        smoothed, notes = smooth(model, peaks, all_int8(model), alpha=alpha, formula=formula)
        assert [note["folded_into"] for note in notes[:8]] == ["Mul", "value projection", "Mul", "Mul"] * 2
        assert np.abs(run(smoothed, feed) - exact).max() < 1e-5 * max(1.0, float(np.abs(exact).max()))


def test_smoothing_goes_on_top_of_the_first_token_cut(tiny_exported: Callable[..., Artifact], encoded: Encoded) -> None:
    model = onnx.load(tiny_exported().file())
    cut = keep_first_token(model)
    assert cut is not None
    smoothed, notes = smooth(cut, peaks_of(cut, encoded), all_int8(cut), alpha=0.5)
    assert Counter(note["folded_into"] for note in notes)["value projection"] == 2
    feed = encoded.batch(range(len(encoded)))
    assert run(smoothed, feed) == pytest.approx(run(model, feed), abs=1e-5)


def test_smoothing_restores_what_a_planted_outlier_costs(
    tiny_exported: Callable[..., Artifact], encoded: Encoded
) -> None:
    model = onnx.load(tiny_exported().file())
    planted = plant_outlier(model, channel=5, factor=200.0)
    feed = encoded.batch(range(len(encoded)))
    assert run(planted, feed) == pytest.approx(run(model, feed), abs=1e-4)
    clean, lost = static_sqnr(model, encoded), static_sqnr(planted, encoded)
    assert lost < clean - 10
    peaks = peaks_of(planted, encoded)
    for alpha, copies in ((0.3, False), (0.5, False), (0.5, True), (0.7, False)):
        smoothed, _ = smooth(planted, peaks, all_int8(planted), alpha=alpha, copies=copies)
        assert static_sqnr(smoothed, encoded) > clean - 3


def test_calibration_keeps_the_peaks_of_channels(tiny_exported: Callable[..., Artifact], encoded: Encoded) -> None:
    model = onnx.load(tiny_exported().file())
    scores = next(entry for entry in model.graph.node if entry.op_type == "Softmax").output[0]
    tensor = inputs_of(all_int8(model))[0]
    seen = calibrate(model, encoded, [tensor, scores], histograms=False)
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    expected = np.max([np.abs(run(observed, encoded.batch([i]))).max(axis=(0, 1)) for i in range(len(encoded))], axis=0)
    peaks = seen.channel_peaks()
    assert set(peaks) == {tensor}
    assert peaks[tensor] == pytest.approx(expected, rel=1e-6)
    assert max(-seen.statistics[tensor].low, seen.statistics[tensor].high) == pytest.approx(peaks[tensor].max())


def test_statistics_drop_channels_whose_number_changes() -> None:
    statistics = Statistics()
    statistics.update(np.array([[1.0, -5.0], [-3.0, 2.0]]))
    statistics.update(np.array([[2.0, 1.0]]))
    assert statistics.channels is not None
    assert statistics.channels.tolist() == [3.0, 5.0]
    statistics.update(np.ones((1, 3)))
    statistics.update(np.ones((1, 3)))
    assert statistics.channels.size == 0
    assert (statistics.low, statistics.high, statistics.examples) == (-5.0, 2.0, 4)
