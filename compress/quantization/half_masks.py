"""Which constants of a graph are a mask's "minus infinity", and which values carry them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_ENDS = {"Softmax": 0, "LogSoftmax": 0, "Attention": 3}
"""Operators that turn a large negative score into 0, and the input that they read scores from."""
_PASSES = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Div",
        "Expand",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Operators through which a mask goes on its way to the scores."""


class Masks(NamedTuple):
    """The masks of a graph.

    Attributes:
        fills: names of the constants that hold fills; what a ConstantOfShape makes is one too.
        carriers: names of the computed values that may hold a fill, or a fill plus a score.
        magnitude: of the smallest fill; infinite where there is none.
    """

    fills: frozenset[str]
    carriers: frozenset[str]
    magnitude: float


def find_masks(graph: onnx.GraphProto, largest: float) -> Masks:
    """Find the constants beyond ``largest`` that only ever reach the scores of a softmax.

    A number there means "not this token", so any number that the softmax turns into 0 will do. Anywhere else a
    constant is a number to compute with. In an array only negative ones are fills; a single number may be
    positive, since some masks are subtracted.
    """
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [
        node.input[_ENDS[node.op_type]]
        for node in graph.node
        if node.op_type in _ENDS and len(node.input) > _ENDS[node.op_type]
    ]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            node = makers.get(name)
            waiting += node.input if node is not None and node.op_type in _PASSES else []
    sizes = _fills(graph, seen, makers, largest)
    return Masks(frozenset(sizes), _carriers(graph, seen, sizes), min(sizes.values(), default=float("inf")))


def _fills(
    graph: onnx.GraphProto, seen: set[str], makers: dict[str, onnx.NodeProto], largest: float
) -> dict[str, float]:
    """Return name -> magnitude of the smallest fill of every constant that has one."""
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name in seen}
    for name in seen:
        node = makers.get(name)
        value = attribute(node, "value", None) if node is not None and node.op_type == "ConstantOfShape" else None
        if value is not None:
            tensors[name] = value
    found = {}
    for name, tensor in tensors.items():
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).ravel()
            beyond = values[np.abs(values) > largest]
            if beyond.size and (values.size == 1 or (beyond < 0).all()):
                found[name] = float(np.abs(beyond).min())
    return found


def _carriers(graph: onnx.GraphProto, seen: set[str], fills: dict[str, float]) -> frozenset[str]:
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    carriers: set[str] = set()
    waiting = list(fills)
    while waiting:
        for node in readers[waiting.pop()]:
            new = [name for name in node.output if name in seen and name not in carriers]
            carriers.update(new)
            waiting += new
    produced = {name for node in graph.node for name in node.output}
    return frozenset(carriers | (set(fills) & produced))
