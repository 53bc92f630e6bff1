"""Write a float32 graph with 8-bit products: standard QDQ pairs, or the integer operators of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from compress.errors import UsageError
from compress.quantization.attention import MASK, Attention, find_attention
from compress.quantization.graph import MICROSOFT, Graph
from compress.quantization.products import Product, attribute, weight_of
from compress.quantization.ranges import Range
from compress.quantization.rules import Placement

if TYPE_CHECKING:
    import onnx

Form = Literal["qdq", "integer"]
"""QuantizeLinear/DequantizeLinear pairs around float products, which every runtime reads; or ONNX Runtime's
MatMulIntegerToFloat and QAttention, which need no pattern to be recognised."""

Half = Literal["activation", "weight"]
"""One of the two inputs of a linear layer."""


@dataclass(frozen=True)
class Int8Format:
    """How integers are made.

    Attributes:
        form: of the graph.
        weight_bits: 7 where pairs of products are added in 16 bits, else 8.
        per_channel: one scale for each output column of a weight instead of one for all.
        activation: ``uint8`` with a zero point, or symmetric ``int8`` (QDQ with static ranges only).
        fused: join query, key, value and the attention products to one QAttention (integer form only).
    """

    form: Form = "qdq"
    weight_bits: Literal[7, 8] = 8
    per_channel: bool = True
    activation: Literal["uint8", "int8"] = "uint8"
    fused: bool = False


def write_int8(
    model: onnx.ModelProto,
    placements: Sequence[Placement],
    ranges: Mapping[str, Range] | None = None,
    how: Int8Format | None = None,
) -> onnx.ModelProto:
    """Return a model whose products placed in int8 run on integers.

    Weights are symmetric, rounded to nearest: ``scale = max|w| / (2^(bits-1) - 1)``, per output column or per
    tensor. Their zero points are written out: without them ONNX Runtime 1.31 adds a wrong one of its own under
    ``session.x64quantprecision``. Tables are stored with one scale per column. Products keep float outputs.

    In QDQ form attention products and residual sums read both of their inputs in 8 bits.

    Args:
        model: float32 graph; left as it was.
        placements: what ``place`` returned for it.
        ranges: activation tensor -> range; None = ranges are taken at run time (integer form only).
        how: the format; None = the defaults of ``Int8Format``.

    Raises:
        UsageError: dynamic ranges or fused attention in QDQ form, a product of two activations in the integer form, or
            a product without a range.
    """
    how = how or Int8Format()
    if how.form == "qdq" and (ranges is None or how.fused):
        raise UsageError(
            "QDQ pairs need ranges, and have no fused attention.",
            value=f"fused={how.fused}, {'no ranges' if ranges is None else f'{len(ranges)} ranges'}",
            fix="Use the integer form, or calibrate first.",
        )
    writer = _Writer(Graph(model), how, ranges)
    products = {p.node: p.product for p in placements if p.precision == "int8" and p.product is not None}
    if how.fused:
        for attention in find_attention(writer.graph):
            names = [node.name for node in attention.products]
            if all(name in products for name in names) and _can_fuse(writer.graph, attention):
                writer.attention(attention, [products.pop(name) for name in names])
    for product in products.values():
        writer.write(product)
    return writer.graph.finish()


def write_half(
    model: onnx.ModelProto,
    product: Product,
    half: Half,
    ranges: Mapping[str, Range] | None = None,
    how: Int8Format | None = None,
) -> onnx.ModelProto:
    """Return a model in which one input of a linear layer is rounded to 8 bits and back; it multiplies in float.

    Args:
        model: float32 graph; left as it was.
        product: a linear layer of it.
        half: the input to round.
        ranges, how: as ``write_int8`` takes them, and the same rounding.

    Raises:
        UsageError: the activation has no range.
    """
    from onnx import helper

    graph, how = Graph(model), how or Int8Format()
    node = graph.node(product.node)
    if half == "weight":
        integers, scale = quantize_weight(weight_of(graph, product), how.weight_bits, per_channel=how.per_channel)
        rounded = integers * scale
        stored = rounded.T if attribute(node, "transB", 0) else rounded
        node.input[1] = graph.add_constant(f"{product.node}.rounded", stored)
        return graph.finish()
    writer = _Writer(graph, how, ranges)
    new, back = writer._activation(node), f"{node.input[0]}.dequantized"
    if how.form == "integer":
        inputs = list(writer.made[node.input[0]])
        new.append(helper.make_node("DequantizeLinear", inputs, [back], name=f"{node.input[0]}/DequantizeLinear"))
    graph.put_before(node, new)
    node.input[0] = back
    return graph.finish()


def quantize_weight(weight: np.ndarray, bits: int, *, per_channel: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Round a weight to symmetric integers.

    Args:
        weight: (K, N) float32.
        bits: of the integers, the sign included.
        per_channel: one scale per column.

    Returns:
        (K, N) int8 and the scales, (N,) or scalar float32; a column of zeros has scale 1.
    """
    largest = 2 ** (bits - 1) - 1
    peak = np.abs(weight).max(axis=0 if per_channel else None)
    scale = np.where(peak > 0, peak / largest, 1.0).astype(np.float32)
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def _can_fuse(graph: Graph, attention: Attention) -> bool:
    """Say whether QAttention computes this block: one input, the usual scale, a mask of the graph's mask input."""
    same = len({node.input[0] for node in attention.products}) == 1
    widths = {graph.shape_of(node.input[1]) for node in attention.products}
    masked = attention.mask is None or MASK in graph.inputs
    return same and len(widths) == 1 and attention.usual_scale and masked


