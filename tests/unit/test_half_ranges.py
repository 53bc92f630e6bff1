"""What exceeds FP16 is found on calibration examples and stays in FP32; a cast without them is shown to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import RunError
from compress.export.onnx_clean import write_onnx
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.quantization.fp16 import cast_fp16, cast_half
from compress.quantization.half_emulation import emulate_half
from compress.quantization.half_format import FP16
from compress.quantization.half_masks import find_masks
from compress.quantization.half_ranges import measure_ranges
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
MINIMUM = float(np.finfo(np.float32).min)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, Any], width: int = 4) -> onnx.ModelProto:
    """A graph from x to y, both float32 (n, width)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy")
    stored = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def examples(*rows: Any) -> Encoded:
    return Encoded({"x": [np.asarray(row, np.float32) for row in rows]}, {})


def up_and_down() -> onnx.ModelProto:
    """y = x, by way of 250,000 x: up1, up2, down1, down2."""
    steps = [("up1", "Mul"), ("up2", "Mul"), ("down1", "Div"), ("down2", "Div")]
    names = ["x", "a", "b", "c", "y"]
    nodes = [helper.make_node(kind, [names[i], "k"], [names[i + 1]], name=name) for i, (name, kind) in enumerate(steps)]
    return graph_of(nodes, {"k": np.float32(500)})


def test_ranges_are_the_largest_magnitudes_over_all_examples() -> None:
    ranges = measure_ranges(up_and_down(), examples([0, 1, -0.5, 0.25], [0.5, -2, 0, 1e-9]))
    assert ranges.examples == 2
    assert ranges.largest == {"x": 2, "a": 1000, "b": 500000, "c": 1000, "y": 2}
    assert ranges.lost == {"x": 1 / 8, "y": 1 / 8}  # 1e-9 vanishes, 5e-7 = 500 x 1e-9 does not
    assert (ranges.numbers, ranges.numbers_lost) == (40, 2)
    notes = ranges.notes()
    assert notes["largest_value"] == {"tensor": "b", "value": 500000}
    assert (notes["numbers_flushed_to_zero"], notes["of_numbers"]) == (2, 40)


def test_no_example_is_an_error() -> None:
    with pytest.raises(RunError, match="no example"):
        measure_ranges(up_and_down(), Encoded({"x": []}, {}))


def test_what_overflows_stays_in_fp32_with_its_number() -> None:
    source, encoded = up_and_down(), examples([0.5, 1, -0.25, 0.125])
    x = np.array([[0.5, 1, -0.25, 0.125]], np.float32)
    naive, _ = cast_fp16(source)
    assert not np.isfinite(run(emulate_half(naive), {"x": x})).all()
    cast, notes = cast_fp16(source, ranges=measure_ranges(source, encoded))
    np.testing.assert_allclose(run(emulate_half(cast), {"x": x}), x, rtol=1e-3)
    reason = "reaches 250,000 on the calibration data; FP16 ends at 65,504"
    assert notes["kept_nodes"] == [
        {"node": "up2", "operator": "Mul", "reason": reason},
        {"node": "down1", "operator": "Div", "reason": reason},
    ]
    assert notes["kept_float32"] == {"reaches more than FP16 holds safely": 2}
    assert notes["nodes_float16"] == 2


@pytest.mark.parametrize(("reached", "kept"), [(16000.0, 0), (17000.0, 2), (60000.0, 2)])
def test_headroom_is_left_for_what_the_sample_did_not_show(reached: float, kept: int) -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["a"], name="up"), helper.make_node("Div", ["a", "k"], ["y"])]
    source = graph_of(nodes, {"k": np.float32(reached)})
    ranges = measure_ranges(source, examples([1, 0, 0, 0]))
    _, notes = cast_fp16(source, ranges=ranges)
    assert notes["nodes_float32"] == kept
    if kept:
        assert notes["kept_nodes"][0]["reason"].endswith("FP16 ends at 65,504, less than 4 times as much")
    assert cast_half(source, "float16", ranges=ranges, headroom=1.0)[1]["nodes_float32"] == 0


