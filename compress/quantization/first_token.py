"""Compute only what a classifier reads of the last layer: its first token.

A classifier looks at one token of the last hidden state. Keys and values of the last layer need every token; its
queries, output projection and feed-forward network only that one. Leaving the others out is exact, and saves ten
twelfths of the last layer's multiply-accumulates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compress.quantization.attention import Attention, find_attention
from compress.quantization.graph import Graph
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_TOKENWISE = frozenset({"Gelu", "Relu", "Tanh", "Erf", "Sigmoid", "BiasGelu", "FastGelu"})
_PREFIX = "first_token"


def keep_first_token(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with the last layer computed for the first token only; None where nothing matches.

    The result has the same inputs and outputs and, but for the order of additions, the same values.

    Args:
        model: a classifier whose head gathers position 0 of the last hidden state (axis 1).
    """
    graph = Graph(model)
    attentions = {attention.merge.output[0]: attention for attention in find_attention(graph)}
    for node in graph.nodes:
        if not _takes_first(graph, node):
            continue
        walk = _Walk(graph, attentions)
        cuts = walk.cuts(node.input[0], node)
        if cuts is not None and walk.attention is not None:
            _rewrite(graph, walk.attention, cuts)
            return graph.finish()
    return None


def _takes_first(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 1:
        return False
    index = graph.constant(node.input[1])
    return index is not None and index.size == 1 and int(index.reshape(())) == 0


class _Walk:
    """From the gathered tensor back to the attention, over nodes that treat every token alike."""

    def __init__(self, graph: Graph, attentions: dict[str, Attention]) -> None:
        self.graph = graph
        self.attentions = attentions
        self.attention: Attention | None = None
        self.shrunk: set[str] = set()
        """Tensors that will hold the first token only."""

    def cuts(self, name: str, reader: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]] | None:
        """Return (node, input) where a tensor of all tokens must be cut to its first; None if nothing is saved.

        Args:
            name: the tensor of which ``reader`` takes the first token.
        """
        pending = [(reader, list(reader.input).index(name))]
        progress = True
        while progress:
            progress = False
            for edge in list(pending):
                inputs = self._enter(*edge)
                if inputs is not None:
                    pending.remove(edge)
                    pending += inputs
                    progress = True
        return pending if self.attention is not None else None

    def _enter(self, reader: onnx.NodeProto, position: int) -> list[tuple[onnx.NodeProto, int]] | None:
        """Go back over one tensor; None if its maker mixes tokens, or another reader needs all of them."""
        name = reader.input[position]
        if name in self.shrunk:
            return []
        node = self.graph.producers.get(name)
        others = [other for other in self.graph.consumers[name] if other is not reader]
        if node is None or name in self.graph.outputs:
            return None
        if any(output not in self.shrunk for other in others for output in other.output):
            return None
        if self.attention is None and name in self.attentions:
            self.attention = self.attentions[name]
            self.shrunk.add(name)
            return []
        inputs = _tokenwise_inputs(self.graph, node)
        if inputs is None:
            return None
        self.shrunk.add(name)
        return [(node, i) for i in inputs]


def _tokenwise_inputs(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """Return which inputs carry tokens; None if the operator mixes tokens or is not known not to."""
    shapes = [graph.shape_of(name) for name in node.input]
    if node.op_type in _TOKENWISE or (node.op_type == "LayerNormalization" and attribute(node, "axis", -1) == -1):
        return [0]
    if node.op_type == "MatMul" and shapes[0] is None and shapes[1] is not None:
        return [0]
    if node.op_type == "Add" and all(shape is None or len(shape) == 1 for shape in shapes):
        return [i for i in (0, 1) if shapes[i] is None]
    return None


def _rewrite(graph: Graph, attention: Attention, cuts: list[tuple[onnx.NodeProto, int]]) -> None:
    """Cut queries, mask and residual to the first token, and fix the shapes that named the sequence."""
    scores = {output for node in attention.inner for output in node.output}
    edges = [(node, i, 1) for node, i in [*cuts, (attention.query, 0)]]
    if attention.mask is not None:
        edges.append((attention.mask, next(i for i in (0, 1) if attention.mask.input[i] not in scores), 2))
    made: dict[tuple[str, int], str] = {}
    for node, i, axis in sorted(edges, key=lambda edge: graph.position(edge[0])):
        name = node.input[i]
        if (name, axis) not in made:
            made[name, axis] = _cut(graph, node, name, axis)
        node.input[i] = made[name, axis]
    _reshape(graph, attention.splits[0], [0, 1, -1, attention.head_size])
    _reshape(graph, attention.merge, [0, 1, -1])


def _cut(graph: Graph, node: onnx.NodeProto, name: str, axis: int) -> str:
    """Put a Slice of the first position of an axis in front of a node; return its output."""
    from onnx import helper

    bounds = [graph.add_constant(f"{_PREFIX}.{value}", np.array([value], dtype=np.int64)) for value in (0, 1, axis)]
    out = f"{name}.{_PREFIX}.{axis}"
    graph.put_before(node, [helper.make_node("Slice", [name, *bounds], [out], name=f"{_PREFIX}/{name}.{axis}")])
    return out


def _reshape(graph: Graph, node: onnx.NodeProto, shape: list[int]) -> None:
    """Give a Reshape constant sizes; 0 keeps the size of the input."""
    node.input[1] = graph.add_constant(f"{_PREFIX}.shape{len(shape)}", np.array(shape, dtype=np.int64))
    del node.attribute[:]
