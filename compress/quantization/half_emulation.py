"""What a BF16 graph computes, as a float32 graph: for machines whose runtime has no BF16 kernels.

Every value that is BF16 is rounded to BF16 and kept in float32; products add up in float32, as tensor cores do. A
compiler that fuses operators rounds less often, so a GPU is at least as exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.artifact import Artifact, create_artifact

if TYPE_CHECKING:
    import onnx

NOTE = "computed in float32 with every value rounded to BF16: ONNX Runtime has no BF16 kernels for CPUs"


def emulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds where a BF16 graph does; the model stays as it was."""
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    half = _bf16_values(out)
    for tensor in out.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
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
            nodes += _rounding(name)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:], out.graph.value_info[:]
    out.graph.node.extend(copies)
    return out


def emulated_artifact(artifact: Artifact, folder: Path) -> Artifact:
    """Write a BF16 artifact's float32 emulation, with what belongs to it, into a folder; it is not for delivery."""
    import onnx

    from compress.export.companions import copy_companions

    (folder / "model.onnx").write_bytes(emulate_bf16(onnx.load(artifact.file())).SerializeToString())
    copy_companions(artifact.path, folder)
    manifest = artifact.manifest
    return create_artifact(
        folder, kind="onnx", task=manifest.task, graphs=manifest.graphs, made_by=manifest.made_by, seed=manifest.seed
    )


def _bf16_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of the BF16 values that nodes compute."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.value_info, *graph.output)
    return {it.name for it in values if it.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16}


def _retype(node: onnx.NodeProto) -> None:
    """Let the operators that an attribute types as BF16 give float32."""
    import onnx

    kinds = onnx.TensorProto
    for attribute in node.attribute:
        if (node.op_type, attribute.name) in (("Cast", "to"), ("DequantizeLinear", "output_dtype")):
            attribute.i = kinds.FLOAT if attribute.i == kinds.BFLOAT16 else attribute.i
        if attribute.HasField("t") and attribute.t.data_type == kinds.BFLOAT16:
            attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    import onnx

    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounding(name: str) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    exact, narrow = f"{name}/exact", f"{name}/narrow"
    return [
        helper.make_node("Cast", [exact], [narrow], name=f"{narrow}/Cast", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [narrow], [name], name=f"{name}/Cast", to=TensorProto.FLOAT),
    ]
