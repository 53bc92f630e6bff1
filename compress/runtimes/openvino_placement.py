"""What OpenVINO really runs: which products of a compiled model multiply integers, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

CONVERSIONS = frozenset({"Convert", "FakeQuantize"})
"""Executed layers that only change the type of a tensor: quantizers that no other kernel took in, and casts."""
_HIDDEN = frozenset({"Const", "Input", "Output"})
_TRANSPARENT = frozenset({"Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose"})
"""Operators between a stored weight and its product: they dequantize it or turn it."""
_BYTES = frozenset({"i8", "u8"})
_FLOAT_WEIGHT = "its weight is float"
_FLOAT_INPUT = "its input is not quantized, so 8-bit weights are turned to float at every run"


def describe(compiled: Any, source: Any) -> dict[str, Any]:
    """Count the executed layers of a compiled model, and the products that run on integers.

    A linear layer counts as integer where the executed layer takes 8-bit integers for its input and for its weight;
    the name of the kernel is not asked, since it stands only once a dynamic shape has been run.

    Args:
        compiled: openvino.CompiledModel on the CPU plugin.
        source: openvino.Model that it was compiled from.

    Returns:
        ``operators``: "type precision" -> count; ``integer_products`` and ``float_products``: linear layers (a weight
        that is constant); ``integer_mac_share``: share of their multiply-accumulates, each layer counted for one
        token, in integer kernels, absent where there is none; ``attention_products``: products of two activations
        that no executed layer of their own multiplies on integers; inside fused attention the plugin does not tell
        the precision, so all count; ``conversions``: layers that only change the type of a tensor; ``folded``: 8-bit
        weights of the file that are float32 when it runs; ``float_reasons``: reason -> float products.
    """
    layers = list(_layers(compiled))
    linear = [(_is_integer(node), _macs(node), node) for kind, _, node in layers if kind == "FullyConnected"]
    integer, total = sum(macs for whole, macs, _ in linear if whole), sum(macs for _, macs, _ in linear)
    attention, stored = _source_products(source)
    integer_products = sum(whole for whole, _, _ in linear)
    record: dict[str, Any] = {
        "operators": dict(sorted(Counter(f"{kind} {precision}" for kind, precision, _ in layers).items())),
        "integer_products": integer_products,
        "float_products": len(linear) - integer_products,
        "attention_products": max(0, attention - sum(k == "MatMul" and _is_integer(node) for k, _, node in layers)),
        "conversions": sum(kind in CONVERSIONS for kind, _, _ in layers),
        "folded": max(0, stored - integer_products),
        "float_reasons": dict(Counter(_reason(node) for whole, _, node in linear if not whole)),
    }
    if total:
        record["integer_mac_share"] = integer / total
    return record


def _layers(compiled: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield type, precision and node of each executed layer."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind not in _HIDDEN:
            yield kind, facts["runtimePrecision"].astype(str), node


def _type(node: Any, position: int) -> str:
    return str(node.input(position).get_element_type().get_type_name())


def _is_integer(node: Any) -> bool:
    """Say whether both factors of an executed product are 8-bit integers."""
    return {_type(node, 0), _type(node, 1)} <= _BYTES


def _reason(node: Any) -> str:
    return _FLOAT_INPUT if _type(node, 1) in _BYTES else _FLOAT_WEIGHT


def _macs(node: Any) -> int:
    """Return K * N of an executed linear layer, from its weight."""
    shape = node.input(1).get_partial_shape()
    return int(shape.to_shape()[-1] * shape.to_shape()[-2]) if shape.is_static and len(shape) > 1 else 0


def _source_products(source: Any) -> tuple[int, int]:
    """Return how many products of two activations a model has, and how many weights of products it stores in 8 bits."""
    attention, stored = 0, 0
    for node in source.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            attention += 2
        if node.get_type_name() == "MatMul":
            weight = _constant(node.input_value(1).get_node())
            attention += weight is None
            stored += weight is not None and weight.get_element_type().get_type_name() in _BYTES
    return attention, stored


def _constant(node: Any) -> Any | None:
    """Return the constant that a value is made of by dequantizing or turning it; None for an activation."""
    while node.get_type_name() in _TRANSPARENT:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
