"""Read ONNX messages: the graphs inside a graph, functions written out, types and shapes inferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | str | None, ...]
"""Sizes; a name, or None without one, for what is known at run time only."""
_LARGE = 1024
"""Values; a larger constant is no shape, axis or scale, and type inference runs without its bytes."""


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the functions that it defines written out where they are called."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


def graphs(graph: onnx.GraphProto, constants: Mapping[str, Any] | None = None) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its nodes; of an If with a constant condition only the branch taken."""
    from onnx import numpy_helper

    known = {**(constants or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    known |= {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    yield graph
    for node in graph.node:
        condition = known.get(node.input[0]) if node.op_type == "If" else None
        left_out = None
        if condition is not None:
            left_out = "else_branch" if bool(np.all(numpy_helper.to_array(condition))) else "then_branch"
        for attribute in node.attribute:
            if attribute.name != left_out:
                for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    yield from graphs(inner, known)


def infer(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, Shape]]:
    """Return element types and shapes, inferred as far as the standard operators go."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    for graph in graphs(light.graph):
        for tensor in graph.initializer:
            if np.prod(tensor.dims, dtype=float) > _LARGE:
                for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(field)
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # what it cannot infer is left to the rules that ask for it
        light = model
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for graph in graphs(light.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            _note(value.name, value.type, types, shapes)
        for tensor in graph.initializer:
            types[tensor.name], shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    return types, shapes


def _note(name: str, kind: Any, types: dict[str, int], shapes: dict[str, Shape]) -> None:
    """Write down the type and shape of a tensor; sequences, optionals and maps have none."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
        return
    types[name] = kind.tensor_type.elem_type
    if kind.tensor_type.HasField("shape"):
        shapes[name] = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param or None
            for size in kind.tensor_type.shape.dim
        )
