"""How large the values of a float32 graph get on calibration examples, and how many FP16 would lose to 0.

The reductions are nodes of the graph that is run, so that each example leaves three numbers for each tensor and
memory does not grow; the calibrator that INT8 uses runs it and keeps their extremes and sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.quantization.calibration import calibrate
from compress.quantization.half_format import FP16, HalfFormat
from compress.quantization.half_graph import float_values, prepare
from compress.quantization.half_masks import Masks, find_masks

if TYPE_CHECKING:
    import onnx

    from compress.data.encoded import Encoded

_LARGEST, _LOST, _SIZE = "largest", "lost", "size"


@dataclass(frozen=True)
class HalfRanges:
    """What the activations of a graph reached.

    Attributes:
        examples: how many were run.
        largest: tensor -> largest absolute value; fills of masks are left out.
        lost: tensor -> share of its numbers that are not 0 and would be in 16 bits, where there are any.
        numbers, numbers_lost: of all tensors together.
    """

    examples: int
    largest: Mapping[str, float]
    lost: Mapping[str, float]
    numbers: float
    numbers_lost: float

    def notes(self) -> dict[str, Any]:
        """Return what a manifest records."""
        top = max(self.largest, key=lambda name: self.largest[name], default="")
        worst = max(self.lost, key=lambda name: self.lost[name], default="")
        return {
            "examples": self.examples,
            "largest_value": {"tensor": top, "value": self.largest.get(top, 0.0)},
            "numbers_flushed_to_zero": int(self.numbers_lost),
            "of_numbers": int(self.numbers),
            "most_flushed": {"tensor": worst, "share": self.lost.get(worst, 0.0)},
        }


def measure_ranges(
    model: onnx.ModelProto, encoded: Encoded, tensors: Iterable[str] | None = None, form: HalfFormat = FP16
) -> HalfRanges:
    """Run examples one by one, at their real lengths, on one thread, and observe float32 activations.

    Args:
        model: float32 graph, or one with QuantizeLinear/DequantizeLinear pairs; left as it was.
        encoded: the examples.
        tensors: names of those to observe; None = all.
        form: the format whose largest and smallest numbers count.

    Raises:
        ModelError: the graph cannot be cast, see ``cast_half``.
        RunError: there is no example, or the model does not run in ONNX Runtime.
    """
    prepared = prepare(model, form.name)
    names = sorted(_activations(prepared) if tensors is None else set(tensors))
    observed, outputs = _observed(prepared, names, form)
    seen = calibrate(observed, encoded, outputs, histograms=False).statistics
    sums = {kind: {name: seen[f"{name}/{kind}"].high_sum for name in names} for kind in (_LOST, _SIZE)}
    return HalfRanges(
        examples=len(encoded),
        largest={name: seen[f"{name}/{_LARGEST}"].high for name in names},
        lost={name: sums[_LOST][name] / max(sums[_SIZE][name], 1.0) for name in names if sums[_LOST][name]},
        numbers=sum(sums[_SIZE].values()),
        numbers_lost=sum(sums[_LOST].values()),
    )


def _activations(model: onnx.ModelProto) -> set[str]:
    """Return the names of the float32 values that a prepared model computes or is given."""
    return float_values(model) - {tensor.name for tensor in model.graph.initializer}


def _observed(model: onnx.ModelProto, names: list[str], form: HalfFormat) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy that reduces each tensor to three numbers, and the names of these."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    masks = find_masks(copy.graph, form.largest)
    constants = {"zero": 0.0, "vanishing": form.vanishing, "fill": max(form.largest, masks.magnitude / 2)}
    for name, value in constants.items():
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), _constant(name)))
    for name in names:
        copy.graph.node.extend(_reductions(name, masks))
    return copy, [f"{name}/{kind}" for name in names for kind in (_LARGEST, _LOST, _SIZE)]


def _reductions(name: str, masks: Masks) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    def value(kind: str) -> str:
        return f"{name}/{kind}"

    float32 = TensorProto.FLOAT
    size, counted = value("abs"), value("abs")
    nodes = [helper.make_node("Abs", [name], [size])]
    if name in masks.carriers:
        counted = value("unmasked")
        nodes += [
            helper.make_node("Less", [size, _constant("fill")], [value("is score")]),
            helper.make_node("Where", [value("is score"), size, _constant("zero")], [counted]),
        ]
    return [
        *nodes,
        helper.make_node("ReduceMax", [counted], [value(_LARGEST)], keepdims=0),
        helper.make_node("Greater", [size, _constant("zero")], [value("some")]),
        helper.make_node("LessOrEqual", [size, _constant("vanishing")], [value("small")]),
        helper.make_node("And", [value("some"), value("small")], [value("vanishes")]),
        helper.make_node("Cast", [value("vanishes")], [value("ones")], to=float32),
        helper.make_node("ReduceSum", [value("ones")], [value(_LOST)], keepdims=0),
        helper.make_node("Size", [name], [value("elements")]),
        helper.make_node("Cast", [value("elements")], [value(_SIZE)], to=float32),
    ]


def _constant(name: str) -> str:
    return f"half ranges/{name}"
