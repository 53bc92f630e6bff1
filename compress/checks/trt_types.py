"""Types that TensorRT's parser refuses: of tensors, of an operator's inputs, and mixtures of floats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_CAST = "Cast it to a type that TensorRT has before the export: FP32, FP16, BF16, INT8, INT32, INT64 or BOOL."


def tensor_types(view: View, table: Table) -> Iterator[Finding]:
    """Inputs, outputs, weights and Cast have types that TensorRT has; so have all tensors in between."""
    named = [(name, "input") for name in view.inputs] + [(name, "output") for name in view.outputs]
    named += [(name, "weight") for name in view.initializers]
    for name, what in named:
        kind = view.declared(name)
        if kind is not None and kind not in table.types:
            yield Finding("type", "error", name, f"this {what} is {kind}, which TensorRT does not have", _CAST)
    for name in view.untensors:
        yield Finding("type", "error", name, "this is a sequence, an optional or a map, not a tensor", "Use tensors.")
    for node in view.of("Cast"):
        kind = view.type_name(attribute(node, "to", 0))
        if kind not in table.types:
            yield Finding("type", "error", view.label(node), f"casts to {kind}, which TensorRT does not have", _CAST)


def operator_types(view: View, table: Table) -> Iterator[Finding]:
    """Types that exist in TensorRT, but not for this operator."""
    for rule in table.refused_types:
        for node in view.of(*rule.operators):
            for position in rule.inputs:
                kind = view.kind(node.input[position]) if position < len(node.input) else None
                declared = view.declared(node.input[position]) if position < len(node.input) else None
                found = next((it for it in (kind, declared) if it in rule.types), None)
                if found is not None:
                    yield Finding(
                        "operator-type",
                        "error",
                        view.label(node),
                        f"input {position} of {node.op_type} is {found}, which TensorRT does not take there",
                        "Cast this input to FP32 (to INT32 for positions).",
                    )


def uint8(view: View, table: Table) -> Iterator[Finding]:
    """UINT8 may be an input or output; what computes on it has no layer."""
    for node in view.nodes:
        made = any(view.kind(name) == "UINT8" and name not in view.outputs for name in node.output)
        read = any(view.kind(name) == "UINT8" for name in node.input)
        if node.op_type == "DequantizeLinear" or node.op_type not in table.operators:
            continue
        if (read and node.op_type not in table.uint8_operators) or (made and node.op_type == "Cast"):
            yield Finding(
                "uint8",
                "error",
                view.label(node),
                f"{node.op_type} {'reads' if read else 'makes'} UINT8, which TensorRT only has for inputs and outputs",
                "Store weights and tables as int8; cast an input to FP32 or INT32 right behind it.",
            )


def mixed_types(view: View, table: Table) -> Iterator[Finding]:
    """TensorRT is strongly typed: inputs of one schema type have one type, also where ONNX's checker was not run."""
    for node in view.nodes:
        if node.op_type in table.mixing or node.op_type not in table.operators or _folded(view, node):
            continue
        groups = view.same_type_inputs(node)
        for rule in table.equal:
            if node.op_type in rule.operators:
                groups.append([node.input[i] for i in rule.inputs if view.kind(node.input[i]) in _FLOATS])
        for names in groups:
            kinds = {name: kind for name in names if (kind := view.kind(name))}
            if len(set(kinds.values())) > 1:
                each = ", ".join(f"{name} is {kind}" for name, kind in list(kinds.items())[:3])
                yield Finding(
                    "mixed-types",
                    "error",
                    view.label(node),
                    f"inputs of {node.op_type} differ in type: {each}",
                    "Put a Cast where precisions meet; the `cast` pass does.",
                )


def _folded(view: View, node: onnx.NodeProto) -> bool:
    """Say whether a Clip has constant bounds, which are read as numbers whatever their type."""
    return node.op_type == "Clip" and all(map(view.known, filter(None, node.input[1:])))
