"""What could be quantized in a graph: linear layers, embedding tables, attention products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.errors import UsageError
from compress.quantization.graph import Graph

if TYPE_CHECKING:
    import onnx

Family = Literal["linear", "table", "attention"]
"""A product with a constant weight, a lookup in a constant table, a product of two activations."""


@dataclass(frozen=True)
class Product:
    """One node that computes on weights, or on two activations.

    Attributes:
        node: its name.
        operator: MatMul, Gemm or Gather.
        family: what it is.
        input: the activation that a linear layer reads; empty for a table.
        weight: the constant; empty for an attention product.
        depth: K, values that one output sums over; for a table its rows; 0 if unknown.
        width: N, outputs of one token; for a table its columns; 0 if unknown.
    """

    node: str
    operator: str
    family: Family
    input: str = ""
    weight: str = ""
    depth: int = 0
    width: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one token; 0 for tables and attention products."""
        return self.depth * self.width if self.family == "linear" else 0


def find_products(graph: Graph) -> list[Product]:
    """Return the products of a graph in its order; those whose shape no rule could judge are left out."""
    found = (_product(graph, node) for node in graph.nodes)
    return [product for product in found if product is not None]


def _product(graph: Graph, node: onnx.NodeProto) -> Product | None:
    if node.op_type == "Gather" and graph.is_float(node.input[0]):
        shape = graph.shape_of(node.input[0])
        if shape is None or len(shape) != 2 or attribute(node, "axis", 0) != 0:
            return None
        return Product(node.name, "Gather", "table", "", node.input[0], *shape)
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    first, second = node.input[:2]
    if graph.shape_of(first) is None and graph.shape_of(second) is None:
        return Product(node.name, node.op_type, "attention") if node.op_type == "MatMul" else None
    shape = graph.shape_of(second) if graph.is_float(second) else None
    if shape is None or len(shape) != 2 or (node.op_type == "Gemm" and not _is_linear(node)):
        return None
    depth, width = shape[::-1] if attribute(node, "transB", 0) else shape
    return Product(node.name, node.op_type, "linear", first, second, depth, width)


def _is_linear(node: onnx.NodeProto) -> bool:
    """Say whether a Gemm is ``x W + b`` and nothing else."""
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return plain and not attribute(node, "transA", 0)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or a default where it has none."""
    from onnx import helper

    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def weight_of(graph: Graph, product: Product) -> np.ndarray:
    """Return the weight of a linear layer as (K, N) float32, a table as (rows, columns).

    Raises:
        UsageError: the product has no constant weight.
    """
    values = graph.constant(product.weight)
    if values is None:
        raise UsageError(
            "This product has no constant weight.",
            value=product.node,
            fix="Only linear layers and tables have one.",
        )
    node = graph.node(product.node)
    return values.T if product.operator == "Gemm" and attribute(node, "transB", 0) else values
