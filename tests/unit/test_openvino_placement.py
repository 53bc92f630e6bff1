"""What OpenVINO runs on integers: shares by hand on two layers, folded weights, products of two activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact, Graph, PassRecord, create_artifact
from compress.export.signature import read_graph
from compress.quantization.int8 import quantize_dynamic
from compress.quantization.ranges import Range
from compress.quantization.rules import place, rules_for
from compress.quantization.writing import Int8Format, write_int8
from compress.runtimes.openvino_placement import describe

openvino = pytest.importorskip("openvino")
RULES = rules_for("openvino")


def two_layers() -> onnx.ModelProto:
    """x (n, 48) -> 32 -> 64, both linear."""
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.normal(size=(48, 32)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.normal(size=(32, 64)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="two"),
    ]
    return graph_model(nodes, constants, 64)


def graph_model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], width: int) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 48), ("y", width)))
    graph = helper.make_graph(nodes, "two", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def described(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return describe(core.compile_model(core.read_model(path), "CPU", options), core.read_model(path))


def test_a_float_model_has_no_integer_share(tmp_path: Path) -> None:
    found = described(two_layers(), tmp_path)
    assert found["integer_mac_share"] == 0.0
    assert (found["integer_products"], found["float_products"], found["folded"]) == (0, 2, 0)
    assert found["float_reasons"] == {"its weight is float": 2}


def test_share_is_that_of_the_multiply_accumulates_on_integers(tmp_path: Path) -> None:
    placed = place(two_layers(), RULES, excluded={"two": "kept"})
    found = described(write_int8(two_layers(), placed, {"x": Range(-3, 3)}), tmp_path)
    assert found["integer_mac_share"] == pytest.approx(48 * 32 / (48 * 32 + 32 * 64))
    assert (found["integer_products"], found["float_products"]) == (1, 1)
    assert found["float_reasons"] == {"its weight is float": 1}


def test_both_layers_of_our_qdq_form_multiply_integers(tmp_path: Path) -> None:
    placed = place(two_layers(), RULES)
    found = described(write_int8(two_layers(), placed, {"x": Range(-3, 3), "h": Range(-30, 30)}), tmp_path)
    assert (found["integer_mac_share"], found["float_products"], found["folded"]) == (1.0, 0, 0)
    assert found["float_reasons"] == {}


def test_integers_of_run_time_quantization_fold_to_float(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = described(quantize_dynamic(two_layers())[0], tmp_path)
    assert (found["integer_mac_share"], found["integer_products"], found["folded"]) == (0.0, 0, 2)
    assert RULES.methods == ("static",)


def test_weights_alone_in_8_bits_are_no_integer_product(tmp_path: Path) -> None:
    weight = np.arange(-768, 768).reshape(48, 32).astype(np.int8)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0.1), "s")]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"], name="one"),
    ]
    found = described(graph_model(nodes, constants, 32), tmp_path)
    assert (found["integer_products"], found["float_products"], found["folded"]) == (0, 1, 1)


def test_products_of_two_activations_are_counted_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "x"], ["y"], name="values"),
    ]
    found = described(graph_model(nodes, [], 48), tmp_path)
    assert (found["attention_products"], found["integer_products"], found["float_products"]) == (2, 0, 0)
    assert "integer_mac_share" not in found


def test_a_session_reports_the_share(tmp_path: Path) -> None:
    from compress.runtimes.base import runtimes
    from compress.runtimes.target import find_target

    artifact = two_layer_artifact(tmp_path)
    with runtimes.get("openvino")().open(artifact, find_target("openvino-cpu-1t")) as session:
        outputs = session.run({"x": np.ones((3, 48), dtype=np.float32)})["y"]
        placement = session.placement()
    assert placement["integer_mac_share"] == 1.0
    assert (placement["device"], outputs.shape) == ("CPU", (3, 64))


def two_layer_artifact(folder: Path) -> Artifact:
    how = Int8Format(weight_bits=7)
    model = write_int8(two_layers(), place(two_layers(), RULES), {"x": Range(-3, 3), "h": Range(-30, 30)}, how)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    graph: Graph = read_graph(folder / "model.onnx")
    made = PassRecord(name="test", version=1, config={})
    return create_artifact(folder, kind="onnx", task={}, graphs={"model": graph}, made_by=made)


def test_what_stays_in_float_has_its_reason() -> None:
    model = two_layers()
    model.graph.node.add().CopyFrom(helper.make_node("Add", ["y", "y"], ["z"], name="sum"))
    reasons = {p.node: p.reason for p in place(model, RULES) if p.reason}
    assert set(reasons) == {"sum"}
    assert reasons["sum"].startswith("residual sum")
