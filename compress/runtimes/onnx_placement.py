"""What ONNX Runtime really runs: which products of an optimized graph multiply integers, and what is converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

INTEGER_WEIGHT = {
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "MatMulInteger": 1,
    "QAttention": 1,
    "QGemm": 3,
    "QLinearMatMul": 3,
}
"""Operators that multiply 8-bit integers -> the position of their weight."""
FLOAT_WEIGHT = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "FusedGemm": 1, "Attention": 1}
CONVERSIONS = frozenset({"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_INTEGER_CONVOLUTIONS = frozenset({"ConvInteger", "QLinearConv"})
_UNPACKS = frozenset({"Cast", "DequantizeLinear", "Mul", "Reshape", "Transpose"})
CPU = "CPUExecutionProvider"
_COMPUTES_IN_INT8 = 4
"""``accuracy_level`` of MatMulNBits at which activations are 8-bit too; below, weights are turned to float."""


def is_integer(node: Any) -> bool:
    """Say whether a node of an optimized graph multiplies integers."""
    if node.op_type == "MatMulNBits":
        return bool(_attribute(node, "accuracy_level") == _COMPUTES_IN_INT8)
    return node.op_type in INTEGER_WEIGHT or node.op_type in _INTEGER_CONVOLUTIONS


def describe(optimized: Path, source: Path) -> dict[str, Any]:
    """Count the operators of an optimized graph, and the products that run on integers.

    Args:
        optimized: the graph as ONNX Runtime runs it.
        source: the file that it was made from.

    Returns:
        ``operators``: type -> count; ``integer_operators``: how many multiply integers; ``integer_products`` and
        ``float_products``: linear layers (a weight that is constant); ``integer_mac_share``: share of their
        multiply-accumulates, each layer counted for one token, in integer kernels, absent where there is none;
        ``attention_products``: float products of two activations, those inside fused attention included;
        ``conversions``: nodes that only change the type of a tensor; ``folded``: 8-bit weights of the file that are
        float32 when it runs.
    """
    import onnx

    graph = onnx.load(optimized, load_external_data=False).graph
    nodes, shapes = list(_nodes(graph)), _shapes(graph)
    linear = [(is_integer(node), macs) for node in nodes if (macs := _macs(node, shapes)) is not None]
    integer, total = sum(macs for whole, macs in linear if whole), sum(macs for _, macs in linear)
    record: dict[str, Any] = {
        "operators": dict(sorted(Counter(node.op_type for node in nodes).items())),
        "integer_operators": sum(map(is_integer, nodes)),
        "integer_products": sum(whole for whole, _ in linear),
        "float_products": sum(not whole for whole, _ in linear),
        "attention_products": sum(_attention_products(node, shapes) for node in nodes),
        "conversions": sum(node.op_type in CONVERSIONS for node in nodes),
    }
    if total:
        record["integer_mac_share"] = integer / total
    stored = _stored_in_int8(onnx.load(source, load_external_data=False).graph)
    record["folded"] = max(0, stored - record["integer_operators"])
    return record


def nodes_by_provider(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the nodes of a profile by the provider that ran them.

    Args:
        events: what ONNX Runtime writes with ``enable_profiling``; each run of a node is one of category "Node".

    Returns:
        ``nodes``: provider -> nodes; ``cpu_node_share`` and ``cpu_time_share``: shares of nodes and of kernel time
        on the CPU provider; ``cpu_operators``: type -> count of those. Empty if nothing was run.
    """
    provider: dict[tuple[str, str], str] = {}
    spent: Counter[str] = Counter()
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments:
            provider[str(event["name"]), str(arguments.get("op_name", ""))] = arguments["provider"]
            spent[arguments["provider"]] += int(event["dur"])
    nodes = Counter(provider.values())
    if not nodes:
        return {}
    on_cpu = Counter(operator for (_, operator), name in provider.items() if name == CPU)
    return {
        "nodes": dict(sorted(nodes.items())),
        "cpu_node_share": nodes[CPU] / nodes.total(),
        "cpu_time_share": spent[CPU] / spent.total() if spent.total() else 0.0,
        "cpu_operators": dict(sorted(on_cpu.items())),
    }


def _macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Return K * N of a linear layer; None for any other node."""
    if node.op_type == "MatMulNBits":
        return int(_attribute(node, "K") or 0) * int(_attribute(node, "N") or 0)
    position = INTEGER_WEIGHT.get(node.op_type, FLOAT_WEIGHT.get(node.op_type))
    if position is None or position >= len(node.input):
        return None
    shape = shapes.get(node.input[position])
    return shape[0] * shape[1] if shape is not None and len(shape) == 2 else None


def _attention_products(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type in ("QAttention", "Attention", "MultiHeadAttention"):
        return 2
    return int(node.op_type in ("MatMul", "FusedMatMul") and not any(name in shapes for name in node.input))


def _stored_in_int8(graph: Any) -> int:
    """Count the products of a file that read a weight stored in 8 bits, directly or through what unpacks it."""
    import onnx

    small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type in small and len(tensor.dims) > 1}
    nodes = list(_nodes(graph))
    for node in nodes:
        if node.op_type in _UNPACKS and node.input[0] in stored:
            stored.update(node.output)
    products = {*INTEGER_WEIGHT, *FLOAT_WEIGHT, *_INTEGER_CONVOLUTIONS, "Conv"}
    return sum(node.op_type in products and any(name in stored for name in node.input) for node in nodes)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of constants, those included that a DequantizeLinear turns to float at every run."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in _nodes(graph):
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _attribute(node: Any, name: str) -> Any:
    return next((entry.i for entry in node.attribute if entry.name == name), None)
