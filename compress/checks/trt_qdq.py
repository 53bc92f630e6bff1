"""QuantizeLinear and DequantizeLinear as TensorRT reads them: symmetric, one axis, positive scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_SYMMETRIC = "Quantize symmetrically: `quantize: {target: tensorrt}`, or symmetric options elsewhere."
_INT_STORED = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


def zero_points(view: View, table: Table) -> Iterator[Finding]:
    """Zero points are zero, one for each scale."""
    for node in view.of(*_PAIR):
        name = node.input[2] if len(node.input) > 2 else ""
        values = view.constant(name) if name else None
        if values is None or view.declared(name) not in table.types:
            continue
        if np.any(values.astype(np.float32) != 0):
            shown = ", ".join(map(str, np.unique(values.astype(np.float32)).astype(int)[:3]))
            yield Finding("zero-point", "error", view.label(node), f"the zero point is {shown}, not 0", _SYMMETRIC)
        count = view.count(node.input[1])
        if count is not None and count != values.size:
            yield Finding(
                "zero-point",
                "error",
                view.label(node),
                f"{count} scales have {values.size} zero points",
                "Give each scale a zero point, or leave zero points out (int8 weights).",
            )


def scales(view: View, table: Table) -> Iterator[Finding]:
    """Scales are positive numbers."""
    for node in view.of(*_PAIR):
        values = view.constant(node.input[1])
        if values is not None and not bool(np.all(values.astype(np.float64) > 0)):
            worst = np.ravel(values)[~(np.ravel(values).astype(np.float64) > 0)][0]
            yield Finding(
                "scale",
                "error",
                view.label(node),
                f"a scale is {worst}; scales are positive",
                "Calibrate again; give a channel of zeros any positive scale, and keep tiny scales in FP32.",
            )


def scale_shapes(view: View, table: Table) -> Iterator[Finding]:
    """Several scales lie along an axis that exists, has that size and is known."""
    for node in view.of(*_PAIR):
        scale, values = view.shapes.get(node.input[1]), view.shapes.get(node.input[0])
        if scale is None or values is None or len(scale) != 1 or scale[0] == 1:
            continue
        axis = attribute(node, "axis", 1)
        if not -len(values) <= axis < len(values):
            reason, fix = f"axis {axis} of a tensor with {len(values)} axes", "Set `axis` to the output channels."
        elif not isinstance(values[axis], int):
            reason = f"one scale for each of the positions of axis {axis}, whose size is only known at run time"
            fix = "Quantize activations with one scale."
        elif isinstance(scale[0], int) and scale[0] != values[axis]:
            reason = f"{scale[0]} scales for axis {axis}, which has {values[axis]} channels"
            fix = "Set `axis` to the axis of the channels that the scales belong to."
        else:
            continue
        yield Finding("scale-axis", "error", view.label(node), reason, fix)


def blocks(view: View, table: Table) -> Iterator[Finding]:
    """Scales of blocks divide one axis into whole blocks."""
    for node in view.of(*_PAIR):
        scale, values = view.shapes.get(node.input[1]), view.shapes.get(node.input[0])
        if scale is None or values is None or len(scale) < 2 or len(scale) != len(values):
            continue
        pairs = [(s, v) for s, v in zip(scale, values, strict=True) if isinstance(s, int) and isinstance(v, int)]
        blocked = [axis for axis, (s, v) in enumerate(zip(scale, values, strict=True)) if s != v]
        whole = all(s and v % s == 0 for s, v in pairs) and len(blocked) < 2
        if not whole or (blocked and blocked[0] < len(values) - 2):
            yield Finding(
                "scale-blocks",
                "error",
                view.label(node),
                f"scales of shape {list(scale)} do not divide {list(values)} into whole blocks of a late axis",
                "Choose a block size that divides the last axis, or the one before it.",
            )


def stored_types(view: View, table: Table) -> Iterator[Finding]:
    """DequantizeLinear reads int8 and smaller; a bias in int32 is none, and uint8 weights are refused."""
    for node in view.of("DequantizeLinear"):
        kind = view.kind(node.input[0])
        if kind in (None, *_INT_STORED) or kind not in table.types:
            continue
        bias = kind == "INT32"
        yield Finding(
            "int32-bias" if bias else "stored-type",
            "error",
            view.label(node),
            f"reads {kind}{', as quantizers store a bias' if bias else ''}; TensorRT dequantizes int8 and smaller only",
            "Leave biases in float (`QuantizeBias: False` in ONNX Runtime)." if bias else _SYMMETRIC,
        )


def quantized_types(view: View, table: Table) -> Iterator[Finding]:
    """What QuantizeLinear may make, and an output_dtype that agrees with the zero point."""
    for node in view.of("QuantizeLinear"):
        wanted = attribute(node, "output_dtype", 0)
        zero = view.declared(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kind = view.type_name(wanted) if wanted else None
        if kind is not None and (kind not in _INT_STORED or zero not in (None, kind)):
            yield Finding(
                "stored-type",
                "error",
                view.label(node),
                f"makes {kind} by output_dtype; TensorRT makes INT8",
                _SYMMETRIC,
            )


def odd_halves(view: View, table: Table) -> Iterator[Finding]:
    """Two 4-bit numbers share a byte: with a zero point, the parser wants whole bytes."""
    for node in view.of(*_PAIR):
        zero = node.input[2] if len(node.input) > 2 else ""
        count = view.count(node.input[0])
        if view.kind(zero) in ("INT4", "FLOAT4E2M1") and count is not None and count % 2:
            reason = f"{count} numbers of 4 bits with a zero point: an odd number"
            yield Finding("odd-int4", "error", view.label(node), reason, "Leave the zero point out.")


def unsigned_activations(view: View, table: Table) -> Iterator[Finding]:
    """UINT8 with zero point 0 is parsed, and computed as INT8: its upper half is cut off."""
    for node in view.of("QuantizeLinear"):
        zero = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None and np.any(zero):
            continue  # an error of its own
        if view.declared(node.output[0]) == "UINT8" and view.kind(node.output[0]) == "INT8":
            yield Finding(
                "unsigned-activation",
                "warning",
                view.label(node),
                "UINT8: TensorRT computes it as INT8, so that what is above 127 steps is cut off",
                _SYMMETRIC,
            )


def float_weights(view: View, table: Table) -> Iterator[Finding]:
    """A weight in float with a QuantizeLinear behind it is rounded when the engine is built."""
    for node in view.of("QuantizeLinear"):
        if node.input[0] in view.initializers and (view.count(node.input[0]) or 0) > 1:
            yield Finding(
                "float-weight",
                "info",
                view.label(node),
                f"rounds {node.input[0]} when the engine is built: the file holds it in {view.declared(node.input[0])}",
                "Store the weight as int8, behind DequantizeLinear alone, to make the file smaller.",
            )


def activation_axes(view: View, table: Table) -> Iterator[Finding]:
    """Several scales for an activation are parsed; no INT8 kernel of a product takes them."""
    for node in view.of("QuantizeLinear"):
        shape = view.shapes.get(node.input[1])
        weight = view.known(node.input[0])
        if not weight and shape is not None and len(shape) == 1 and shape[0] != 1:
            yield Finding(
                "activation-axis",
                "warning",
                view.label(node),
                f"{shape[0]} scales for an activation: INT8 products take one",
                "Quantize activations with one scale; smooth outliers instead.",
            )


def weight_axes(view: View, table: Table) -> Iterator[Finding]:
    """Scales along the axis that is summed over cannot be taken out of an INT8 product."""
    for node in view.of("MatMul", "Gemm", "Conv", "ConvTranspose"):
        found = _weight_dequantizer(view, node)
        shape = view.shapes.get(found.input[1]) if found is not None else None
        rank = len(view.shapes.get(node.input[1], ()))
        if found is None or shape is None or len(shape) != 1 or shape[0] == 1 or rank < 2:
            continue
        axis, wanted = attribute(found, "axis", 1) % rank, _output_axis(node, rank)
        if axis != wanted:
            yield Finding(
                "weight-axis",
                "warning",
                view.label(found),
                f"scales along axis {axis} of the weight of {view.label(node)}, whose outputs lie along axis {wanted}",
                f"Quantize this weight with axis {wanted}.",
            )


def _weight_dequantizer(view: View, node: onnx.NodeProto) -> onnx.NodeProto | None:
    made = view.producers.get(node.input[1])
    return made if made is not None and made.op_type == "DequantizeLinear" and view.known(made.input[0]) else None


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return rank - 2 if attribute(node, "transB", 0) else rank - 1
