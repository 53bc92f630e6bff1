"""What is checked of a user's ONNX file before it is used: operators, external weights, finite numbers, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import ModelError
from compress.models.files import refuse_way_out

if TYPE_CHECKING:
    import onnx

MINIMUM_OPSET = 13
"""The first operator set with per-channel QuantizeLinear."""
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operators that ONNX Runtime brings with it."""
LARGEST_BYTES = 2**31 - 1
"""What one ONNX file can hold, and so what its external weights may add up to."""
MOST_ELEMENTS = 2**31
"""Elements of one inner value whose shape the graph fixes."""


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse an operator set that is too old, and operators that ONNX Runtime does not bring with it."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MINIMUM_OPSET:
        raise ModelError(
            f"The ONNX operator set is older than {MINIMUM_OPSET}.",
            value=opset,
            fix="Export the model again with a newer opset, or run onnx.version_converter.",
        )
    local = {function.domain for function in model.functions}
    for node in _all_nodes(model):
        if node.domain not in DOMAINS or node.domain in local:
            raise ModelError(
                "The ONNX file has an operator that only its author's runtime knows.",
                value=f"{node.domain}::{node.op_type}",
                fix="Export it with standard ONNX operators only (com.microsoft is fine).",
            )


def check_external(model: onnx.ModelProto, folder: Path) -> None:
    """Refuse weights outside the model's own folder: opening a model must not read other files."""
    files = set()
    for tensor, location in locations(model):
        try:
            refuse_way_out(folder / location, folder)
        except ModelError as error:
            raise ModelError(
                "The ONNX file keeps weights outside its folder.",
                value=f"{tensor}: {location}",
                fix="Save it with its weights inside, or in a file beside it.",
            ) from error
        files.add(folder / location)
    for file in files:
        if not file.is_file():
            raise ModelError(
                "The external weights of the ONNX file are not there.",
                value=file.name,
                fix="Put the file that holds them beside it.",
            )
    check_bytes(", ".join(sorted(file.name for file in files)[:3]), sum(file.stat().st_size for file in files))


def check_bytes(name: str, size: int) -> None:
    """Refuse more bytes than one ONNX file can hold."""
    if size > LARGEST_BYTES:
        raise ModelError(
            "The ONNX model is larger than one ONNX file can be.",
            value=f"{name}: {size:,} bytes, at most {LARGEST_BYTES:,}",
            fix="Take a smaller model.",
        )


def check_weights(model: onnx.ModelProto) -> None:
    """Refuse weights without the bytes for their shape, and those that are not finite.

    Infinity may mask: a tensor of nothing but 0, 1 and infinity, or a single number, may hold it.
    """
    import numpy as np
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    for tensor in _tensors(model):
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type not in floats:
            continue
        values = values.astype(np.float64) if tensor.data_type == onnx.TensorProto.BFLOAT16 else values
        masks = values.size == 1 or bool(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all())
        if np.isnan(values).any() or (np.isinf(values).any() and not masks):
            raise ModelError(
                "The model has weights that are not finite (NaN or infinity).",
                value=tensor.name or "a constant",
                fix="Take an earlier checkpoint; training diverged, or a cast to float16 overflowed.",
            )


def check_values(model: onnx.ModelProto) -> None:
    """Refuse a graph that makes a value of an absurd size whatever its input is."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
        if any(size < 0 for size in sizes) or math.prod(sizes) > MOST_ELEMENTS:
            raise ModelError(
                "The ONNX graph computes a value of an absurd size.",
                value=f"{value.name}: {' x '.join(map(str, sizes))}",
                fix="Export the model again.",
            )


def locations(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield (tensor, file relative to the model's folder) of all external weights."""
    for tensor in _tensors(model):
        yield from ((tensor.name, entry.value) for entry in tensor.external_data if entry.key == "location")


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of every graph inside it, and of the functions that the file defines."""
    yield from _nodes(model.graph)
    for function in model.functions:
        yield from _nodes(function)


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _inner(node):
            yield from _nodes(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every weight: of the graph, of every graph inside it, and of the attributes of all nodes."""
    yield from _initializers(model.graph)
    for node in _all_nodes(model):
        for inner in _inner(node):
            yield from _initializers(inner)
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
