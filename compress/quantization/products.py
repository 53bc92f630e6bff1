"""What could be quantized in a graph: linear layers, embedding tables, attention products, residual sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.errors import UsageError
from compress.quantization.graph import Graph

if TYPE_CHECKING:
    import onnx

Family = Literal["linear", "table", "attention", "residual"]
"""A product with a constant weight, a lookup in a constant table, a product of two activations, the sum of what a
sub-layer gives and what went around it."""
_ONE_ROW = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})
"""Operators that leave one row of a sequence, besides a look-up of one position."""
_ROWWISE = frozenset(
    {"Add", "Dropout", "Gelu", "Gemm", "Identity", "LayerNormalization", "MatMul", "Mul", "Relu", "Tanh"}
)
"""Operators that give as many rows as their first input has."""


@dataclass(frozen=True)
class Product:
    """One node that computes on weights, or on two activations.

    Attributes:
        node: its name.
        operator: MatMul, Gemm, Gather or Add.
        family: what it is.
        input: the activation that it reads, of two the first; empty for a table.
        weight: the constant; empty for an attention product and a residual sum.
        depth: K, values that one output sums over; for a table its rows; 0 if unknown.
        width: N, outputs of one token; for a table its columns; 0 if unknown.
        other: the second of two activations.
        one_row: whether a linear layer multiplies one row of each example: what was pooled, or a first token.
    """

    node: str
    operator: str
    family: Family
    input: str = ""
    weight: str = ""
    depth: int = 0
    width: int = 0
    other: str = ""
    one_row: bool = False

    @property
    def activations(self) -> tuple[str, ...]:
        """The activations that it reads: none, one or two."""
        return tuple(filter(None, (self.input, self.other)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one token; 0 for all but linear layers."""
        return self.depth * self.width if self.family == "linear" else 0


def find_products(graph: Graph) -> list[Product]:
    """Return the products of a graph in its order; those whose shape no rule could judge are left out."""
    found = (_product(graph, node) for node in graph.nodes)
    return [product for product in found if product is not None]


def find_residuals(graph: Graph) -> list[Product]:
    """Return the sums of a linear layer's outputs, its bias included, and another activation, in the graph's order."""
    sums = [node for node in graph.nodes if node.op_type == "Add"]
    sums = [node for node in sums if all(graph.shape_of(name) is None for name in node.input)]
    made = [node for node in sums if any(_is_linear_output(graph, name) for name in node.input)]
    return [Product(node.name, "Add", "residual", node.input[0], other=node.input[1]) for node in made]


def _is_linear_output(graph: Graph, name: str) -> bool:
    """Say whether a tensor is what a product with a constant weight gives, with or without its bias."""
    node = graph.producers.get(name)
    if node is not None and node.op_type == "Add":
        rows = [graph.shape_of(row) is not None for row in node.input]
        node = graph.producers.get(node.input[rows.index(False)]) if sum(rows) == 1 else None
    return node is not None and node.op_type in ("MatMul", "Gemm") and graph.shape_of(node.input[1]) is not None


def _reads_one_row(graph: Graph, name: str) -> bool:
    """Say whether a tensor has one row for each example: walk back to what picked or pooled it."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in _ROWWISE:
        name = next((it for it in node.input if graph.shape_of(it) is None), "")
        node = graph.producers.get(name)
    if node is None or node.op_type in _ONE_ROW:
        return node is not None
    index = graph.shape_of(node.input[1]) if node.op_type == "Gather" else None
    return index is not None and math.prod(index) == 1 and attribute(node, "axis", 0) == 1


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
        return Product(node.name, "MatMul", "attention", first, other=second) if node.op_type == "MatMul" else None
    shape = graph.shape_of(second) if graph.is_float(second) else None
    if shape is None or len(shape) != 2 or (node.op_type == "Gemm" and not _is_linear(node)):
        return None
    depth, width = shape[::-1] if attribute(node, "transB", 0) else shape
    one_row = _reads_one_row(graph, first)
    return Product(node.name, node.op_type, "linear", first, second, depth, width, one_row=one_row)


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
