from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.ranges import Range
from compress.quantization.rules import place, rules_for
from compress.quantization.writing import Int8Format, write_int8
from compress.runtimes.onnx_placement import describe, is_integer

RULES = rules_for("onnxruntime")


def two_layers(widths: tuple[int, int] = (32, 64)) -> onnx.ModelProto:
    """x (n, 48) -> two linear layers, the second 32 or wider."""
    rng = np.random.default_rng(0)
    first, second = widths
    constants = [
        numpy_helper.from_array(rng.normal(size=(48, first)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.normal(size=(first, second)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="two"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 48), ("y", second)))
    graph = helper.make_graph(nodes, "two", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def described(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    import onnxruntime

    source, optimized = folder / "model.onnx", folder / "optimized.onnx"
    source.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return describe(optimized, source)


def test_a_float_model_has_no_integer_share(tmp_path: Path) -> None:
    found = described(two_layers(), tmp_path)
    assert found["integer_mac_share"] == 0.0
    assert (found["integer_products"], found["float_products"], found["folded"]) == (0, 2, 0)


@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_share_is_that_of_the_multiply_accumulates_on_integers(tmp_path: Path, form: Any) -> None:
    model = two_layers()
    placed = place(model, RULES, excluded={"two": "kept"})
    written = write_int8(model, placed, {"x": Range(-3, 3)}, Int8Format(form))
    found = described(written, tmp_path)
    assert found["integer_mac_share"] == pytest.approx(48 * 32 / (48 * 32 + 32 * 64))
    assert (found["integer_products"], found["float_products"], found["folded"]) == (1, 1, 0)
    assert found["conversions"] >= 1


def test_weights_that_are_only_stored_in_8_bits_fold_back_to_float(tmp_path: Path) -> None:
    model = two_layers()
    for name in ("w1", "w2"):
        tensor = next(it for it in model.graph.initializer if it.name == name)
        values = numpy_helper.to_array(tensor)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array((values * 30).astype(np.int8), f"{name}.int8"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 30), f"{name}.scale"))
        turn = helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], name=f"{name}/turn")
        model.graph.node.insert(0, turn)
    found = described(model, tmp_path)
    assert found["folded"] == 2
    assert found["integer_products"] == 0
    assert found["integer_mac_share"] == 0.0


@pytest.mark.parametrize(
    ("operator", "integer"),
    [
        ("MatMulIntegerToFloat", True),
        ("DynamicQuantizeMatMul", True),
        ("QLinearMatMul", True),
        ("QLinearConv", True),
        ("QGemm", True),
        ("QAttention", True),
        ("MatMul", False),
        ("QuantizeLinear", False),
        ("DequantizeLinear", False),
    ],
)
def test_integer_operators(operator: str, integer: bool) -> None:
    assert is_integer(helper.make_node(operator, ["x"], ["y"])) == integer


def test_block_quantized_products_are_integer_only_at_accuracy_level_4() -> None:
    for level, integer in ((0, False), (1, False), (4, True)):
        node = helper.make_node("MatMulNBits", ["x"], ["y"], accuracy_level=level, K=32, N=16)
        assert is_integer(node) == integer
