"""The products of a graph that may be quantized: which operands come from integers, and how large they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Slice", "Split")
"""Operators that only move values: a scale in front of them holds behind them."""
_BETWEEN = (*_MOVES, "Cast", "Mul", "Div", "Add", "Where", "QuantizeLinear", "DequantizeLinear")
"""What stands between two products of an attention block besides its Softmax."""


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a product.

    Attributes:
        name: the tensor that the product reads.
        source: the tensor in front of DequantizeLinear, QuantizeLinear and moves.
        quantized: whether a DequantizeLinear makes it.
        constant: whether it is a weight.
    """

    name: str
    source: str
    quantized: bool
    constant: bool


@dataclass(frozen=True, eq=False)
class Product:
    """A MatMul, Gemm or Conv.

    Attributes:
        node: the node.
        family: ``linear`` and ``conv`` have a weight; ``attention`` multiplies two activations.
        left, right: the operands.
        rows, depth, width: M, K and N; for a convolution its input and output channels are depth and width. None
            if unknown.
    """

    node: onnx.NodeProto
    family: Literal["linear", "conv", "attention"]
    left: Operand
    right: Operand
    rows: int | None
    depth: int | None
    width: int | None

    @property
    def quantized(self) -> bool:
        """Whether both operands come from integers: the product then runs in INT8."""
        return self.left.quantized and self.right.quantized


def products(view: View) -> Iterator[Product]:
    """Yield the products of a model in its order."""
    for node in view.of("MatMul", "Gemm", "Conv"):
        left, right = operand(view, node.input[0]), operand(view, node.input[1])
        if node.op_type == "Conv":
            group = attribute(node, "group", 1)
            channels = view.size(right.name, 1)
            depth = channels * group if channels is not None else None
            yield Product(node, "conv", left, right, None, depth, view.size(right.name, 0))
            continue
        turned_left, turned_right = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
        rows, depth = (-1, -2) if turned_left else (-2, -1)
        width = -2 if turned_right else -1
        yield Product(
            node,
            "linear" if left.constant or right.constant else "attention",
            left,
            right,
            view.size(left.name, rows),
            view.size(left.name, depth) or view.size(right.name, -1 if turned_right else -2),
            view.size(right.name, width),
        )


def operand(view: View, name: str) -> Operand:
    """Follow a tensor back to what was quantized."""
    source, quantized = name, False
    while (node := view.producers.get(source)) is not None:
        if node.op_type == "DequantizeLinear":
            quantized = True
        elif node.op_type not in (*_MOVES, "QuantizeLinear") or (node.op_type == "QuantizeLinear" and not quantized):
            break
        source = node.input[0]
    return Operand(name, source, quantized, source in view.initializers)


def behind(view: View, name: str, operators: tuple[str, ...]) -> list[onnx.NodeProto]:
    """Return the nodes that read a tensor, looking through operators of some types."""
    found: list[onnx.NodeProto] = []
    todo, seen = [name], {name}
    while todo:
        for node in view.consumers.get(todo.pop(), []):
            if node.op_type not in operators:
                found.append(node)
                continue
            fresh = [output for output in node.output if output not in seen]
            todo += fresh
            seen.update(fresh)
    return found


def before(view: View, name: str, operators: tuple[str, ...] = _BETWEEN) -> list[onnx.NodeProto]:
    """Return the nodes that a tensor is made of, looking through operators of some types."""
    found: list[onnx.NodeProto] = []
    todo, seen = [name], {name}
    while todo:
        node = view.producers.get(todo.pop())
        if node is None:
            continue
        if node.op_type not in operators:
            found.append(node)
            continue
        fresh = [source for source in node.input if source not in seen]
        todo += fresh
        seen.update(fresh)
    return found
