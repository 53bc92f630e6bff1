"""Operators that TensorRT's parser refuses for what their attributes, types and inputs are together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from string import ascii_lowercase
from typing import TYPE_CHECKING

import numpy as np

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_HALVES = ("FLOAT16", "BFLOAT16")


def special(view: View, table: Table) -> Iterator[Finding]:
    """Combinations of attributes, types and inputs that are refused."""
    for node in view.nodes:
        reason = _refused(view, node)
        if reason:
            yield Finding(
                "attribute", "error", view.label(node), reason, "Compute it with other operators, or export without it."
            )


def _refused(view: View, node: onnx.NodeProto) -> str:
    """Return why an operator is refused for what its attributes and inputs are together; empty if it is not."""
    check = _SPECIAL.get(node.op_type)
    return check(view, node) if check is not None else ""


def _attention(view: View, node: onnx.NodeProto) -> str:
    mask = _input(node, 3)
    if mask and attribute(node, "is_causal", 0):
        return "Attention with a mask and is_causal at once"
    if _input(node, 4) or _input(node, 5):
        return "Attention with a cache (past_key, past_value)"
    ranks = {len(view.shapes[name]) for name in node.input[:3] if name in view.shapes}
    if len(ranks) > 1:
        return "Attention whose queries, keys and values differ in their number of axes"
    keys, values = (view.shapes.get(name) for name in node.input[1:3])
    if keys is not None and values is not None and keys != values:
        return "Attention whose keys and values differ in shape"
    if mask and view.kind(mask) in ("INT8", "INT32", "INT64", "UINT8"):
        return f"Attention with a mask of {view.kind(mask)}; it takes BOOL and floats"
    length, columns = view.size(node.input[1], -2), view.size(mask, -1)
    if mask and length is not None and columns not in (None, 1, length):
        return f"Attention with a mask for {columns} of {length} positions"
    return ""


def _clip(view: View, node: onnx.NodeProto) -> str:
    fixed = len(node.input) > 1 and all(name and view.stored(name) for name in node.input[1:])
    return "" if fixed or view.kind(node.input[0]) != "INT8" else "Clip of INT8 with computed bounds"


def _dropout(view: View, node: onnx.NodeProto) -> str:
    training = view.constant(_input(node, 2))
    return "Dropout in training mode" if training is not None and bool(np.any(training)) else ""


def _einsum(view: View, node: onnx.NodeProto) -> str:
    odd = set(attribute(node, "equation", b"").decode()) - {*ascii_lowercase, *"->., "}
    return f"Einsum with {' '.join(sorted(odd))} in its equation; letters are lower-case" if odd else ""


def _lstm(view: View, node: onnx.NodeProto) -> str:
    kind = view.kind(node.input[0])
    return f"LSTM of {kind} with states or peepholes" if kind in _HALVES and any(node.input[4:]) else ""


def _matmul(view: View, node: onnx.NodeProto) -> str:
    left, right = (view.shapes.get(name) for name in node.input[:2])
    stack = left is not None and right is not None and len(left) == 1 and len(right) > 2
    return "MatMul of a vector with a stack of matrices" if stack else ""


def _max_pool(view: View, node: onnx.NodeProto) -> str:
    volume = len(view.shapes.get(node.input[0], ())) == 5
    return "MaxPool of INT8 in three dimensions" if volume and view.kind(node.input[0]) == "INT8" else ""


def _mod(view: View, node: onnx.NodeProto) -> str:
    kind = view.kind(node.input[0])
    return (
        f"Mod of {kind} without fmod" if not attribute(node, "fmod", 0) and kind in ("INT8", "FLOAT", *_HALVES) else ""
    )


def _resize(view: View, node: onnx.NodeProto) -> str:
    axes, rank = attribute(node, "axes", None), len(view.shapes.get(node.input[0], ()))
    some = axes is not None and list(axes) != list(range(rank))
    computed = bool(_input(node, 2)) and not view.stored(_input(node, 2))
    return "Resize with computed scales for some axes" if some and computed else ""


def _slice(view: View, node: onnx.NodeProto) -> str:
    bounds = [name for name in node.input[1:] if name and view.kind(name) == "INT32" and view.inputs_behind(name)]
    return f"Slice with bounds of INT32 that are given at run time ({bounds[0]}); it takes INT64" if bounds else ""


def _split(view: View, node: onnx.NodeProto) -> str:
    size, parts = view.size(node.input[0], attribute(node, "axis", 0)), attribute(node, "num_outputs", None)
    short = size is not None and parts is not None and -(-size // parts) * (parts - 1) > size
    return f"Split of {size} into {parts} parts, which leaves less than nothing for the last" if short else ""


_SPECIAL: dict[str, Callable[[View, onnx.NodeProto], str]] = {
    "Attention": _attention,
    "Clip": _clip,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "LSTM": _lstm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mod": _mod,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}


def _input(node: onnx.NodeProto, position: int) -> str:
    return str(node.input[position]) if position < len(node.input) else ""
