from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as peer

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import RecipeError, UsageError
from compress.export.golden import open_session
from compress.export.onnx_clean import write_onnx
from compress.export.signature import traits_of
from compress.quantization.blocks import BLOCK_SIZES, dividing_block_size, fitting_block_size, pack, quantize_blocks
from compress.quantization.weight_only import quantize_weights
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], *outputs: str, ids: bool = False
) -> onnx.ModelProto:
    """A graph from ``x``, (n, k) float32 or, with ``ids``, (batch, sequence) int64."""
    kind, shape = (TensorProto.INT64, ["batch", "sequence"]) if ids else (TensorProto.FLOAT, ["n", "k"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or ("y",)]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inside = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], values, stored)
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray, output: str = "y") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"x": x})[0])


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Undo the packing along the last axis, by the operators' description: the first number in the low bits."""
    if bits == 8:
        return packed.astype(int)
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(int)


def stored_factor(model: onnx.ModelProto, name: str, bits: int, columns: int) -> np.ndarray:
    """Dequantize what the file holds as MatMulNBits is described, one number at a time: (N, K)."""
    found = weights(model)
    integers, scales = unpacked(found[f"{name}_Q{bits}"], bits), found[f"{name}_scales"]
    zeros = unpacked(found[f"{name}_zero_points"], bits) if f"{name}_zero_points" in found else None
    values = np.zeros((len(scales), columns))
    for row, column in np.ndindex(values.shape):
        block, place = divmod(column, integers.shape[2])
        zero = 2 ** (bits - 1) if zeros is None else zeros[row, block]
        values[row, column] = (integers[row, block, place] - zero) * scales[row, block]
    return values


def reasons(notes: dict[str, Any]) -> dict[str, str]:
    return {entry["node"]: entry["reason"] for entry in notes["float"]}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "block_size"), [(64, 16), (96, 32), (72, 32), (160, 128), (33, 16), (40, 256)])
def test_onnxruntime_multiplies_by_what_the_blocks_stand_for(
    bits: Any, symmetric: bool, columns: int, block_size: int
) -> None:
    weight, x = normal(columns, 48), normal(7, columns)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight})
    common: dict[str, Any] = {"bits": bits, "block_size": block_size, "symmetric": symmetric}
    quantized, notes = quantize_weights(model, integer_products=False, **common)
    assert notes["nodes_quantized"] == {"MatMul": 1}
    assert notes["float"] == []
    assert set(weights(quantized)) == {f"w_Q{bits}", "w_scales"} | (set() if symmetric else {"w_zero_points"})
    factor = stored_factor(quantized, "w", bits, columns)
    size = fitting_block_size(columns, bits, block_size)
    expected = quantize_blocks(np.ascontiguousarray(weight.T), bits, size, symmetric=symmetric)
    np.testing.assert_allclose(factor, expected.dequantize(), rtol=1e-6, atol=1e-7)
    exact = x.astype(np.float64) @ factor.T
    np.testing.assert_allclose(run(quantized, x), exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
    rounded = run(quantize_weights(model, **common)[0], x)
    assert np.abs(rounded - exact).max() < 0.015 * np.abs(exact).max()
    error = np.square(factor - weight.T).sum() / np.square(weight, dtype=np.float64).sum()
    assert notes["relative_error"]["linears"] == pytest.approx(np.sqrt(error), rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "block_size"), [(64, 16), (96, 32), (72, 32), (40, 16), (384, 256), (30, 32)])
