"""Which products of an ONNX graph have 2:4 sparse weights, as TensorRT reads them: along the axis that is summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compress.models.sparsity import is_sparse24

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class SparseWeights:
    """Names of the products with a constant weight, in the order of the graph."""

    sparse: tuple[str, ...]
    dense: tuple[str, ...]


def sparse_weights(model: onnx.ModelProto) -> SparseWeights:
    """Look at the weight of every MatMul and Gemm; quantized weights are read through their DequantizeLinear.

    Args:
        model: float32, FP16 or QDQ; its weights inside.
    """
    weights = _Weights(model)
    found: dict[bool, list[str]] = {True: [], False: []}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = weights.read(node.input[1])
        if weight is not None and weight.ndim == 2:
            found[is_sparse24(weight if _is_transposed(node) else weight.T)].append(node.name)
    return SparseWeights(tuple(found[True]), tuple(found[False]))


class _Weights:
    """Constant matrices of a graph by the name of the tensor that a product reads."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}

    def read(self, name: str) -> np.ndarray | None:
        """Return a matrix with zeros where the weight is zero; None if it is not constant."""
        from onnx import numpy_helper

        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]))
        maker = self._makers.get(name)
        if maker is None:
            return None
        source = self.read(maker.input[0]) if maker.input else None
        if source is None or source.ndim != 2:
            return None
        if maker.op_type in ("Cast", "Identity"):
            return source
        if maker.op_type == "Transpose":
            return source.T
        return source if maker.op_type == "DequantizeLinear" and self._is_symmetric(maker) else None

    def _is_symmetric(self, node: onnx.NodeProto) -> bool:
        """Say whether the integer 0 stands for the number 0; TensorRT takes nothing else."""
        zero = self.read(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return zero is None or not zero.any()


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Say whether the weight is (outputs, inputs) rather than (inputs, outputs)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
