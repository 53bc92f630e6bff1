from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.errors import ModelError, RecipeError
from compress.export.golden import open_session
from compress.export.onnx_clean import write_onnx
from compress.quantization.fp16 import cast_fp16
from compress.quantization.half_format import FP16
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def float_graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph from x to y, both float32 (n, 4)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize(("family", "pruned"), [("bert", False), ("roberta", True), ("distilbert", True)])
def test_encoders_compute_in_fp16_and_stay_close(
    family: str, pruned: bool, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = tiny_exported(family, pruned)
    model = onnx.load(artifact.file())
    before = model.SerializeToString()
    cast, notes = cast_fp16(model)
    write_onnx(cast, tmp_path / "cast.onnx")
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    feed = encoded.batch(range(len(encoded)))
    (exact,) = open_session(artifact.file()).run(None, feed)
    (close,) = open_session(tmp_path / "cast.onnx").run(None, feed)
    assert close.dtype == np.float32
    assert 0 < np.abs(exact - close).max() < 5e-3 * np.abs(exact).max()
    assert notes["nodes_float32"] == 0
    assert notes["casts_inserted"] == 1
    assert notes["weights"]["mask_fills_replaced"] == 1
    assert model.SerializeToString() == before
    assert cast_fp16(model)[0].SerializeToString(deterministic=True) == cast.SerializeToString(deterministic=True)


def test_no_node_mixes_precisions(tiny_exported: Callable[..., Artifact]) -> None:
    model, _ = cast_fp16(onnx.load(tiny_exported().file()), ["Softmax", "*.LayerNorm/*"])
    types = types_of(model)
    for node in model.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output) if name} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        assert len(kinds) <= 1 or node.op_type == "Cast", node.name


def test_a_row_without_any_token_is_finite(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    model, _ = cast_fp16(onnx.load(tiny_exported().file()))
    write_onnx(model, tmp_path / "m.onnx")
    feed = {name: np.zeros((2, 6), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert np.isfinite(open_session(tmp_path / "m.onnx").run(None, feed)[0]).all()


def test_casts_stand_only_at_borders_and_once() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Exp", ["a"], ["b"], name="b"),
        helper.make_node("Exp", ["a"], ["c"], name="c"),
        helper.make_node("Add", ["b", "c"], ["y"], name="d"),
    ]
    model, notes = cast_fp16(float_graph(nodes, {}))
    assert [node.op_type for node in model.graph.node] == [
        *("Cast", "Relu", "Cast", "Exp", "Exp", "Cast", "Cast", "Add", "Cast")
    ]
    assert notes["kept_float32"] == {"Exp overflows or cancels": 2}
    assert notes["casts_inserted"] == 5
    assert types_of(model)["x"] == types_of(model)["y"] == TensorProto.FLOAT


def test_weights_beyond_fp16_keep_their_node_and_a_weight_of_both_precisions_is_stored_once() -> None:
    big = np.array([1e5, 1, 1, 1], np.float32)
    small = np.array([1e-9, 1, 2, 3], np.float32)
    nodes = [
        helper.make_node("Add", ["x", "big"], ["a"], name="big add"),
        helper.make_node("Mul", ["a", "small"], ["b"], name="half mul"),
        helper.make_node("Exp", ["small"], ["c"], name="exp"),
        helper.make_node("Add", ["b", "c"], ["y"], name="add"),
    ]
    model, notes = cast_fp16(float_graph(nodes, {"big": big, "small": small}))
    assert notes["kept_float32"] == {"Exp overflows or cancels": 1, "a weight exceeds 65504": 1}
    assert notes["kept_nodes"][0] == {
        "node": "big add", "operator": "Add", "reason": "big reaches 100,000; FP16 ends at 65,504",
    }  # fmt: skip
    assert notes["weights"] == {"float32": 2, "mask_fills_replaced": 0, "numbers_flushed_to_zero": 1}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored["big"], big)
    np.testing.assert_array_equal(stored["small"], small)
    assert set(stored) == {"big", "small"}


def test_mask_fill_becomes_half_the_range() -> None:
    nodes = [
        helper.make_node("Add", ["x", "fill"], ["a"], name="mask"),
        helper.make_node("Softmax", ["a"], ["y"], name="scores"),
    ]
    model, notes = cast_fp16(float_graph(nodes, {"fill": np.array(np.finfo(np.float32).min)}))
    assert numpy_helper.to_array(model.graph.initializer[0]) == FP16.fill == -32752
    assert notes["weights"]["mask_fills_replaced"] == 1
    assert notes["nodes_float32"] == 0


def test_a_large_constant_that_is_no_mask_is_not_replaced() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "million"], ["a"], name="up"),
        helper.make_node("Mul", ["a", "millionth"], ["y"], name="down"),
    ]
    constants = {"million": np.array(1e6, np.float32), "millionth": np.array(1e-6, np.float32)}
    model, notes = cast_fp16(float_graph(nodes, constants))
    assert notes["kept_float32"] == {"a weight exceeds 65504": 1, "a weight is too small for FP16": 1}
    assert [entry["reason"] for entry in notes["kept_nodes"]] == [
        "million reaches 1,000,000; FP16 ends at 65,504",
        "millionth is at most 1e-06, and would lose 1 % of its size",
    ]
    x = np.array([[0.5, -0.25, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(run(model, {"x": x}), x, rtol=1e-6)


def test_a_tied_weight_stays_one() -> None:
    """A table that is looked up and multiplied by, as a masked language model has it."""
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="rows"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turned"),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="product"),
    ]
    table = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "table")
    graph = helper.make_graph(nodes, "g", [x], [y], [table])
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    for keep, wanted in (((), ["table__float16"]), (("product",), ["table__float16"]), (("turned",), ["table"])):
        model, _ = cast_fp16(source, keep)
        assert [tensor.name for tensor in model.graph.initializer] == wanted
        assert model.graph.initializer[0].data_type == (
            TensorProto.FLOAT if wanted == ["table"] else TensorProto.FLOAT16
        )
        assert types_of(model)["y"] == TensorProto.FLOAT


def test_operators_without_an_fp16_form_stay_as_the_schema_says() -> None:
    shape = {"sizes": np.array([1, 4], np.int64)}
    nodes = [
        helper.make_node("Celu", ["x"], ["a"], name="float only"),
        helper.make_node("RandomNormalLike", ["a"], ["r"], name="typed", dtype=TensorProto.FLOAT, seed=1.0),
        helper.make_node("ConstantOfShape", ["sizes"], ["z"], name="zeros"),
        helper.make_node("Mul", ["r", "z"], ["m"], name="mul"),
        helper.make_node("Add", ["a", "m"], ["y"], name="add"),
    ]
    model, notes = cast_fp16(float_graph(nodes, shape))
    assert notes["kept_float32"] == {"Celu has no FP16 form": 1, "RandomNormalLike has no FP16 form": 1}
    assert types_of(model)["y"] == TensorProto.FLOAT


def test_unknown_entry_of_keep_float32_is_an_error(tiny_exported: Callable[..., Artifact]) -> None:
    with pytest.raises(RecipeError, match="keep_float32"):
        cast_fp16(onnx.load(tiny_exported().file()), ["SoftMax"])


def test_control_flow_is_refused() -> None:
    empty = helper.make_graph([], "branch", [], [])
    nodes = [helper.make_node("If", ["x"], ["y"], name="branching", then_branch=empty, else_branch=empty)]
    with pytest.raises(ModelError, match="control flow"):
        cast_fp16(float_graph(nodes, {}))
