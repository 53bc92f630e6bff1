"""Every rule of the TensorRT linter on graphs that it takes and refuses, beside the real parser's verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.checks.checking import RULES, check_model
from compress.errors import ModelError, UsageError
from compress.export.trt_api import load_trt, logged, missing_trt

F32, F16, I8, U8, I32, I64 = (
    getattr(TensorProto, name) for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT32", "INT64")
)
ONE, ZERO, SCALE = np.float32(1), np.int8(0), np.float32(0.1)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: dict[str, int],
    weights: dict[str, Any] | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model of nodes; outputs have no shape, weights are arrays or tensors."""
    tensors = []
    for name, value in (weights or {}).items():
        known = isinstance(value, TensorProto)
        tensors.append(value if known else numpy_helper.from_array(np.asarray(value), name))
        tensors[-1].name = name
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        tensors,
    )
    domains = sorted({node.domain for node in nodes} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def one(
    operator: str,
    *inputs: tuple[int, Sequence[int | str]],
    weights: Sequence[Any] = (),
    out: int = F32,
    more: Sequence[str] = (),
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: its inputs come first, then its weights; None is an input left out."""
    names = [f"x{i}" for i in range(len(inputs))]
    held = [f"w{i}" if value is not None else "" for i, value in enumerate(weights)]
    node = helper.make_node(operator, [*names, *held], ["y", *more], name="node", **attributes)
    stored = {name: value for name, value in zip(held, weights, strict=True) if name}
    return build([node], dict(zip(names, inputs, strict=True)), {"y": out}, stored, opset)


def pair(
    scale: Any = SCALE,
    zero: Any = ZERO,
    shape: Sequence[int | str] = (2, 4, 8),
    after: Sequence[onnx.NodeProto] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear of an activation ``x``; ``y`` is what comes out."""
    inputs = ["scale", "zero"] if zero is not None else ["scale"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *inputs], ["q"], name="quantize", **attributes),
        helper.make_node("DequantizeLinear", ["q", *inputs], ["y"], name="dequantize", **attributes),
    ]
    weights = {"scale": scale} | ({"zero": zero} if zero is not None else {})
    return build([*nodes, *after], {"x": (F32, shape)}, {"y": F32}, weights)


def linear(
    weight: Any = None,
    scale: Any = None,
    axis: int = 1,
    rows: Sequence[int | str] = ("batch", 5),
    depth: int = 32,
    width: int = 32,
    quantized: bool = True,
    after: Sequence[onnx.NodeProto] = (),
    bias: Any = None,
) -> onnx.ModelProto:
    """A quantized activation times an int8 weight of (depth, width), ``product``; ``y`` is the last output."""
    weight = np.ones((depth, width), np.int8) if weight is None else weight
    scale = np.full(width, 0.1, np.float32) if scale is None else scale
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["dw"], name="weight", axis=axis),
        helper.make_node("MatMul", ["d" if quantized else "x", "dw"], ["product"], name="product"),
    ]
    weights = {"s": SCALE, "z": ZERO, "w": weight, "ws": scale}
    if bias is not None:
        nodes += [
            helper.make_node("DequantizeLinear", ["b", "s"], ["db"], name="bias"),
            helper.make_node("Add", ["product", "db"], ["sum"], name="add"),
        ]
        weights["b"] = bias
    nodes += after
    last = nodes[-1].output[0]
    return build(nodes, {"x": (F32, [*rows, depth])}, {last: F32}, weights)


def conv(channels: int, outputs: int, kind: type = np.int8, residual: str = "") -> onnx.ModelProto:
    """A convolution, quantized if its kernel is int8; ``residual``: what is added to it, ``x`` or ``d``."""
    weights: dict[str, Any] = {"w": np.ones((outputs, channels, 3, 3), kind)}
    nodes = []
    float_type = F16 if kind is np.float16 else F32
    if kind is np.int8:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
            helper.make_node("DequantizeLinear", ["w", "ws"], ["dw"], name="weight", axis=0),
        ]
        weights |= {"s": SCALE, "z": ZERO, "ws": np.full(outputs, 0.1, np.float32)}
    operands = ["d", "dw"] if kind is np.int8 else ["x", "w"]
    nodes.append(helper.make_node("Conv", operands, ["c"], name="conv", pads=[1, 1, 1, 1]))
    if residual:
        nodes.append(helper.make_node("Add", ["c", residual], ["y"], name="add"))
    return build(nodes, {"x": (float_type, [1, channels, 8, 8])}, {nodes[-1].output[0]: float_type}, weights)