def test_tables_are_read_as_they_are_packed(bits: Any, columns: int, block_size: int) -> None:
    table, ids = normal(70, columns), RNG.integers(0, 70, (3, 11))
    model = graph([helper.make_node("Gather", ["t", "x"], ["y"], name="g")], {"t": table}, ids=True)
    quantized, notes = quantize_weights(model, bits=bits, block_size=block_size)
    size = dividing_block_size(columns, block_size)
    blocks = quantize_blocks(table, bits, size, symmetric=True)
    np.testing.assert_allclose(run(quantized, ids), blocks.dequantize()[ids], rtol=1e-6, atol=1e-7)
    assert notes["nodes_quantized"] == {"Gather": 1}
    assert weights(quantized)[f"t_Q{bits}"].shape == (70, columns * bits // 8)
    assert weights(quantized)["t_scales"].shape == (70, -(-columns // size))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("heavy", [False, True])
def test_error_is_smaller_than_that_of_the_runtimes_own_quantizer(
    bits: Any, block_size: int, symmetric: bool, heavy: bool
) -> None:
    weight = RNG.standard_t(3, (256, 64)).astype(np.float32) if heavy else normal(256, 64)
    theirs = peer.DefaultWeightOnlyQuantizer(
        peer.DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=symmetric, bits=bits)
    )
    packed, scales, zeros = theirs.qbits_block_quant(weight)
    shape = (64, 256 // block_size)
    middle = np.full(shape, 2 ** (bits - 1))
    points = middle if symmetric else unpacked(zeros.reshape(64, -1), bits)
    values = (unpacked(packed, bits) - points[..., None]) * scales.reshape(shape)[..., None]
    error = np.square(values.reshape(64, 256) - weight.T).sum()
    ours = quantize_blocks(np.ascontiguousarray(weight.T), bits, block_size, symmetric=symmetric)
    assert ours.squared_error == pytest.approx(np.square(ours.dequantize() - weight.T).sum(), rel=1e-3)
    assert ours.squared_error < error * (0.96 if bits == 4 else 0.999)


def test_blocks_of_representable_numbers_are_exact() -> None:
    integers = RNG.integers(0, 16, (6, 64))
    integers[:, ::32], integers[:, 1::32] = 0, 15
    matrix = ((integers - 5) * 0.25).astype(np.float32)
    blocks = quantize_blocks(matrix, 4, 32)
    np.testing.assert_array_equal(blocks.integers, integers)
    np.testing.assert_allclose(blocks.scales, 0.25, rtol=1e-6)
    assert (blocks.zero_points == 5).all()
    assert quantize_blocks(np.zeros((3, 40), np.float32), 4, 32).squared_error == 0
    tiny = np.full((1, 16), 1e-42, np.float32)
    assert np.isfinite(quantize_blocks(tiny, 8, 16).dequantize()).all()


def test_large_matrices_are_searched_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normal(50, 70)
    whole = quantize_blocks(matrix, 4, 32)
    monkeypatch.setattr("compress.quantization.blocks._CHUNK", 300)
    parts = quantize_blocks(matrix, 4, 32)
    np.testing.assert_array_equal(whole.integers, parts.integers)
    np.testing.assert_array_equal(whole.scales, parts.scales)


def test_packing_puts_the_first_number_low_and_fills_odd_rows() -> None:
    np.testing.assert_array_equal(pack(np.array([[1, 2, 3]], np.uint8), 4), [[0x21, 0x03]])
    np.testing.assert_array_equal(pack(np.array([[1, 2, 3]], np.uint8), 8), [[1, 2, 3]])


def test_block_size_shrinks_where_padding_would_cost_bytes() -> None:
    assert [fitting_block_size(columns, 4, 128) for columns in (384, 160, 1536, 96, 20)] == [128, 32, 128, 32, 32]
    assert fitting_block_size(384, 4, 256) == 128
    assert fitting_block_size(512, 4, 64) == 64


def test_rows_of_a_table_hold_whole_blocks_where_a_size_divides_them() -> None:
    assert [dividing_block_size(columns, 128) for columns in (384, 768, 32, 160, 312)] == [128, 128, 32, 32, 128]
    assert dividing_block_size(384, 256) == 128


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [None, (48,), (1, 48), (1,)])
def test_gemm_becomes_a_product_and_a_sum(transposed: bool, bias: tuple[int, ...] | None) -> None:
    weight, x = normal(48, 64) if transposed else normal(64, 48), normal(5, 64)
    stored = {"w": weight} | ({} if bias is None else {"b": normal(*bias)})
    inputs = ["x", "w"] + ([] if bias is None else ["b"])
    model = graph([helper.make_node("Gemm", inputs, ["y"], name="m", transB=int(transposed))], stored)
    quantized, notes = quantize_weights(model, bits=8, integer_products=False)
    expected = x @ stored_factor(quantized, "w", 8, 64).T + stored.get("b", 0)
    np.testing.assert_allclose(run(quantized, x), expected, rtol=1e-4, atol=1e-4)
    assert (notes["nodes_quantized"], notes["nodes_left"]) == ({"Gemm": 1}, {})


def test_nodes_that_read_one_table_share_what_is_stored() -> None:
    nodes = [helper.make_node("Gather", ["t", "x"], [name], name=f"g_{name}") for name in "ab"]
    model = graph([*nodes, helper.make_node("Add", ["a", "b"], ["y"])], {"t": normal(40, 32)}, ids=True)
    quantized, notes = quantize_weights(model)
    assert notes["nodes_quantized"] == {"Gather": 2}
    assert set(weights(quantized)) == {"t_Q4", "t_scales"}
    table = quantize_blocks(weights(model)["t"], 4, 32, symmetric=True).dequantize()
    ids = np.array([[3, 39, 0]])
    np.testing.assert_allclose(run(quantized, ids), 2 * table[ids], rtol=1e-6)


def tied(*others: onnx.NodeProto, exclude: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Quantize a table that other nodes read too; ``y`` is the sum of what they give."""
    nodes = [helper.make_node("Gather", ["t", "x"], ["e"], name="embed"), *others]
    model = graph([*nodes, helper.make_node("Identity", ["e"], ["y"])], {"t": normal(64, 32)}, ids=True)
    quantized, notes = quantize_weights(model, exclude=exclude)
    assert weights(quantized)["t"].dtype == np.float32
    np.testing.assert_array_equal(run(quantized, np.array([[1, 5]])), weights(model)["t"][[[1, 5]]])
    return quantized, reasons(notes)


def test_a_table_that_the_graph_uses_otherwise_too_stays_in_float32() -> None:
    transpose = helper.make_node("Transpose", ["t"], ["tt"], name="head/Transpose")
    head = helper.make_node("MatMul", ["e", "tt"], ["h"], name="head")
    _, found = tied(transpose, head)
    assert found == {
        "embed": "the weight is also read by head/Transpose",
        "head": "both factors are computed at run time",
    }
    flat = helper.make_node("Flatten", ["e"], ["f"], axis=2)
    _, found = tied(flat, helper.make_node("Gemm", ["f", "t"], ["h"], name="head", transB=1))
    assert found == {"embed": "the weight is also read by head", "head": "the weight is also read by embed"}
    again = helper.make_node("Gather", ["t", "x"], ["again"], name="again")
    assert tied(again, exclude=("again",))[1] == {
        "embed": "the weight is also read by again",
        "again": "excluded",
    }


def test_each_node_left_in_float32_has_its_reason() -> None:
    infinite = normal(32, 32)
    infinite[0, 0] = np.inf
    stored = {
        "square": normal(32, 32),
        "small": normal(32, 2),
        "deep": normal(1, 32, 32),
        "half": normal(32, 32).astype(np.float16),
        "infinite": infinite,
        "odd": normal(64, 33),
        "rows": RNG.integers(0, 30, 4),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"], name="both computed"),
        helper.make_node("MatMul", ["square", "x"], ["b"], name="constant left"),
        helper.make_node("MatMul", ["x", "small"], ["c"], name="small"),
        helper.make_node("MatMul", ["x", "deep"], ["d"], name="deep"),
        helper.make_node("MatMul", ["x", "infinite"], ["e"], name="infinite"),
        helper.make_node("Gemm", ["x", "square"], ["f"], name="scaled", alpha=0.5),
        helper.make_node("Gemm", ["x", "square"], ["g"], name="left transposed", transA=1),
        helper.make_node("Gather", ["odd", "rows"], ["i"], name="odd"),
        helper.make_node("Gather", ["square", "rows"], ["j"], name="columns", axis=1),
        helper.make_node("MatMul", ["h", "half"], ["k"], name="half"),
        helper.make_node("Gather", ["half", "rows"], ["l"], name="no float32 table"),
    ]
    quantized, notes = quantize_weights(graph(nodes, stored))
    assert reasons(notes) == {
        "both computed": "both factors are computed at run time",
        "constant left": "the constant is the left factor",
        "small": "fewer than 1024 numbers",
        "deep": "the weight has rank 3, not 2",
        "infinite": "the weight has numbers that are not finite",
        "scaled": "Gemm with alpha=0.5",
        "left transposed": "Gemm with transA=1",
        "odd": "rows of odd length do not fill bytes of two numbers",
        "columns": "Gather along axis 1",
        "half": "the weight is not float32",
    }
    assert notes["nodes_left"] == {"Gather": 2, "Gemm": 2, "MatMul": 6}
    assert notes["nodes_quantized"] == {}
    assert not quantized.graph.node[0].domain
    assert {entry.domain for entry in quantized.opset_import} == {""}
    assert weights(quantized).keys() == stored.keys()


def test_constant_nodes_and_weights_among_the_inputs_are_weights_too() -> None:
    first, second, x = normal(64, 64), normal(64, 48), normal(3, 64)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(first)),
        helper.make_node("MatMul", ["x", "c"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="two"),
    ]
    model = graph(nodes, {"w": second})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 48]))
    quantized, _ = quantize_weights(model, bits=8)
    assert [node.op_type for node in quantized.graph.node] == ["MatMulNBits"] * 2
    assert [value.name for value in quantized.graph.input] == ["x"]
    exact = x @ first @ second
    assert np.abs(run(quantized, x) - exact).max() < 0.02 * np.abs(exact).max()


def test_a_weight_that_a_subgraph_or_an_output_reads_stays_in_float32() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="one"),
        helper.make_node("MatMul", ["x", "v"], ["u"], name="two"),
        helper.make_node("If", ["yes"], ["i"], name="if", then_branch=branch, else_branch=branch),
    ]
    stored = {"w": normal(64, 64), "v": normal(64, 64), "yes": np.array(True)}
    model = graph(nodes, stored, "y", "u", "i", "v")
    quantized, notes = quantize_weights(model)
    assert reasons(notes) == {
        "one": "the weight is also read by if",
        "two": "the weight is also read by the model's outputs",
    }
    x = normal(2, 64)
    np.testing.assert_array_equal(run(quantized, x, "i"), run(model, x, "i"))


def test_block_size_without_kernels_and_unknown_names_are_errors() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": normal(64, 64)})
    with pytest.raises(UsageError, match="block size") as caught:
        quantize_weights(model, block_size=48)
    assert all(str(size) in caught.value.fix for size in BLOCK_SIZES)
    with pytest.raises(RecipeError, match="names no node"):
        quantize_weights(model, exclude=("n",))


@pytest.fixture
def model(tiny_exported: Callable[..., Artifact]) -> onnx.ModelProto:
    return onnx.load(tiny_exported().file())


@pytest.fixture
def encoded(tiny_exported: Callable[..., Artifact]) -> Encoded:
    return TASK.encode(tiny_exported().path, [{"text": text} for text in GOLDEN_TEXTS])


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.6), (8, 0.05)])
def test_an_encoder_keeps_its_answers(
    model: onnx.ModelProto, encoded: Encoded, tmp_path: Path, bits: Any, tolerance: float
) -> None:
    before = model.SerializeToString()
    model.metadata_props.add(key="task", value="text-classification")
    quantized, notes = quantize_weights(model, bits=bits)
    again, _ = quantize_weights(model, bits=bits)
    assert quantized.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    del model.metadata_props[:]
    assert model.SerializeToString() == before
    assert [entry.key for entry in quantized.metadata_props] == ["task"]
    assert notes["nodes_quantized"] == {"Gather": 2, "Gemm": 1, "MatMul": 12}
    assert set(reasons(notes).values()) == {"fewer than 1024 numbers", "both factors are computed at run time"}
    assert traits_of(quantized) == (f"int{bits}",)
    assert traits_of(model) == ()
    write_onnx(model, tmp_path / "exact.onnx")
    write_onnx(quantized, tmp_path / "close.onnx")
    assert (tmp_path / "close.onnx").stat().st_size < 0.75 * (tmp_path / "exact.onnx").stat().st_size
    feed = encoded.batch(range(len(encoded)))
    exact, close = (open_session(tmp_path / f"{name}.onnx").run(None, feed)[0] for name in ("exact", "close"))
    session = open_session(tmp_path / "close.onnx")
    alone = [session.run(None, encoded.batch([i]))[0] for i in range(len(encoded))]
    np.testing.assert_allclose(close, np.concatenate(alone), atol=1e-3 * np.abs(close).max())
    assert 0 < np.abs(exact - close).max() < tolerance * np.abs(exact).max()


def test_parts_of_an_encoder_stay_in_float32_when_asked(model: onnx.ModelProto) -> None:
    _, notes = quantize_weights(model, embeddings=False, exclude=("bert.encoder.layer.0.*",))
    assert notes["nodes_quantized"] == {"Gemm": 1, "MatMul": 6}
    assert "embeddings" not in notes["relative_error"]
    quantized, notes = quantize_weights(model, linears=False, embedding_bits=8)
    assert notes["nodes_quantized"] == {"Gather": 2}
    assert notes["nodes_left"] == {"Gather": 1}
    assert traits_of(quantized) == ("int8",)
