"""What an FP16 or BF16 graph computes where its kernels are real, as a float32 graph that a CPU runs.

ONNX Runtime 1.31 has no BF16 kernels for CPUs. For FP16 it puts a cast to float32 around every node and then drops
those between two of them, so that nothing is rounded and nothing overflows on the way. Here every value that is 16
bits wide is rounded and kept in float32; products add up in float32, as tensor cores do. A compiler that fuses
operators rounds less often, so a GPU is at least as exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

NOTE = "computed in float32 with every value rounded to BF16: ONNX Runtime has no BF16 kernels for CPUs"


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds where an FP16 or BF16 graph does; the model stays as it was."""
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    half = _half_values(out)
    for tensor in out.graph.initializer:
        if tensor.data_type in _half_types():
            tensor.CopyFrom(_widened(tensor))
    nodes: list[onnx.NodeProto] = []
    for node in out.graph.node:
        _retype(node)
        made = [name for name in node.output if name in half]
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = f"{name}/exact"
        nodes.append(node)
        for name in made:
            nodes += _rounding(name, half[name])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:], out.graph.value_info[:]
    out.graph.node.extend(copies)
    return out


def _half_types() -> tuple[int, int]:
    import onnx

    return onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def _half_values(model: onnx.ModelProto) -> dict[str, int]:
    """Return name -> type of the 16-bit values that nodes compute."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {it.name: it.type.tensor_type.elem_type for it in (*graph.value_info, *graph.output)}
    return {name: kind for name, kind in types.items() if kind in _half_types()}


def _retype(node: onnx.NodeProto) -> None:
    """Let the operators that an attribute types give float32 instead of 16 bits."""
    import onnx

    for attribute in node.attribute:
        if (node.op_type, attribute.name) in (("Cast", "to"), ("DequantizeLinear", "output_dtype")):
            attribute.i = onnx.TensorProto.FLOAT if attribute.i in _half_types() else attribute.i
        if attribute.HasField("t") and attribute.t.data_type in _half_types():
            attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    import onnx

    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounding(name: str, kind: int) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    exact, narrow = f"{name}/exact", f"{name}/narrow"
    return [
        helper.make_node("Cast", [exact], [narrow], name=f"{narrow}/round", to=kind),
        helper.make_node("Cast", [narrow], [name], name=f"{name}/round", to=TensorProto.FLOAT),
    ]