def attention(head: int, length: int | str = 64, kind: int = F16, quantize: Sequence[str] = ()) -> onnx.ModelProto:
    """softmax(q k^T) v of four heads; the tensors named in ``quantize`` go through a pair."""
    nodes, names = [], {name: name for name in ("q", "k", "v", "p")}

    def through(name: str) -> None:
        if name in quantize:
            nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"], name=f"quantize_{name}"))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"], name=f"dequantize_{name}")
            )
            names[name] = f"{name}_d"

    for name in ("q", "k", "v"):
        through(name)
    nodes.append(helper.make_node("MatMul", [names["q"], names["k"]], ["scores"], name="scores"))
    nodes.append(helper.make_node("Softmax", ["scores"], ["p"], name="softmax", axis=-1))
    through("p")
    nodes.append(helper.make_node("MatMul", [names["p"], names["v"]], ["y"], name="context"))
    float_type = np.float16 if kind == F16 else np.float32
    shapes = {"q": (1, 4, length, head), "k": (1, 4, head, length), "v": (1, 4, length, head)}
    weights = {"s": float_type(0.1), "z": ZERO} if quantize else {}
    return build(nodes, {name: (kind, shape) for name, shape in shapes.items()}, {"y": kind}, weights)


def external(there: bool) -> Callable[[Path], onnx.ModelProto]:
    """A model whose weight lies in ``weights.bin``, which is there or not."""

    def make(folder: Path) -> onnx.ModelProto:
        model = one("Add", (F32, [2, 4]), weights=[np.ones((2, 4), np.float32)])
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "32")):
            tensor.external_data.add(key=key, value=value)
        if there:
            (folder / "weights.bin").write_bytes(np.ones(8, np.float32).tobytes())
        return model

    return make


