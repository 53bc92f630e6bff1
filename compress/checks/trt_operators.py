"""Operators, attributes and inputs that TensorRT's parser refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_STANDARD = ("", "ai.onnx")
_INTEGER = {
    "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QAttention", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Gemm", "And", "Or", "Xor", "Equal", "Less")


def operators(view: View, table: Table) -> Iterator[Finding]:
    """Every operator needs an importer, which is found by the name of the operator alone."""
    for node in view.nodes:
        name = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        if node.op_type in view.functions or node.op_type in table.operators:
            continue
        if node.op_type in table.plugins:
            reason = f"{name} needs a plugin that TensorRT-RTX does not have"
        else:
            reason = f"there is no importer for {name}"
        yield Finding("operator", "error", view.label(node), reason, _instead(node))


def foreign_operators(view: View, table: Table) -> Iterator[Finding]:
    """An operator of another domain is read as the standard one of its name, or is taken by TensorRT-RTX alone."""
    for node in view.nodes:
        if node.domain in _STANDARD or node.op_type in view.functions or node.op_type not in table.operators:
            continue
        name = f"{node.domain}.{node.op_type}"
        if node.op_type in table.onnxruntime_operators:
            reason, fix = f"TensorRT-RTX takes {name}; it is no ONNX operator", "Use standard operators to be portable."
        else:
            reason = f"{name} is read as the standard operator {node.op_type}, which may compute something else"
            fix = "Compare the engine's outputs with the model's, or use the standard operator."
        yield Finding("foreign-operator", "warning", view.label(node), reason, fix)


def attributes(view: View, table: Table) -> Iterator[Finding]:
    """Attributes with values that no layer of TensorRT has."""
    for rule in table.attributes:
        for node in view.of(*rule.operators):
            value = _plain(attribute(node, rule.name, None))
            found = value if isinstance(value, list) else [value]
            if value is None or all(it in rule.values for it in found):
                continue
            wanted = f"only {', '.join(map(str, rule.values))}" if rule.values else "a model without it"
            yield Finding(
                "attribute",
                "error",
                view.label(node),
                f"{node.op_type} has {rule.name} = {_short(value)}; TensorRT takes {wanted}",
                "Export the model without this option, or compute it with other operators.",
            )


def special_attributes(view: View, table: Table) -> Iterator[Finding]:
    """Combinations of attributes, types and inputs that are refused."""
    for node in view.nodes:
        reason = _refused(view, node)
        if reason:
            yield Finding(
                "attribute", "error", view.label(node), reason, "Compute it with other operators, or export without it."
            )


def outputs(view: View, table: Table) -> Iterator[Finding]:
    """Outputs that only training, or a decoder's cache, needs."""
    for rule in table.outputs:
        for node in view.of(*rule.operators):
            extra = [name for name in node.output[rule.most :] if name]
            if extra:
                yield Finding(
                    "outputs",
                    "error",
                    view.label(node),
                    f"{node.op_type} has {len(extra)} more output{'s' if len(extra) > 1 else ''} than TensorRT makes",
                    f"Remove {', '.join(extra)}; export for inference, without a cache.",
                )


def constant_inputs(view: View, table: Table) -> Iterator[Finding]:
    """Axes, depths and the like must be known when the model is parsed."""
    for rule in table.constants:
        for node in view.of(*rule.operators):
            for position in rule.inputs:
                name = node.input[position] if position < len(node.input) else ""
                if name and not view.known(name):
                    yield Finding(
                        "constant-input",
                        "error",
                        view.label(node),
                        f"input {position} of {node.op_type} ({name}) is computed at run time",
                        "Make it an initializer.",
                    )


def ranks(view: View, table: Table) -> Iterator[Finding]:
    """Numbers of axes that a layer does not take."""
    for rule in table.ranks:
        for node in view.of(*rule.operators):
            shape = view.shapes.get(node.input[rule.input])
            if shape is not None and len(shape) not in rule.ranks:
                yield Finding(
                    "rank",
                    "error",
                    view.label(node),
                    f"input {rule.input} of {node.op_type} has {len(shape)} axes, not "
                    f"{' or '.join(map(str, rule.ranks))}",
                    "Reshape around it.",
                )


def old_broadcasting(view: View, table: Table) -> Iterator[Finding]:
    """Before operator set 7, broadcasting was an attribute, which the parser does not read."""
    if view.opset >= 7:
        return
    for node in view.of(*_BROADCASTING):
        if len(node.input) > 1:
            yield Finding(
                "old-opset",
                "error",
                view.label(node),
                f"{node.op_type} of operator set {view.opset} broadcasts by rules that TensorRT does not know",
                "Convert the model to operator set 13 or later (onnx.version_converter).",
            )


def _refused(view: View, node: onnx.NodeProto) -> str:
    """Return why an operator is refused for what its attributes and inputs are together; empty if it is not."""
    kinds = [view.kind(name) for name in node.input]
    shapes = [view.shapes.get(name) for name in node.input]
    if node.op_type == "Mod" and not attribute(node, "fmod", 0) and kinds[0] in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8"):
        return f"Mod of {kinds[0]} without fmod"
    if node.op_type == "Attention" and node.domain in _STANDARD:
        return _refused_attention(view, node)
    if node.op_type == "Range" and kinds[0] == "FLOAT" and not all(map(view.known, node.input)):
        return "Range of FLOAT with bounds that are computed at run time"
    if node.op_type == "MatMul" and None not in shapes and len(shapes[0] or ()) == 1 and len(shapes[1] or ()) > 2:
        return "MatMul of a vector with a stack of matrices"
    if node.op_type == "Resize" and len(node.input) == 3 and node.input[2]:
        axes, rank = attribute(node, "axes", None), len(shapes[0] or ())
        if axes is not None and list(axes) != list(range(rank)):
            return "Resize with scales for some axes only"
    if node.op_type == "Einsum" and (odd := set(attribute(node, "equation", b"").decode()) - set(_EINSUM)):
        return f"Einsum with {' '.join(sorted(odd))} in its equation; letters are lower-case"
    return ""


_EINSUM = "abcdefghijklmnopqrstuvwxyz->., "


def _refused_attention(view: View, node: onnx.NodeProto) -> str:
    if len(node.input) > 3 and node.input[3] and attribute(node, "is_causal", 0):
        return "Attention with a mask and is_causal at once"
    if any(node.input[4:6]):
        return "Attention with a cache (past_key, past_value)"
    shapes = [view.shapes.get(name) for name in node.input[1:3]]
    if None not in shapes and shapes[0] != shapes[1]:
        return "Attention whose keys and values differ in shape"
    return ""


def _instead(node: onnx.NodeProto) -> str:
    if node.op_type in _INTEGER:
        return "Quantize with QuantizeLinear and DequantizeLinear (symmetric int8) instead of integer operators."
    if node.domain not in _STANDARD:
        return "Export without ONNX Runtime's fusions, or replace it by standard operators."
    return "Replace it by other operators, or write a plugin."


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_plain(it) for it in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
