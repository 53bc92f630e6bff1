"""Which nodes of a graph stay in FP32 when the rest is cast to 16 bits, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compress.quantization.half_format import HalfFormat
from compress.quantization.half_masks import Masks

if TYPE_CHECKING:
    import onnx

HEADROOM = 4.0
"""A value that comes within this factor of the largest FP16 number on the calibration data stays in FP32.

A sample does not show the largest value that the model will ever see. Two bits are left for what it missed; FP16
loses none for it, since its precision is relative.
"""
WEIGHT_LOSS = 0.01
"""Share of a weight's norm that rounding may cost. FP16 costs 0.0003 where numbers are normal, BF16 0.002."""
UNSAFE = frozenset(
    {
        "CumSum",
        "Exp",
        "GroupNormalization",
        "InstanceNormalization",
        "Log",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Mish",
        "Pow",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Softplus",
        "Sqrt",
    }
)
"""Operators that overflow or cancel inside, whatever comes out: they square, sum or take powers of what they read,
and ONNX does not say in which precision. MatMul, Gemm and Conv add up in FP32 on tensor cores, Softmax subtracts the
largest score first, and LayerNormalization has ``stash_type``: these are judged by what they read and give."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
RETYPED = ("Cast", "ConstantOfShape")
"""Operators whose output type is an attribute that the cast changes."""


class Kept(NamedTuple):
    """Why a node stays in FP32: a kind of reason, and the sentence with its numbers."""

    why: str
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of a graph's values.

    Attributes:
        form: what the rest becomes.
        floats: names of the float32 values, weights included.
        masks: of the graph.
        versions: operator sets by domain.
        unfit: weight -> why it cannot be in 16 bits; see ``judge_weights``.
        scales: scale of a quantizer -> why it cannot.
        largest: activation -> largest absolute value on calibration examples; empty without any.
        headroom: see ``HEADROOM``.
    """

    form: HalfFormat
    floats: frozenset[str]
    masks: Masks
    versions: Mapping[str, int]
    unfit: Mapping[str, Kept] = field(default_factory=dict)
    scales: Mapping[str, Kept] = field(default_factory=dict)
    largest: Mapping[str, float] = field(default_factory=dict)
    headroom: float = HEADROOM


def reason_to_keep(node: onnx.NodeProto, known: Evidence, keep_float32: Sequence[str]) -> Kept | None:
    """Return why a node must stay in FP32, or None."""
    label = known.form.label
    if any(node.op_type == entry or fnmatchcase(node.name, entry) for entry in keep_float32):
        return Kept("asked for")
    if node.op_type in UNSAFE:
        return Kept(f"{node.op_type} overflows or cancels")
    if node.op_type == "LayerNormalization" and _attribute(node, "stash_type", 1) != 1:
        return Kept("LayerNormalization overflows or cancels")
    scaled = node.op_type in QUANTIZERS
    for i, name in enumerate(node.input):
        kept = (known.scales if scaled and i == 1 else known.unfit).get(name)
        if kept is not None:
            return kept
    if not schema_allows(node, known):
        return Kept(f"{node.op_type} has no {label} form")
    if node.op_type == "ConstantOfShape" and node.output[0] not in known.masks.fills and _makes_too_large(node, known):
        return Kept(f"a weight exceeds {known.form.largest:.5g}")
    return _too_large(node, known)


def judge_weights(graph: onnx.GraphProto, floats: set[str], masks: Masks, form: HalfFormat) -> dict[str, Kept]:
    """Return name -> reason for every float32 weight that 16 bits cannot hold.

    A weight beyond the largest number would become infinite, unless it is the fill of a mask, which is replaced.
    One that loses more than ``WEIGHT_LOSS`` of its norm is smaller than what the format resolves: the 1e-12 that
    keeps a division finite would become 0.
    """
    import onnx

    unfit = {}
    for tensor in graph.initializer:
        if tensor.name not in floats or tensor.name in masks.fills:
            continue
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        peak = float(np.abs(values).max()) if values.size else 0.0
        if peak > form.largest:
            unfit[tensor.name] = Kept(
                f"a weight exceeds {form.largest:.5g}",
                f"{tensor.name} reaches {_number(peak)}; {form.label} ends at {_number(form.largest)}",
            )
            continue
        norm = float(np.linalg.norm(values.astype(np.float64)))
        loss = float(np.linalg.norm((form.round(values).astype(np.float32) - values).astype(np.float64)))
        if loss > WEIGHT_LOSS * norm:
            unfit[tensor.name] = Kept(
                f"a weight is too small for {form.label}",
                f"{tensor.name} is at most {peak:.2g}, and would lose {100 * loss / norm:.0f} % of its size",
            )
    return unfit


def judge_scales(graph: onnx.GraphProto, form: HalfFormat) -> dict[str, Kept]:
    """Return name -> reason for every scale of a quantizer outside of the format's normal numbers.

    A subnormal scale has fewer bits, so that every value that it scales is off by the same share; 0 divides by 0.
    """
    import onnx

    names = {node.input[1] for node in graph.node if node.op_type in QUANTIZERS}
    unfit = {}
    for tensor in graph.initializer:
        if tensor.name in names and tensor.data_type == onnx.TensorProto.FLOAT:
            values = np.abs(onnx.numpy_helper.to_array(tensor)).ravel()
            wrong = values[(values != 0) & ((values < form.normal) | (values > form.largest))]
            if wrong.size:
                unfit[tensor.name] = Kept(
                    f"a scale is outside of {form.label}'s normal numbers",
                    f"a scale is {wrong.min():.2g}; the normal numbers of {form.label} begin at {form.normal:.2g}",
                )
    return unfit


def schema_allows(node: onnx.NodeProto, known: Evidence) -> bool:
    """Say whether the operator's schema takes 16 bits wherever this node has a float32 value."""
    import onnx

    if not known.floats & set(node.input) and node.op_type not in RETYPED:
        return False
    if any(attribute.name == "dtype" for attribute in node.attribute):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, known.versions.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({known.form.name})"
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for i, name in enumerate(names):
            parameter = parameters[min(i, len(parameters) - 1)]
            if name in known.floats and wanted not in allowed.get(parameter.type_str, [parameter.type_str]):
                return False
    return True


def _too_large(node: onnx.NodeProto, known: Evidence) -> Kept | None:
    """Keep a node that reads or gives values near the end of the format, or beyond."""
    reached = max((known.largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    end = known.form.largest
    if reached <= end / known.headroom:
        return None
    ends = f"{known.form.label} ends at {_number(end)}"
    if reached <= end:
        ends += f", less than {known.headroom:g} times as much"
    return Kept(
        f"reaches more than {known.form.label} holds safely",
        f"reaches {_number(reached)} on the calibration data; {ends}",
    )


def _makes_too_large(node: onnx.NodeProto, known: Evidence) -> bool:
    import onnx

    values = [onnx.numpy_helper.to_array(attribute.t) for attribute in node.attribute if attribute.name == "value"]
    return any(np.abs(value).max() > known.form.largest for value in values)


def _number(value: float) -> str:
    """Return ``91,000``: three digits, or ``65,504``."""
    if value >= 1e7 or not np.isfinite(value):
        return f"{value:.3g}"
    return f"{float(f'{value:.3g}') if value != 65504.0 else value:,.0f}"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