def loop_of(body_operator: str) -> onnx.ModelProto:
    """A Loop of three rounds around one operator."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node(body_operator, ["state"], ["state_out"], name="inner"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", F32, [2, 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", F32, [2, 2]),
        ],
    )
    node = helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], name="loop", body=body)
    return build([node], {"x": (F32, [2, 2])}, {"y": F32}, {"rounds": np.int64(3), "yes": np.bool_(True)})


def if_of(first: Sequence[str], second: Sequence[str], kind: int = F32, constant: bool = False) -> onnx.ModelProto:
    """An If with branches of operators, one an output; the second branch gives outputs of a type of its own."""

    def branch(name: str, operators: Sequence[str], out: int) -> onnx.GraphProto:
        nodes = [helper.make_node("Cast", ["x"], [f"{name}_x"], to=out)]
        nodes += [
            helper.make_node(operator, [f"{name}_x"], [f"{name}_{i}"], name=f"{name}_node_{i}")
            for i, operator in enumerate(operators)
        ]
        outputs = [helper.make_tensor_value_info(f"{name}_{i}", out, [2, 2]) for i in range(len(operators))]
        return helper.make_graph(nodes, name, [], outputs)

    branches = {"then_branch": branch("then", first, F32), "else_branch": branch("else", second, kind)}
    node = helper.make_node("If", ["yes"], [f"y{i}" for i in range(len(first))], name="if", **branches)
    inputs = {"x": (F32, [2, 2])} | ({} if constant else {"yes": (TensorProto.BOOL, [])})
    outputs = {name: F32 for name in node.output}
    return build([node], inputs, outputs, {"yes": np.bool_(True)} if constant else {})


def function_of(operator: str) -> onnx.ModelProto:
    """A model that calls a function of its own, which is one operator."""
    model = one("Relu", (F32, [2, 2]))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mine", "own"
    inner = helper.make_node(operator, ["a"], ["b"], name="inner")
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [inner], [helper.make_opsetid("", 21)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def computed_shape(kind: int) -> onnx.ModelProto:
    """Reshape to a size that is an input of the model."""
    nodes = [helper.make_node("Cast", ["n"], ["size"], to=I64), helper.make_node("Reshape", ["x", "size"], ["y"])]
    return build(nodes, {"x": (F32, [2, 4]), "n": (kind, [2])}, {"y": F32})


def computed_axes(operator: str) -> onnx.ModelProto:
    """Reduce over an axis that an operator makes of a weight."""
    extra = ["b"] if operator == "Add" else []
    nodes = [
        helper.make_node(operator, ["a", *extra], ["axes"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="reduce"),
    ]
    weights = {"a": np.array([1], np.int64)} | ({"b": np.array([0], np.int64)} if extra else {})
    return build(nodes, {"x": (F32, [2, 4])}, {"y": F32}, weights)


def identity(kind: int) -> onnx.ModelProto:
    return one("Identity", (kind, [2, 4]), out=kind)


def four_bits(count: int) -> onnx.TensorProto:
    return helper.make_tensor("w", TensorProto.INT4, [count], [1] * count)


def then(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), ["after"], name=operator.lower(), **attributes)


NO_BITS = helper.make_tensor("zero", TensorProto.INT4, [], [0])
X, IDS = (F32, [2, 4]), (I64, [2, 4])
IMAGE = (F32, [1, 4, 8, 8])
HEADS = (F32, [1, 4, 8, 16])
MICROSOFT = {"domain": "com.microsoft"}
INT4, FIELD = TensorProto.INT4, (F32, [1, 4, 4, 2])
WEIGHT8, BLOCKS = np.ones((32, 32), np.int8), np.full((4, 32), 0.1, np.float32)


class Case(NamedTuple):
    """A graph, and the rules whose errors it must have: none if it is taken."""

    name: str
    errors: str
    model: onnx.ModelProto | Callable[[Path], onnx.ModelProto]


CASES = [
    Case("relu", "", one("Relu", X)),
    Case("gelu as one operator", "", one("Gelu", X)),
    Case("unknown operator", "operator", one("Unheard", X)),
    Case("DynamicQuantizeLinear", "operator", one("DynamicQuantizeLinear", X, out=U8, more=("s", "z"))),
    Case("MatMulInteger", "operator", one("MatMulInteger", (I8, [2, 4]), weights=[np.ones((4, 4), np.int8)], out=I32)),
    Case("Unique", "operator", one("Unique", X)),
    Case("BitShift", "operator", one("BitwiseNot", (I32, [2]), out=I32)),
    Case("Einsum", "", one("Einsum", X, (F32, [4, 3]), equation="ij,jk->ik")),
    Case("QAttention", "operator", one("QAttention", X, **MICROSOFT)),
    Case("FusedMatMul", "operator", one("FusedMatMul", X, (F32, [4, 4]), **MICROSOFT)),
    Case("SkipLayerNormalization", "operator", one("SkipLayerNormalization", X, X, weights=[ONE], **MICROSOFT)),
    Case("MatMulIntegerToFloat", "operator", one("MatMulIntegerToFloat", (U8, [2, 4]), **MICROSOFT)),
    Case("a plugin that is not there", "operator", one("NonZero", X, out=I64)),
    Case("Gelu of ONNX Runtime", "", one("Gelu", X, **MICROSOFT)),
    Case("MultiHeadAttention", "", one("MultiHeadAttention", *[(F32, [1, 4, 16])] * 3, num_heads=2, **MICROSOFT)),
    Case(
        "Attention of ONNX Runtime",
        "attribute",
        one(
            "Attention",
            (F32, [1, 4, 16]),
            weights=[np.ones((16, 48), np.float32), np.ones(48, np.float32)],
            num_heads=2,
            **MICROSOFT,
        ),
    ),
    Case("loop", "", loop_of("Abs")),
    Case("loop around an unknown operator", "operator", loop_of("Unheard")),
    Case("branches", "", if_of(["Abs"], ["Neg"])),
    Case("branch with an unknown operator", "operator", if_of(["Abs"], ["Unheard"])),
    Case("branch that is never taken", "", if_of(["Abs"], ["Unheard"], constant=True)),
    Case("branches with one and two outputs", "structure", if_of(["Abs"], ["Neg", "Neg"])),
    Case("branches of two types", "mixed-types", if_of(["Abs"], ["Neg"], F16)),
    Case("branches of two types, one never taken", "", if_of(["Abs"], ["Neg"], F16, constant=True)),
    Case("function", "", function_of("Abs")),
    Case("function with an unknown operator", "operator", function_of("Unheard")),
    Case("pooling", "", one("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[1, 1])),
    Case("dilated pooling", "attribute", one("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2])),
    Case("resize to sizes", "", one("Resize", IMAGE, weights=[None, None, np.array([1, 4, 4, 4])], mode="linear")),
    Case(
        "antialiased resize",
        "attribute",
        one("Resize", IMAGE, weights=[None, None, np.array([1, 4, 4, 4])], mode="linear", antialias=1),
    ),
    Case(
        "scatter",
        "",
        one("ScatterND", X, weights=[np.array([[0]]), np.ones((1, 4), np.float32)]),
    ),
    Case(
        "scatter that adds",
        "attribute",
        one("ScatterND", X, weights=[np.array([[0]]), np.ones((1, 4), np.float32)], reduction="add"),
    ),
    Case("attention", "", one("Attention", HEADS, HEADS, HEADS, opset=23)),
    Case("causal attention", "", one("Attention", HEADS, HEADS, HEADS, opset=23, is_causal=1)),
    Case(
        "causal attention with a mask",
        "attribute",
        one("Attention", HEADS, HEADS, HEADS, (F32, [8, 8]), opset=23, is_causal=1),
    ),
    Case("soft-capped attention", "attribute", one("Attention", HEADS, HEADS, HEADS, opset=23, softcap=2.0)),
    Case("keys unlike values", "attribute", one("Attention", HEADS, HEADS, (F32, [1, 4, 8, 8]), opset=23)),
    Case("mod of integers", "", one("Mod", IDS, IDS, out=I64)),
    Case("mod of floats", "attribute", one("Mod", X, X)),
    Case("split in two", "", one("Split", X, more=("z",), axis=1, num_outputs=2)),
    Case("split of 5 in 4", "attribute", one("Split", (F32, [5]), more=("b", "c", "d"), axis=0, num_outputs=4)),
    Case("einsum in capitals", "attribute", one("Einsum", X, (F32, [4, 3]), equation="IJ,JK->IK")),
    Case("vector times stack", "attribute", one("MatMul", (F32, [4]), (F32, [2, 4, 3]))),
    Case("dropout", "", one("Dropout", X, weights=[np.float32(0.5), np.bool_(False)])),
    Case("dropout in training", "attribute", one("Dropout", X, weights=[np.float32(0.5), np.bool_(True)])),
    Case("layer normalization", "", one("LayerNormalization", X, weights=[np.ones(4, np.float32)])),
    Case(
        "layer normalization with its mean",
        "outputs",
        one("LayerNormalization", X, weights=[np.ones(4, np.float32)], more=("mean",)),
    ),
    Case("pooling with places", "outputs", one("MaxPool", IMAGE, kernel_shape=[2, 2], more=("places",))),
    Case("axes stored", "", computed_axes("Identity")),
    Case("axes computed", "constant-input", computed_axes("Add")),
    Case("axes an input", "constant-input", one("ReduceSum", X, (I64, [1]))),
    Case("unsqueeze an input's axis", "constant-input", one("Unsqueeze", X, (I64, [1]))),
    Case("unsqueeze", "", one("Unsqueeze", X, weights=[np.array([0])])),
    Case("shape an INT32 input", "", computed_shape(I32)),
    Case("shape a float input", "shape-input", computed_shape(F32)),
    Case("upsample by a float input", "shape-input", one("Upsample", IMAGE, (F32, [4]), opset=9)),
    Case("eight axes", "", one("Relu", (F32, [1] * 8))),
    Case("nine axes", "rank", one("Relu", (F32, [1] * 9))),
    Case("operator set 6, no broadcasting", "", one("Relu", X, opset=6)),
    Case("operator set 6, broadcasting", "old-opset", one("Add", X, (F32, [4]), opset=6)),
    Case("a far operator set", "", one("Relu", X, opset=99)),
    Case("an input that nothing makes", "structure", build([then("Relu", "nowhere")], {"x": X}, {"after": F32})),
    Case("an output that nothing makes", "structure", build([then("Relu", "x")], {"x": X}, {"nowhere": F32})),
    Case(
        "two makers",
        "structure",
        build([then("Relu", "x"), then("Abs", "x")], {"x": X}, {"after": F32}),
    ),
    Case(
        "a cycle",
        "structure",
        build(
            [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Abs", ["a"], ["b"])], {"x": X}, {"b": F32}
        ),
    ),
    Case(
        "out of order",
        "",
        build([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])], {"x": X}, {"y": F32}),
    ),
    Case("product that fits", "", one("MatMul", X, weights=[np.ones((4, 3), np.float32)])),
    Case("product that does not fit", "structure", one("MatMul", X, weights=[np.ones((5, 3), np.float32)])),
    Case("sum that does not fit", "structure", one("Add", X, weights=[np.ones(3, np.float32)])),
    Case("channels that do not fit", "structure", one("Conv", IMAGE, weights=[np.ones((4, 3, 3, 3), np.float32)])),
    Case("FP16", "", identity(F16)),
    Case("BF16", "", identity(TensorProto.BFLOAT16)),
    Case("FP8", "", identity(TensorProto.FLOAT8E4M3FN)),
    Case("the other FP8", "type", identity(TensorProto.FLOAT8E5M2)),
    Case("double", "", identity(TensorProto.DOUBLE)),
    Case("text", "type", identity(TensorProto.STRING)),
    Case("complex", "type", identity(TensorProto.COMPLEX64)),
    Case("16-bit integers", "type", identity(TensorProto.INT16)),
    Case("unsigned 32-bit integers", "type", identity(TensorProto.UINT32)),
    Case("cast to INT8", "", one("Cast", X, to=I8, out=I8)),
    Case("cast to INT16", "type", one("Cast", X, to=TensorProto.INT16, out=TensorProto.INT16)),
    Case("weight of 16-bit integers", "type", one("Cast", weights=[np.ones(2, np.int16)], to=F32)),
    Case("matrix product of integers", "operator-type", one("MatMul", IDS, (I64, [4, 2]), out=I64)),
    Case("grid sample in FP16", "", one("GridSample", (F16, [1, 4, 8, 8]), (F16, [1, 4, 4, 2]), out=F16)),
    Case("grid sample at FP16 places", "mixed-types", one("GridSample", IMAGE, (F16, [1, 4, 4, 2]))),
    Case("grid sample of integers", "operator-type", one("GridSample", (I32, [1, 4, 8, 8]), FIELD, out=I32)),
    Case("UINT8 pictures, cast", "", one("Cast", (U8, [1, 3, 8, 8]), to=F32)),
    Case("UINT8 pictures, transposed", "uint8", one("Transpose", (U8, [1, 3, 8, 8]), out=U8, perm=[0, 2, 3, 1])),
    Case("one type", "", one("Add", (F16, [2]), weights=[np.ones(2, np.float16)], out=F16)),
    Case("FP32 and FP16", "mixed-types", one("Add", (F32, [2]), weights=[np.ones(2, np.float16)])),
    Case("FP16 input, FP32 weight", "mixed-types", one("MatMul", (F16, [2, 4]), weights=[np.ones((4, 4), np.float32)])),
    Case("FP32 and double", "", one("Add", (F32, [2]), weights=[np.ones(2, np.float64)])),
    Case("INT32 and INT64", "mixed-types", one("Add", (I32, [2]), (I64, [2]), out=I64)),
    Case("FP32 to the power of FP16", "", one("Pow", (F32, [2]), weights=[np.float16(2)])),
    Case("FP32 scale in FP16 normalization", "mixed-types", one("LayerNormalization", (F16, [2, 4]), (F32, [4]))),
    Case(
        "condition with branches of two types",
        "mixed-types",
        one("Where", (TensorProto.BOOL, [2]), (F32, [2]), weights=[np.ones(2, np.float16)]),
    ),
    Case("symmetric int8", "", pair()),
    Case("no zero point", "", pair(zero=None)),
    Case("int8, zero point 3", "zero-point", pair(zero=np.int8(3))),
    Case("uint8, zero point 128", "zero-point", pair(zero=np.uint8(128))),
    Case("uint8, zero point 0", "", pair(zero=np.uint8(0))),
    Case(
        "four scales, one zero point",
        "zero-point",
        pair(np.full(4, 0.1, np.float32), ZERO),
    ),
    Case("scale 0", "scale", pair(np.float32(0))),
    Case("scale below 0", "scale", pair(np.float32(-0.1))),
    Case("scale no number", "scale", pair(np.float32(np.nan))),
    Case("one scale of many is 0", "scale", linear(scale=np.array([0.1] * 31 + [0], np.float32))),
    Case("scales of the last axis", "", pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), axis=2)),
    Case("negative axis", "", pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), axis=-1)),
    Case("scales of another axis", "scale-axis", pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), axis=1)),
    Case("an axis that is not there", "scale-axis", pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), axis=3)),
    Case(
        "scales of an axis without size",
        "scale-axis",
        pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), shape=("a", "b", 8), axis=1),
    ),
    Case("weight by output channels", "", linear()),
    Case("weight by input channels", "", linear(axis=0)),
    Case("too few scales", "scale-axis", linear(scale=np.full(16, 0.1, np.float32))),
    Case("int4 weight", "", one("DequantizeLinear", weights=[four_bits(3), SCALE])),
    Case("int4 input", "", one("DequantizeLinear", (INT4, [4]), weights=[SCALE])),
    Case("odd int4, zero point", "odd-int4", one("DequantizeLinear", weights=[four_bits(3), SCALE, NO_BITS])),
    Case("even int4, zero point", "", one("DequantizeLinear", weights=[four_bits(4), SCALE, NO_BITS])),
    Case("scales of blocks", "", one("DequantizeLinear", weights=[WEIGHT8, BLOCKS], axis=0)),
    Case("scales of broken blocks", "scale-blocks", one("DequantizeLinear", weights=[WEIGHT8, BLOCKS[:3]], axis=0)),
    Case("int8 bias", "", linear(bias=np.ones(32, np.int8))),
    Case("int32 bias", "int32-bias", linear(bias=np.ones(32, np.int32))),
    Case("uint8 weight", "stored-type", linear(weight=np.ones((32, 32), np.uint8))),
    Case("quantize to uint8", "stored-type", one("QuantizeLinear", X, weights=[SCALE], out=U8, output_dtype=U8)),
    Case("quantize to int8", "", one("QuantizeLinear", X, weights=[SCALE], out=I8, output_dtype=I8)),
    Case("weights in a file", "", external(True)),
    Case("weights in a file that is not there", "external-data", external(False)),
]  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> Callable[[Path], list[str]]:
    """Return ``parse(file)``: what the real parser has against a model; empty if it takes it."""
    if missing_trt():
        pytest.skip(missing_trt())
    trt = load_trt()

    def parse(file: Path) -> list[str]:
        with logged(trt) as (logger, _):
            network = trt.module.Builder(logger).create_network(
                1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            )
            onnx_parser = trt.module.OnnxParser(network, logger)
            taken = onnx_parser.parse_from_file(str(file))
            errors = [onnx_parser.get_error(i).desc() for i in range(onnx_parser.num_errors)]
        return [] if taken else errors or ["no reason given"]

    return parse


def written(case: Case, folder: Path) -> Path:
    model = case.model if isinstance(case.model, onnx.ModelProto) else case.model(folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_errors_are_those_of_the_rule(case: Case, tmp_path: Path) -> None:
    found = check_model(written(case, tmp_path), "tensorrt")
    assert {finding.rule for finding in found.of("error")} == ({case.errors} if case.errors else set())
    assert found.ok == (not case.errors)
    for finding in found.findings:
        assert finding.node
        assert finding.reason
        assert finding.fix.endswith((".", ")"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_real_parser_agrees(case: Case, tmp_path: Path, parser: Callable[[Path], list[str]]) -> None:
    refusals = parser(written(case, tmp_path))
    assert bool(refusals) == bool(case.errors), refusals


def test_every_rule_is_shown_taken_and_refused() -> None:
    refused = {case.errors for case in CASES} - {""}
    assert refused == {
        "operator", "attribute", "outputs", "constant-input", "shape-input", "rank", "old-opset", "structure", "type",
        "operator-type", "uint8", "mixed-types", "zero-point", "scale", "scale-axis", "scale-blocks", "int32-bias",
        "stored-type", "odd-int4", "external-data",
    }  # fmt: skip


QUANTIZED_OUTPUT = [
    helper.make_node("QuantizeLinear", ["product", "s", "z"], ["out_q"], name="quantize_out"),
    helper.make_node("DequantizeLinear", ["out_q", "s", "z"], ["out_d"], name="dequantize_out"),
]


POOLED = [
    helper.make_node("Constant", [], ["first"], value=numpy_helper.from_array(np.int64(0))),
    helper.make_node("Gather", ["product", "first"], ["token"], axis=1),
    helper.make_node("QuantizeLinear", ["token", "s", "z"], ["token_q"]),
    helper.make_node("DequantizeLinear", ["token_q", "s", "z"], ["token_d"]),
    helper.make_node("MatMul", ["token_d", "dw"], ["pooled"], name="pooled"),
]


def pair_of_weight(kind: type) -> onnx.ModelProto:
    """A weight that is stored in a type and read in float, times an activation."""
    nodes, last = [], "w"
    if kind is np.float32:
        nodes, last = [helper.make_node("QuantizeLinear", ["w", "s"], ["q"], name="round", output_dtype=I8)], "q"
    nodes += [helper.make_node("DequantizeLinear", [last, "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"])]
    return build(nodes, {"x": (F32, [2, 4])}, {"y": F32}, {"w": np.ones((4, 4), kind), "s": SCALE})


class Doubt(NamedTuple):
    """Two graphs that the parser takes: the first one has a warning or note of the rule, the second has none."""

    rule: str
    severity: str
    doubtful: onnx.ModelProto
    good: onnx.ModelProto


DOUBTS = [
    Doubt("foreign-operator", "warning", one("Gelu", X, **MICROSOFT), one("Gelu", X)),
    Doubt("unsigned-activation", "warning", pair(zero=np.uint8(0)), pair()),
    Doubt("activation-axis", "warning", pair(np.full(8, 0.1, np.float32), np.zeros(8, np.int8), axis=2), pair()),
    Doubt("weight-axis", "warning", linear(axis=0), linear(axis=1)),
    Doubt("half-range", "warning", one("Add", (F16, [2]), weights=[np.array([1, np.inf], np.float16)], out=F16),
          one("Add", (F16, [2]), weights=[np.ones(2, np.float16)], out=F16)),
    Doubt("old-opset", "warning", one("Relu", X, opset=6), one("Relu", X, opset=7)),
    Doubt("thin-product", "warning", linear(width=8), linear(width=16)),
    Doubt("thin-product", "warning", linear(depth=8), linear(depth=16)),
    Doubt("matrix-vector", "warning", linear(after=POOLED), linear(rows=("batch",))),
    Doubt("float-weight", "info", pair_of_weight(np.float32), pair_of_weight(np.int8)),
    Doubt("matrix-vector", "warning", linear(rows=(1, 1)), linear(rows=(1, 2))),
    Doubt("int8-attention", "warning", attention(24, quantize="qkvp"), attention(32, quantize="qkvp")),
    Doubt("int8-attention", "warning", attention(32, 513, quantize="qkvp"), attention(32, 512, quantize="qkvp")),
    Doubt("int8-attention", "warning", attention(32, quantize="qk"), attention(32)),
    Doubt("float-attention", "warning", attention(12), attention(16)),
    Doubt("float-attention", "warning", attention(264), attention(256)),
    Doubt("float-attention", "warning", attention(8), attention(8, kind=F32)),
    Doubt("channels", "warning", linear(width=40), linear(width=48)),
    Doubt("channels", "warning", conv(24, 16), conv(32, 16)),
    Doubt("channels", "warning", conv(3, 24), conv(3, 16)),
    Doubt("channels", "warning", conv(12, 16, np.float16), conv(8, 16, np.float16)),
    Doubt("float32-sea", "warning", linear(), attention(32, quantize="qkvp")),
    Doubt("quantized-output", "warning", linear(after=[*QUANTIZED_OUTPUT, then("Relu", "out_d")]),
          linear(after=[then("Relu", "product")])),
    Doubt("residual", "warning", conv(16, 16, residual="x"), conv(16, 16, residual="d")),
    Doubt("residual", "info", linear(rows=("batch", 5), after=[then("Add", "product", "x")]),
          linear(after=[then("Add", "product", "d")])),
]  # fmt: skip


@pytest.mark.parametrize("doubt", DOUBTS, ids=lambda doubt: doubt.rule)
def test_warnings_are_where_they_belong_and_the_parser_takes_both(
    doubt: Doubt, tmp_path: Path, parser: Callable[[Path], list[str]]
) -> None:
    for model, wanted in ((doubt.doubtful, {doubt.severity}), (doubt.good, set())):
        found = check_model(model, "tensorrt")
        assert {finding.severity for finding in found.findings if finding.rule == doubt.rule} == wanted
        assert found.ok
        assert parser(written(Case("", "", model), tmp_path)) == []


def test_findings_are_sorted_counted_and_recorded() -> None:
    found = check_model(linear(width=8, bias=np.ones(8, np.int32)), "tensorrt")
    severities = [finding.severity for finding in found.findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert found.counts() == {name: severities.count(name) for name in ("error", "warning", "info")}
    record = found.record()
    assert record["ok"] is False
    assert record["findings"][0]["rule"] == "int32-bias"
    assert record["findings"][0]["node"] == "bias"
    assert "int32" in record["findings"][0]["reason"].lower()


def test_what_is_no_model_and_a_target_without_rules_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelError, match="not an ONNX model"):
        check_model(tmp_path / "model.onnx", "tensorrt")
    with pytest.raises(UsageError, match="no check for the target 'openvino'"):
        check_model(one("Relu", X), "openvino")
    assert set(RULES) == {"tensorrt"}


def test_the_model_is_not_changed() -> None:
    model = linear()
    before = model.SerializeToString()
    check_model(model, "tensorrt")
    assert model.SerializeToString() == before


def test_a_deep_graph_is_no_problem() -> None:
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(3000)]
    quantize = [helper.make_node("QuantizeLinear", ["x3000", "s"], ["y"], output_dtype=I8)]
    model = build([*reversed(nodes), *quantize], {"x0": (F32, [2])}, {"y": I8}, {"s": np.full(2, 0.1, np.float32)})
    assert {finding.rule for finding in check_model(model, "tensorrt").findings} == {"activation-axis"}


def test_the_page_lists_every_rule_with_its_severities() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE))
    wanted: dict[str, set[str]] = {case.errors: {"error"} for case in CASES if case.errors}
    for doubt in DOUBTS:
        wanted.setdefault(doubt.rule, set()).add(doubt.severity)
    assert {rule: set(severities.split(", ")) for rule, severities in rows.items()} == wanted