@dataclass
class _Writer:
    """Rewrites products of a graph one by one; tensors are quantized once, whoever reads them."""

    graph: Graph
    how: Int8Format
    ranges: Mapping[str, Range] | None
    made: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def write(self, product: Product) -> None:
        """Rewrite one product; call it in the graph's order, so that a shared tensor is made before it is read."""
        forms = {"linear": self.linear, "table": self.table, "attention": self.pair, "residual": self.pair}
        forms[product.family](product)

    def pair(self, product: Product) -> None:
        """Let a node read two activations that were rounded to 8 bits; it computes on them as a QDQ pattern."""
        if self.how.form != "qdq":
            raise UsageError(
                "The integer form has no operator for two activations.",
                value=product.node,
                fix="Use the form `qdq`, or leave the node in float32.",
            )
        node = self.graph.node(product.node)
        self.graph.put_before(node, [*self._activation(node, 0), *self._activation(node, 1)])
        for i in (0, 1):
            node.input[i] = f"{node.input[i]}.dequantized"

    def linear(self, product: Product) -> None:
        """Replace a MatMul or Gemm, and the Add of its bias where the integer operator takes it."""
        from onnx import helper

        graph, node = self.graph, self.graph.node(product.node)
        scale = self._weight(product.node, weight_of(graph, product))
        bias, old, out = node.input[2] if len(node.input) > 2 else "", [node], node.output[0]
        if self.how.form == "integer":
            added = None if bias else graph.bias_of(node)
            if added is not None:
                old, bias, out = [node, added[0]], added[1], added[0].output[0]
            graph.replace(old, [*self._activation(node), self._integer_product(node, scale, bias, out)])
            return
        quantize = self._activation(node)
        weight = f"{product.node}.weight"
        axis = {"axis": 1} if self.how.per_channel else {}
        dequantize = helper.make_node(
            "DequantizeLinear",
            [f"{weight}.int8", scale, f"{weight}.zero"],
            [weight],
            name=f"{weight}/DequantizeLinear",
            **axis,
        )
        inputs = [f"{node.input[0]}.dequantized", weight]
        if bias:
            inner = f"{out}.product"
            new = [
                helper.make_node("MatMul", inputs, [inner], name=node.name),
                helper.make_node("Add", [inner, bias], [out], name=f"{node.name}/Add"),
            ]
        else:
            new = [helper.make_node("MatMul", inputs, [out], name=node.name)]
        graph.replace(old, [*quantize, dequantize, *new])

    def table(self, product: Product) -> None:
        """Store a table in 8 bits and turn the looked-up rows to float32."""
        from onnx import helper

        node, graph = self.graph.node(product.node), self.graph
        integers, scale = quantize_weight(weight_of(graph, product), 8)
        name = graph.add_constant(f"{product.weight}.int8", integers)
        scales = graph.add_constant(f"{product.weight}.scale", scale)
        zeros = graph.add_constant(f"{product.weight}.zero", np.zeros(scale.shape, dtype=np.int8))
        rows, out = f"{node.output[0]}.int8", node.output[0]
        lookup = helper.make_node("Gather", [name, node.input[1]], [rows], name=node.name)
        turn = helper.make_node(
            "DequantizeLinear", [rows, scales, zeros], [out], name=f"{node.name}/DequantizeLinear", axis=-1
        )
        graph.replace([node], [lookup, turn])

    def attention(self, attention: Attention, products: Sequence[Product]) -> None:
        """Replace three linear layers and what follows, up to the merged heads, by one QAttention."""
        from onnx import helper

        graph, first = self.graph, attention.query
        name = f"{first.name}.fused"
        weight = np.concatenate([weight_of(graph, product) for product in products], axis=1)
        scale = self._weight(name, weight)
        biases = [graph.bias_of(node) for node in attention.products]
        rows = [graph.constant(it[1]) for it in biases if it is not None]
        bias = graph.add_constant(f"{name}.bias", np.concatenate([row for row in rows if row is not None]))
        new, mask = self._activation(first), ""
        if attention.mask is not None:
            mask = f"{MASK}.int32"
            if mask not in self.made:
                self.made[mask] = (mask, "", "")
                cast = helper.make_node("Cast", [MASK], [mask], name=f"{MASK}/Cast", to=6)
                new.append(cast)
        integers, input_scale, zero = self.made[first.input[0]]
        inputs = [integers, f"{name}.int8", bias, input_scale, scale, mask, zero, f"{name}.zero"]
        heads = weight.shape[1] // 3 // attention.head_size
        fused = helper.make_node(
            "QAttention", inputs, [attention.merge.output[0]], name=name, domain=MICROSOFT, num_heads=heads
        )
        self.graph.replace(list(attention.inner), [*new, fused])

    def _activation(self, node: onnx.NodeProto, position: int = 0) -> list[onnx.NodeProto]:
        """Return the nodes that quantize an input of a product, none if another product's already do."""
        from onnx import helper

        name = node.input[position]
        if name in self.made:
            return []
        integers, scale, zero = self.made[name] = (f"{name}.quantized", f"{name}.scale", f"{name}.zero_point")
        if self.ranges is None:
            kind = "DynamicQuantizeLinear"
            return [helper.make_node(kind, [name], [integers, scale, zero], name=f"{name}/{kind}")]
        if name not in self.ranges:
            raise UsageError(
                f"There is no range for the input of {node.name!r}.",
                value=name,
                fix="Calibrate the inputs of every node that is placed in int8.",
            )
        chosen = self.ranges[name]
        if self.how.activation == "uint8":
            self.graph.add_constant(scale, np.array(chosen.scale, dtype=np.float32))
            self.graph.add_constant(zero, np.array(chosen.zero_point, dtype=np.uint8))
        else:
            self.graph.add_constant(scale, np.array(chosen.symmetric_scale, dtype=np.float32))
            self.graph.add_constant(zero, np.array(0, dtype=np.int8))
        new = [helper.make_node("QuantizeLinear", [name, scale, zero], [integers], name=f"{name}/QuantizeLinear")]
        if self.how.form == "qdq":
            back = [integers, scale, zero]
            out = f"{name}.dequantized"
            new.append(helper.make_node("DequantizeLinear", back, [out], name=f"{name}/DequantizeLinear"))
        return new

    def _weight(self, name: str, weight: np.ndarray) -> str:
        """Store a weight's integers, scales and zero points; return the name of the scales."""
        integers, scale = quantize_weight(weight, self.how.weight_bits, per_channel=self.how.per_channel)
        stem = f"{name}.weight" if self.how.form == "qdq" else name
        self.graph.add_constant(f"{stem}.int8", integers)
        self.graph.add_constant(f"{stem}.zero", np.zeros(scale.shape, dtype=np.int8))
        return self.graph.add_constant(f"{stem}.scale", scale)

    def _integer_product(self, node: onnx.NodeProto, scale: str, bias: str, out: str) -> onnx.NodeProto:
        from onnx import helper

        integers, input_scale, zero = self.made[node.input[0]]
        inputs = [integers, f"{node.name}.int8", input_scale, scale, zero, f"{node.name}.zero", bias]
        return helper.make_node("MatMulIntegerToFloat", inputs, [out], name=node.name, domain=MICROSOFT)
