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
_SIZES = ("INT32", "INT64")
_INTEGER = {
    "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QAttention", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
_BROADCASTING = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "PRelu",
    "Max",
    "Min",
    "Sum",
    "Gemm",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Less",
)


def operators(view: View, table: Table) -> Iterator[Finding]:
    """Every operator needs an importer, which is found by the name of the operator alone."""
    for node in view.nodes:
        name = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        if node.op_type in table.operators:
            continue
        if node.op_type in table.plugins:
            reason = f"{name} needs a plugin that TensorRT-RTX does not have"
        else:
            reason = f"there is no importer for {name}"
        yield Finding("operator", "error", view.label(node), reason, _instead(node))


def foreign_operators(view: View, table: Table) -> Iterator[Finding]:
    """An operator of another domain is read as the standard one of its name, or is taken by TensorRT-RTX alone."""
    for node in view.nodes:
        if node.domain in _STANDARD or node.op_type not in table.operators:
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
                if name and not (view.stored(name) if rule.level == "stored" else view.known(name)):
                    yield Finding(
                        "constant-input",
                        "error",
                        view.label(node),
                        f"input {position} of {node.op_type} ({name}) is not constant"
                        if not view.known(name)
                        else f"input {position} of {node.op_type} ({name}) is computed; it must be stored",
                        "Make it an initializer.",
                    )


def shape_inputs(view: View, table: Table) -> Iterator[Finding]:
    """Shapes may be computed of shapes and of integer inputs, not of float inputs."""
    for rule in table.shape_inputs:
        for node in view.of(*rule.operators):
            for position in rule.inputs:
                name = node.input[position] if position < len(node.input) else ""
                source = next((it for it in view.inputs_behind(name) if view.kind(it) not in _SIZES), None)
                if source is not None:
                    yield Finding(
                        "shape-input",
                        "error",
                        view.label(node),
                        f"input {position} of {node.op_type} depends on the values of {source}, "
                        f"which is {view.kind(source)}",
                        "Compute sizes of shapes or of INT64 inputs only, or make them constant.",
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