def test_bf16_needs_no_ranges() -> None:
    source = up_and_down()
    _, notes = cast_half(source, "bfloat16", ranges=measure_ranges(source, examples([1, 1, 1, 1])))
    assert notes["nodes_float32"] == 0


def masked(fill: float, source: str = "scores") -> onnx.ModelProto:
    """Softmax of scores = x k, the last two tokens masked; ``source`` is where the mask is added."""
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["scores"], name="scores"),
        helper.make_node("Where", ["keep", "zero", "fill"], ["mask"], name="mask"),
        helper.make_node("Add", [source, "mask"], ["sum"], name="sum"),
        helper.make_node("Softmax", ["sum"], ["y"], name="softmax"),
    ]
    model = graph_of(nodes, {"k": np.float32(10), "zero": np.float32(0), "fill": np.float32(fill)})
    model.graph.initializer.append(numpy_helper.from_array(np.array([True, True, False, False]), "keep"))
    return model


@pytest.mark.parametrize("fill", [MINIMUM, -1e9, -np.inf])
def test_the_fill_of_a_mask_is_no_range(fill: float) -> None:
    source = masked(fill)
    masks = find_masks(source.graph, FP16.largest)
    assert masks.fills == {"fill"}
    assert masks.carriers == {"mask", "sum"}
    ranges = measure_ranges(source, examples([1, 2, 3, 4]))
    assert (ranges.largest["scores"], ranges.largest["sum"], ranges.largest["mask"]) == (40, 20, 0)
    cast, notes = cast_fp16(source, ranges=ranges)
    assert notes["nodes_float32"] == 0
    x = np.array([[1, 2, 3, 4]], np.float32)
    np.testing.assert_allclose(run(emulate_half(cast), {"x": x}), run(source, {"x": x}), atol=1e-3)


def test_scores_that_overflow_beside_a_mask_are_found() -> None:
    source = masked(MINIMUM)
    _, notes = cast_fp16(source, ranges=measure_ranges(source, examples([9000, 2, 3, 4])))
    assert [entry["node"] for entry in notes["kept_nodes"]] == ["scores", "sum", "softmax"]


def test_an_old_mask_that_is_multiplied_and_a_causal_one_are_fills() -> None:
    nodes = [
        helper.make_node("Sub", ["one", "x"], ["off"]),
        helper.make_node("Mul", ["off", "fill"], ["mask"]),
        helper.make_node("Add", ["mask", "causal"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["y"]),
    ]
    causal = np.triu(np.full((4, 4), MINIMUM, np.float32), 1)
    model = graph_of(nodes, {"one": np.float32(1), "fill": np.float32(-1e9), "causal": causal})
    assert find_masks(model.graph, FP16.largest) == ({"fill", "causal"}, {"mask", "sum"}, 1e9)
    cast, notes = cast_fp16(model)
    assert notes["nodes_float32"] == 0
    assert notes["weights"]["mask_fills_replaced"] == 7
    x = np.array([[1, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(
        run(emulate_half(cast), {"x": np.repeat(x, 4, 0)}), run(model, {"x": np.repeat(x, 4, 0)}), atol=1e-3
    )


def test_layer_norm_of_large_values_is_right() -> None:
    """Its squares, 1e8, are beyond FP16; the operator adds them up in float32 (``stash_type``)."""
    node = helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], name="norm")
    source = graph_of([node], {"w": np.ones(4), "b": np.zeros(4)})
    x = np.array([[1e4, -1e4, 5e3, 0]], np.float32)
    cast, notes = cast_fp16(source, ranges=measure_ranges(source, examples(x[0])))
    assert notes["nodes_float32"] == 0
    np.testing.assert_allclose(run(emulate_half(cast), {"x": x}), run(source, {"x": x}), atol=2e-3)
    node.attribute.append(helper.make_attribute("stash_type", TensorProto.FLOAT16))
    odd = graph_of([node], {"w": np.ones(4), "b": np.zeros(4)})
    assert cast_fp16(odd)[1]["kept_float32"] == {"LayerNormalization overflows or cancels": 1}


def test_a_layer_norm_taken_apart_keeps_its_epsilon() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"], name="squares"),
        helper.make_node("ReduceMean", ["squares", "axis"], ["variance"]),
        helper.make_node("Add", ["variance", "epsilon"], ["positive"], name="epsilon"),
        helper.make_node("Sqrt", ["positive"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["y"]),
    ]
    source = graph_of(nodes, {"epsilon": np.float32(1e-12)})
    source.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "axis"))
    x = np.array([[1e-4, -1e-4, 2e-4, 0], [900, -900, 300, 0]], np.float32)
    wanted = run(source, {"x": x})
    assert not np.allclose(run(emulate_half(cast_fp16(source)[0]), {"x": x}), wanted, atol=0.05)
    cast, notes = cast_fp16(source, ranges=measure_ranges(source, examples(*x)))
    kept = {entry["node"]: entry["reason"] for entry in notes["kept_nodes"]}
    assert kept["squares"] == "reaches 951,000 on the calibration data; FP16 ends at 65,504"
    assert "epsilon is at most 1e-12, and would lose 100 %" in kept["epsilon"]
    np.testing.assert_allclose(run(emulate_half(cast), {"x": x})[1], wanted[1], atol=5e-3)


