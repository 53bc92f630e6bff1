"""Run the rules of a target over a model: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compress.checks import trt_graph, trt_operators, trt_qdq, trt_special, trt_speed, trt_structure, trt_types
from compress.checks.finding import Check, Finding, sorted_findings
from compress.checks.tables import Table, load_table
from compress.checks.view import View, read_view
from compress.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx

Rule = Callable[[View, Table], Iterator[Finding]]

RULES: dict[str, tuple[Rule, ...]] = {
    "tensorrt": (
        trt_operators.operators,
        trt_operators.foreign_operators,
        trt_operators.attributes,
        trt_special.special,
        trt_operators.outputs,
        trt_operators.constant_inputs,
        trt_operators.shape_inputs,
        trt_operators.ranks,
        trt_operators.old_broadcasting,
        trt_structure.names,
        trt_structure.cycles,
        trt_structure.ranks,
        trt_structure.sizes,
        trt_structure.branches,
        trt_types.tensor_types,
        trt_types.operator_types,
        trt_types.uint8,
        trt_types.mixed_types,
        trt_qdq.zero_points,
        trt_qdq.scales,
        trt_qdq.scale_shapes,
        trt_qdq.blocks,
        trt_qdq.stored_types,
        trt_qdq.quantized_types,
        trt_qdq.odd_halves,
        trt_qdq.unsigned_activations,
        trt_qdq.float_weights,
        trt_qdq.activation_axes,
        trt_qdq.weight_axes,
        trt_graph.external_data,
        trt_graph.half_range,
        trt_graph.old_opset,
        trt_speed.thin_products,
        trt_speed.vectors,
        trt_speed.int8_attention,
        trt_speed.float_attention,
        trt_speed.channels,
        trt_speed.float32_sea,
        trt_speed.quantized_outputs,
        trt_speed.residuals,
    )
}
"""Target -> its rules, in the order in which findings of one severity are shown."""


def check_model(model: Path | onnx.ModelProto, target: str) -> Check:
    """Check an ONNX model against a target, with nothing of the target installed.

    Args:
        model: an ``.onnx`` file, or a model in memory with its weights inside.
        target: one of ``RULES``.

    Raises:
        UsageError: the target has no rules.
        ModelError: the file is no ONNX model.
    """
    if target not in RULES:
        raise UsageError(f"There is no check for the target {target!r}.", fix=did_you_mean(target, RULES))
    view = read_view(model) if isinstance(model, Path) else View(model)
    table = load_table(target)
    findings = [finding for rule in RULES[target] for finding in rule(view, table)]
    return Check(target, table.knowledge, sorted_findings(findings))
