"""Recognise multi-head attention in an exported graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compress.quantization.graph import Graph
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class Attention:
    """The nodes of ``softmax(Q K^T scale + mask) V`` between three linear layers and the merged heads.

    Attributes:
        query, key, value: the products with constant weights.
        biases: the Add behind each of them.
        splits: the Reshape to (batch, sequence, heads, head size) of each of them.
        scores, context: the products of two activations: queries with keys, probabilities with values.
        mask: the Add of the mask to the scores; None without one.
        merge: the Reshape back to (batch, sequence, heads * head size).
        head_size: width of one head.
        scale: what scores are multiplied by.
        inner: all nodes from the products to ``merge``, both included.
    """

    query: onnx.NodeProto
    key: onnx.NodeProto
    value: onnx.NodeProto
    biases: tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]
    splits: tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]
    scores: onnx.NodeProto
    context: onnx.NodeProto
    mask: onnx.NodeProto | None
    merge: onnx.NodeProto
    head_size: int
    scale: float
    inner: tuple[onnx.NodeProto, ...]

    @property
    def products(self) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]:
        return self.query, self.key, self.value

    @property
    def usual_scale(self) -> bool:
        """Whether scores are scaled by one over the root of the head size."""
        return math.isclose(self.scale, self.head_size**-0.5, rel_tol=1e-4)


def find_attention(graph: Graph) -> list[Attention]:
    """Return the attention blocks of a graph, in order; what does not match exactly is left out."""
    found = (_match(graph, node) for node in graph.nodes if node.op_type == "Softmax")
    return [attention for attention in found if attention is not None]


def _match(graph: Graph, softmax: onnx.NodeProto) -> Attention | None:
    scores = graph.producers.get(softmax.input[0])
    mask = None
    if scores is not None and scores.op_type == "Add":
        mask, scores = scores, _first_producer(graph, scores, ("Mul", "MatMul"))
    scaling, scale = None, 1.0
    if scores is not None and scores.op_type == "Mul":
        factors = [graph.constant(name) for name in scores.input]
        constants = [float(factor) for factor in factors if factor is not None and factor.size == 1]
        scaling, scores = scores, _first_producer(graph, scores, ("MatMul",))
        scale = constants[0] if len(constants) == 1 else math.nan
    context = graph.only_consumer(softmax.output[0])
    if scores is None or scores.op_type != "MatMul" or context is None or context.op_type != "MatMul":
        return None
    if context.input[0] != softmax.output[0]:
        return None
    sides = [_split(graph, name) for name in (scores.input[0], scores.input[1], context.input[1])]
    turned = graph.only_consumer(context.output[0])
    merge = graph.only_consumer(turned.output[0]) if turned is not None and turned.op_type == "Transpose" else None
    if merge is None or turned is None or merge.op_type != "Reshape" or math.isnan(scale):
        return None
    query, key, value = sides
    if query is None or key is None or value is None:
        return None
    orders = [
        *(attribute(side.transpose, "perm", None) for side in (query, key, value)),
        attribute(turned, "perm", None),
    ]
    size = _head_size(graph, query.reshape)
    if orders != [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3], [0, 2, 1, 3]] or size is None:
        return None
    inner = [node for side in (query, key, value) for node in (side.product, side.bias, side.reshape, side.transpose)]
    inner += [node for node in (scores, scaling, mask, softmax, context, turned, merge) if node is not None]
    return Attention(
        query.product,
        key.product,
        value.product,
        (query.bias, key.bias, value.bias),
        (query.reshape, key.reshape, value.reshape),
        scores,
        context,
        mask,
        merge,
        size,
        scale,
        tuple(inner),
    )


def _first_producer(graph: Graph, node: onnx.NodeProto, kinds: tuple[str, ...]) -> onnx.NodeProto | None:
    made = (graph.producers.get(name) for name in node.input)
    return next((it for it in made if it is not None and it.op_type in kinds), None)


@dataclass(frozen=True, eq=False)
class _Side:
    product: onnx.NodeProto
    bias: onnx.NodeProto
    reshape: onnx.NodeProto
    transpose: onnx.NodeProto


def _split(graph: Graph, name: str) -> _Side | None:
    """Walk from an operand of an attention product back to its linear layer; each step has one reader only."""
    transpose = graph.producers.get(name)
    if transpose is None or transpose.op_type != "Transpose" or graph.only_consumer(name) is None:
        return None
    reshape = graph.producers.get(transpose.input[0])
    if reshape is None or reshape.op_type != "Reshape" or graph.only_consumer(reshape.output[0]) is None:
        return None
    bias = graph.producers.get(reshape.input[0])
    if bias is None or bias.op_type != "Add" or graph.only_consumer(bias.output[0]) is None:
        return None
    product = _first_producer(graph, bias, ("MatMul",))
    if product is None or graph.shape_of(product.input[1]) is None or graph.bias_of(product) is None:
        return None
    return _Side(product, bias, reshape, transpose)


def _head_size(graph: Graph, reshape: onnx.NodeProto) -> int | None:
    """Return the last size that a Reshape asks for, from a constant or a Concat of sizes."""
    shape: np.ndarray | None = graph.constant(reshape.input[1])
    maker = graph.producers.get(reshape.input[1])
    if shape is None and maker is not None and maker.op_type == "Concat":
        shape = graph.constant(maker.input[-1])
    return None if shape is None or not shape.size or shape[-1] <= 0 else int(shape[-1])
