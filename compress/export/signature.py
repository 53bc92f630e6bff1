"""What an ONNX file takes and gives, as the artifact's manifest records it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Graph, TensorSpec

if TYPE_CHECKING:
    import onnx

BLOCK_OPERATORS = frozenset({"GatherBlockQuantized", "MatMulNBits"})
"""ONNX Runtime's operators that read weights stored in blocks of few bits."""


def read_graph(onnx_file: Path, file: str = "model.onnx") -> Graph:
    """Return the signature of an ONNX file.

    Args:
        onnx_file: the file to read; weights in external files are not loaded.
        file: the file name that the manifest records (an engine has the signature of its ONNX file).
    """
    import onnx

    graph = onnx.load(onnx_file, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return Graph(
        file=file,
        inputs=tuple(tensor_spec(value) for value in graph.input if value.name not in weights),
        outputs=tuple(tensor_spec(value) for value in graph.output),
    )


def count_weights(onnx_file: Path) -> int:
    """Return the elements of all float and 8-bit initializers: the stored weights of an ONNX file."""
    import onnx

    kinds = onnx.TensorProto
    wanted = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8}
    graph = onnx.load(onnx_file, load_external_data=False).graph
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in wanted)


def traits_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return what was done to the precision of an ONNX model: ``bf16``, ``fp16``, ``int4``, ``int8``, as it shows."""
    import onnx

    graph = model.graph
    operators = {node.op_type for node in graph.node}
    found = {"int8": bool(operators & {"DequantizeLinear", "MatMulInteger", "QLinearMatMul", "ConvInteger"})}
    bits = {_bits(node) for node in graph.node if node.op_type in BLOCK_OPERATORS}
    found["int8"] |= 8 in bits
    found["int4"] = 4 in bits
    stored = {tensor.data_type for tensor in graph.initializer}
    found["fp16"] = onnx.TensorProto.FLOAT16 in stored
    found["bf16"] = onnx.TensorProto.BFLOAT16 in stored
    return tuple(name for name in sorted(found) if found[name])


def _bits(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return name, numpy dtype name and shape of an ONNX value; a size that varies is its name, or ``?``."""
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    sizes = tensor.shape.dim
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in sizes)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def describe(task: Mapping[str, Any]) -> dict[str, str]:
    """Return what the ONNX file says of its task: ``task``, ``labels`` (JSON list), ``max_length``."""
    return {
        "task": str(task["name"]),
        "labels": json.dumps(task["labels"], ensure_ascii=False),
        "max_length": str(task["max_length"]),
    }
