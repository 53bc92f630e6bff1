"""Prepare a graph for a cast: refuse what cannot be cast, one kind of constant, an operator set with 16-bit forms."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from compress.errors import ModelError, RecipeError
from compress.quantization.half_format import Dtype
from compress.quantization.half_rules import QUANTIZERS

if TYPE_CHECKING:
    import onnx

_QDQ_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear have 16-bit forms."""
_BF16_OPSET = 22
"""The first in which convolutions and poolings have a BF16 form."""
_CPU_INTEGERS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def prepare(model: onnx.ModelProto, dtype: Dtype) -> onnx.ModelProto:
    """Return a copy that can be cast: nodes named, tensor constants as initializers, a sufficient operator set.

    Raises:
        ModelError: the graph has control flow, or integer operators of ONNX Runtime's.
    """
    import onnx

    refuse_cpu_integers(model.graph)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    _constants_to_initializers(out.graph)
    quantized = any(node.op_type in QUANTIZERS for node in out.graph.node)
    wanted = _BF16_OPSET if dtype == "bfloat16" else _QDQ_OPSET if quantized else 0
    return _raised(out, wanted)


def refuse_cpu_integers(graph: onnx.GraphProto) -> None:
    """Raise ModelError for operators that compute on integers in ONNX Runtime only: they have no 16-bit form."""
    found = {node.op_type for node in graph.node if node.domain not in ("", "ai.onnx") or node.op_type in _CPU_INTEGERS}
    if found:
        raise ModelError(
            "This graph computes with operators of ONNX Runtime that have no 16-bit form, and TensorRT takes none of "
            "them.",
            value=", ".join(sorted(found)),
            fix="Cast the float32 graph, or one with QuantizeLinear/DequantizeLinear pairs (`quantize` for TensorRT).",
        )


def float_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of all float32 values of a model, weights included.

    Raises:
        ModelError: type inference fails, or leaves a value without a type.
    """
    import onnx

    source = onnx.ModelProto()
    source.CopyFrom(model)
    del source.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(source, check_type=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            "The types of the ONNX graph are inconsistent.",
            value=str(error).splitlines()[0],
            fix="Export the model again.",
        ) from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    unknown = [name for node in graph.node for name in node.output if name and name not in types]
    if unknown:
        raise ModelError(
            "The type of a value in the ONNX graph cannot be inferred.",
            value=unknown[0],
            fix="Cast a graph of standard ONNX operators, before any fusion.",
        )
    return {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}


def check_selection(graph: onnx.GraphProto, keep_float32: Sequence[str]) -> None:
    """Raise RecipeError for an entry that is no operator type and matches no node of the graph."""
    for entry in keep_float32:
        if not any(node.op_type == entry or fnmatchcase(node.name, entry) for node in graph.node):
            raise RecipeError(
                "`keep_float32` names no operator type and no node of the graph.",
                value=entry,
                fix=f"Node names look like: {', '.join(node.name for node in graph.node[:3])}.",
            )


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn tensor constants into weights, so that there is one kind of constant; give every node a name."""
    kept = []
    for i, node in enumerate(graph.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(
                "A graph with control flow cannot be cast to 16 bits.",
                value=f"{node.name or i}: {node.op_type}",
                fix="Export the model without If, Loop and Scan.",
            )
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            node.name = node.name or f"{node.op_type}_{i}"
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _raised(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """Return the model in a newer operator set, if it is older than the one wanted."""
    import onnx

    entry = next((it for it in model.opset_import if it.domain in ("", "ai.onnx")), None)
    if entry is None or entry.version >= wanted:
        return model
    raised = onnx.version_converter.convert_version(model, wanted)
    raised.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(raised.opset_import))
    return raised
