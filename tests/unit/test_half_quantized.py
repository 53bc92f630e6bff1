"""A graph with QuantizeLinear/DequantizeLinear pairs: integers stay, the rest becomes FP16, scales are not lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.errors import ModelError
from compress.export.onnx_clean import write_onnx
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.quantization.calibration import calibrate
from compress.quantization.fp16 import cast_fp16
from compress.quantization.half_emulation import emulate_half
from compress.quantization.int8 import quantize_dynamic, quantize_static
from compress.quantization.rules import place, quantized_inputs, rules_for
from compress.quantization.writing import Int8Format, write_int8
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
SYMMETRIC = Int8Format(form="qdq", activation="int8")


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def integers_of(model: onnx.ModelProto) -> dict[str, bytes]:
    kinds = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer if t.data_type in kinds}


def product(weight_scales: list[float], opset: int = 18) -> onnx.ModelProto:
    """Relu(Q/DQ(x) W): x in steps of 1/8, W int8 (4, 4) with a scale per column."""
    weight = np.random.default_rng(0).integers(-127, 128, (4, 4)).astype(np.int8)
    stored = {
        "x_scale": np.float32(0.125),
        "x_zero": np.int8(0),
        "w": weight,
        "w_scale": np.array(weight_scales, np.float32),
        "w_zero": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], name="weight", axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["p"], name="product"),
        helper.make_node("Relu", ["p"], ["y"], name="relu"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


X = np.array([[1, -0.5, 2.125, 0.25], [0.125, 0, -3, 1.5]], np.float32)


@pytest.mark.parametrize("opset", [17, 18, 19, 21, 23])
def test_pairs_become_fp16_and_integers_stay(opset: int) -> None:
    source = product([0.25, 0.5, 0.125, 2.0**-14], opset)
    cast, notes = cast_fp16(source)
    assert integers_of(cast) == integers_of(source)
    assert notes["nodes_float32"] == 0
    kinds = types_of(cast)
    assert {kinds[name] for name in ("d", "wd", "p", "x_scale__float16", "w_scale__float16")} == {TensorProto.FLOAT16}
    assert kinds["q"] == TensorProto.INT8
    assert (kinds["x"], kinds["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    np.testing.assert_allclose(run(emulate_half(cast), {"x": X}), run(source, {"x": X}), rtol=2e-3)


@pytest.mark.parametrize("tiny", [2.0**-15, 1e-5, 1e-9])
def test_a_scale_below_fp16s_normal_numbers_keeps_its_pair_in_fp32(tiny: float) -> None:
    source = product([0.25, 0.5, 0.125, tiny])
    cast, notes = cast_fp16(source)
    assert [entry["node"] for entry in notes["kept_nodes"]] == ["weight"]
    assert notes["kept_nodes"][0]["reason"] == (
        f"a scale is {np.float32(tiny):.2g}; the normal numbers of FP16 begin at 6.1e-05"
    )
    assert integers_of(cast) == integers_of(source)
    stored = {tensor.name: tensor for tensor in cast.graph.initializer}
    np.testing.assert_array_equal(
        numpy_helper.to_array(stored["w_scale"]), np.array([0.25, 0.5, 0.125, tiny], np.float32)
    )
    np.testing.assert_allclose(run(emulate_half(cast), {"x": X}), run(source, {"x": X}), rtol=2e-3, atol=1e-5)


def test_a_small_activation_scale_keeps_quantizer_and_dequantizer() -> None:
    source = product([1.0, 1.0, 1.0, 1.0])
    next(t for t in source.graph.initializer if t.name == "x_scale").CopyFrom(
        numpy_helper.from_array(np.array(2e-6, np.float32), "x_scale")
    )
    cast, notes = cast_fp16(source)
    assert [entry["node"] for entry in notes["kept_nodes"]] == ["quantize", "dequantize"]
    np.testing.assert_allclose(
        run(emulate_half(cast), {"x": X * 1e-5}), run(source, {"x": X * 1e-5}), rtol=2e-3, atol=1e-6
    )


@needs_trt
@pytest.mark.parametrize("scales", [[0.25, 0.5, 0.125, 0.25], [0.25, 0.5, 0.125, 1e-6]])
def test_both_kinds_parse_and_build(scales: list[float], tmp_path: Path) -> None:
    write_onnx(cast_fp16(product(scales))[0], tmp_path / "m.onnx")
    info = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", {"x": ((1, 4), (2, 4), (4, 4))})
    assert info["precision"] == "int8"


def quantized(kind: str, artifact: Artifact) -> onnx.ModelProto:
    """An encoder with symmetric pairs, by ONNX Runtime's quantizer or by our writer."""
    source = onnx.load(artifact.file())
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    if kind == "ort":
        return quantize_static(source, encoded, activation="int8", embeddings=False)[0]
    placements = place(source, rules_for("onnxruntime"), tables=kind == "tables")
    seen = calibrate(source, encoded, quantized_inputs(placements), histograms=False)
    return write_int8(source, placements, seen.ranges("minmax"), SYMMETRIC)


@pytest.mark.parametrize(("kind", "family"), [("ort", "bert"), ("ours", "bert"), ("tables", "roberta")])
def test_an_encoder_with_pairs_becomes_fp16_builds_and_stays_close(
    kind: str, family: str, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = tiny_exported(family)
    source = quantized(kind, artifact)
    cast, notes = cast_fp16(source)
    assert integers_of(cast) == integers_of(source)
    assert len(integers_of(cast)) > 10
    assert all(entry["reason"].startswith("a scale is ") for entry in notes["kept_nodes"]), notes["kept_nodes"]
    assert notes["nodes_float16"] > 20 * notes["nodes_float32"]
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    feed = encoded.batch(range(len(encoded)))
    exact, close = run(source, feed), run(emulate_half(cast), feed)
    # FP16 moves the largest values by up to 127 / 4096 of a step, so that some round to the next integer
    cost_of_int8 = np.abs(run(onnx.load(artifact.file()), feed) - exact).mean()
    assert np.abs(exact - close).mean() < 2 * cost_of_int8
    if missing_trt() or kind == "tables":  # TensorRT takes an 8-bit table only where its rows are dequantized first
        return
    write_onnx(cast, tmp_path / "m.onnx")
    profile = profile_from_lengths([value.name for value in source.graph.input], [5, 12, 20], 32, max_batch=4)
    assert build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", profile)["precision"] == "int8"


def test_integer_operators_of_onnx_runtime_are_refused(tiny_exported: Callable[..., Artifact]) -> None:
    source = onnx.load(tiny_exported().file())
    placements = place(source, rules_for("onnxruntime"))
    for model in (quantize_dynamic(source)[0], write_int8(source, placements, how=Int8Format(form="integer"))):
        with pytest.raises(ModelError, match="no 16-bit form") as caught:
            cast_fp16(model)
        assert "DynamicQuantizeLinear" in caught.value.value
        assert "QuantizeLinear/DequantizeLinear" in caught.value.fix