@pytest.fixture(scope="module")
def overflowing(tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny BERT whose second feed-forward block works on values of about 1e5: times 2^16, then divided by it."""
    import torch

    from compress.artifact import PassRecord, create_artifact
    from compress.export.companions import copy_companions
    from compress.export.onnx_export import export_onnx
    from compress.export.signature import read_graph
    from compress.models.families import encoder_layers
    from compress.models.loading import load_torch

    folder, out = tiny_classifier("bert"), tmp_path_factory.mktemp("overflowing")
    model = load_torch(folder, TASK)
    layer = encoder_layers(model)[1]
    with torch.no_grad():
        layer.ffn_in.weight *= 2.0**16
        layer.ffn_in.bias *= 2.0**16
        layer.ffn_out.weight /= 2.0**16
    export_onnx(model, out / "model.onnx")
    copy_companions(folder, out)
    graphs = {"model": read_graph(out / "model.onnx")}
    return create_artifact(
        out, kind="onnx", task=TASK.dump(), graphs=graphs, made_by=PassRecord(name="t", version=1, config={})
    )


def test_a_naive_cast_of_an_overflowing_bert_fails_and_the_calibrated_one_is_right(
    overflowing: Artifact, tmp_path: Path
) -> None:
    source = onnx.load(overflowing.file())
    encoded = TASK.encode(overflowing.path, [{"text": text} for text in GOLDEN_TEXTS])
    feed = encoded.batch(range(len(encoded)))
    exact = run(source, feed)
    assert not np.isfinite(run(emulate_half(cast_fp16(source)[0]), feed)).all()
    ranges = measure_ranges(source, encoded.select([0, 1, 2]))
    assert max(ranges.largest.values()) > 91000
    cast, notes = cast_fp16(source, ranges=ranges)
    close = run(emulate_half(cast), feed)
    assert np.abs(exact - close).max() < 5e-3 * np.abs(exact).max()
    np.testing.assert_array_equal(exact.argmax(axis=1), close.argmax(axis=1))
    kept = {entry["node"] for entry in notes["kept_nodes"]}
    assert kept
    assert all("layer.1.intermediate" in name or "layer.1.output" in name for name in kept), kept
    assert notes["nodes_float16"] > 10 * len(kept)
    again = cast_fp16(source, ranges=measure_ranges(source, encoded.select([0, 1, 2])))
    assert again[0].SerializeToString(deterministic=True) == cast.SerializeToString(deterministic=True)
    assert again[1] == notes


@needs_trt
def test_the_calibrated_cast_parses_and_builds(overflowing: Artifact, tmp_path: Path) -> None:
    source = onnx.load(overflowing.file())
    encoded = TASK.encode(overflowing.path, [{"text": text} for text in GOLDEN_TEXTS])
    write_onnx(cast_fp16(source, ranges=measure_ranges(source, encoded))[0], tmp_path / "m.onnx")
    profile = profile_from_lengths([value.name for value in source.graph.input], [5, 12, 20], 32, max_batch=4)
    assert build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", profile)["precision"] == "fp16"
