"""FP16 or BF16 on the ONNX graph: a precision for each node, a Cast on every border, and the weights converted.

An implementation of our own, because a strongly typed runtime (TensorRT 10.12 and later) takes precision from
the graph and rejects an operator whose inputs differ. The converters at hand decide by lists of operators
and leave such mixtures; this one asks each operator's ONNX schema which inputs may be 16 bits wide, keeps every
node's floating-point inputs of one precision, and has ONNX's strict type inference confirm the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.quantization.half_format import FORMATS, Dtype
from compress.quantization.half_graph import check_selection, float_values, prepare
from compress.quantization.half_masks import find_masks
from compress.quantization.half_ranges import HalfRanges
from compress.quantization.half_rules import HEADROOM, Evidence, Kept, judge_scales, judge_weights, reason_to_keep

if TYPE_CHECKING:
    import onnx


def cast_fp16(
    model: onnx.ModelProto, keep_float32: Sequence[str] = (), *, ranges: HalfRanges | None = None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a copy of a model that computes in FP16; see ``cast_half``."""
    return cast_half(model, "float16", keep_float32, ranges=ranges)


def cast_half(
    model: onnx.ModelProto,
    dtype: Dtype,
    keep_float32: Sequence[str] = (),
    *,
    ranges: HalfRanges | None = None,
    headroom: float = HEADROOM,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a copy of a model that computes in 16 bits, with its public input and output types unchanged.

    QuantizeLinear/DequantizeLinear pairs keep their integers and zero points; what is around them is cast, and
    their scales where these are normal numbers of the format.

    Args:
        model: float32 graph, weights inside; or one with QuantizeLinear/DequantizeLinear pairs.
        dtype: ``float16`` or ``bfloat16``.
        keep_float32: operator types or globs of node names that stay in FP32, besides ``half_rules.UNSAFE``.
        ranges: what the activations reach (``measure_ranges``); None = only weights are looked at, and an
            activation beyond 65,504 becomes infinite.
        headroom: a node stays in FP32 where a value comes within this factor of the largest number.

    Returns:
        The model, and notes: nodes by precision, why nodes stayed, casts inserted, what happened to weights
        (numbers flushed to zero, mask fills replaced).

    Raises:
        RecipeError: an entry of ``keep_float32`` matches nothing.
        ModelError: the graph has control flow, operators of INT8 that only CPUs have, or types that cannot be
            inferred.
    """
    import onnx

    form = FORMATS[dtype]
    out = prepare(model, dtype)
    check_selection(out.graph, keep_float32)
    floats, masks = float_values(out), find_masks(out.graph, form.largest)
    known = Evidence(
        form=form,
        floats=frozenset(floats),
        masks=masks,
        versions={entry.domain: entry.version for entry in out.opset_import},
        unfit=judge_weights(out.graph, floats, masks, form),
        scales=judge_scales(out.graph, form),
        largest={} if ranges is None else ranges.largest,
        headroom=headroom,
    )
    conversion = _Conversion(out, known)
    conversion.decide(keep_float32)
    conversion.rewrite()
    del out.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(out, check_type=True, strict_mode=True)
    return inferred, conversion.notes()


@dataclass
class _Conversion:
    """One model on its way to 16 bits.

    Attributes:
        model: changed in place.
        known: what its values are.
        kept: nodes that stay in FP32, by name, with operator and reason.
        converted: positions of the nodes that become FP16 or BF16.
        half: names of the values that are so after ``decide``.
        casts: name of a value -> the Cast that makes it.
        weights: what happened to them, counted.
    """

    model: onnx.ModelProto
    known: Evidence
    kept: list[tuple[str, str, Kept]] = field(default_factory=list)
    converted: set[int] = field(default_factory=set)
    half: set[str] = field(default_factory=set)
    casts: dict[str, onnx.NodeProto] = field(default_factory=dict)
    weights: Counter[str] = field(default_factory=Counter)

    def decide(self, keep_float32: Sequence[str]) -> None:
        """Choose a precision for each node that touches float32 values."""
        for position, node in enumerate(self.model.graph.node):
            if not self.known.floats & {*node.input, *node.output}:
                continue
            kept = reason_to_keep(node, self.known, keep_float32)
            if kept:
                self.kept.append((node.name, node.op_type, kept))
            else:
                self.half.update(name for name in node.output if name in self.known.floats)
                self.converted.add(position)

    def rewrite(self) -> None:
        """Convert weights and attributes, and insert one Cast for each value and direction that needs it."""
        graph = self.model.graph
        weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name in self.known.floats}
        used: dict[tuple[str, bool], None] = {}
        nodes: list[onnx.NodeProto] = []
        for position, node in enumerate(graph.node):
            wants_half = position in self.converted
            for i, name in enumerate(node.input):
                if name in weights:
                    used[name, wants_half] = None
                    node.input[i] = self.known.form.half_name(name) if wants_half else name
                elif name in self.known.floats and (name in self.half) != wants_half:
                    node.input[i] = self._cast(name, wants_half, nodes)
            if wants_half:
                self._retype_attributes(node)
            nodes.append(node)
        nodes.extend(self._public_outputs(nodes))
        nodes[:0] = self._replace_weights(weights, used)
        del graph.node[:]
        graph.node.extend(nodes)

    def notes(self) -> dict[str, Any]:
        return {
            f"nodes_{self.known.form.name}": len(self.converted),
            "nodes_float32": len(self.kept),
            "kept_float32": dict(sorted(Counter(kept.why for _, _, kept in self.kept).items())),
            "kept_nodes": [
                {"node": name, "operator": operator, "reason": kept.reason or kept.why}
                for name, operator, kept in self.kept
            ],
            "casts_inserted": len(self.casts),
            "weights": {name: int(self.weights[name]) for name in sorted(self.weights)},
        }

    def _cast(self, name: str, to_half: bool, nodes: list[onnx.NodeProto]) -> str:
        """Return the name of ``name`` in the other precision, adding the Cast when it is first needed."""
        target = self.known.form.half_name(name) if to_half else f"{name}__float32"
        if target not in self.casts:
            self.casts[target] = self._cast_node(name, target, to_half)
            nodes.append(self.casts[target])
        return target

    def _cast_node(self, source: str, target: str, to_half: bool) -> onnx.NodeProto:
        import onnx

        kind = self.known.form.onnx_type if to_half else onnx.TensorProto.FLOAT
        return onnx.helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)

    def _public_outputs(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Let each output that became 16 bits wide end in a Cast that gives it its old type and name."""
        outputs = [value.name for value in self.model.graph.output if value.name in self.half]
        half_name = self.known.form.half_name
        for node in nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name in outputs:
                        names[i] = half_name(name)
        added = [self._cast_node(half_name(name), name, to_half=False) for name in outputs]
        self.casts.update({node.output[0]: node for node in added})
        return added

    def _replace_weights(
        self, weights: dict[str, onnx.TensorProto], used: dict[tuple[str, bool], None]
    ) -> list[onnx.NodeProto]:
        """Store each weight once, in the widest precision in which it is read; return the Casts of shared ones.

        The fill of a mask is another number in 16 bits, so that it is stored in both.
        """
        graph, form = self.model.graph, self.known.form
        public = {value.name for value in graph.output}
        tensors, casts = [], []
        for tensor in graph.initializer:
            name = tensor.name
            if name not in weights:
                tensors.append(tensor)
                continue
            half, full = (name, True) in used, (name, False) in used or name in public
            shared = half and full and name not in self.known.masks.fills
            if half:
                halved = self._to_half(tensor)
                if shared:
                    casts.append(self._cast_node(name, form.half_name(name), to_half=True))
                    self.casts[form.half_name(name)] = casts[-1]
                else:
                    self.weights[form.name] += 1
                    tensors.append(halved)
            if full:
                self.weights["float32"] += 1
                tensors.append(tensor)
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        return casts

    def _to_half(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        import onnx

        values, form = onnx.numpy_helper.to_array(tensor), self.known.form
        halved = form.store(values)
        self.weights["mask_fills_replaced"] += int((np.abs(values) > form.largest).sum())
        self.weights["numbers_flushed_to_zero"] += int(((halved == 0) & (values != 0)).sum())
        return onnx.numpy_helper.from_array(halved, form.half_name(tensor.name))

    def _retype_attributes(self, node: onnx.NodeProto) -> None:
        """Let what an attribute types as float32 be 16 bits wide: a Cast, a ConstantOfShape, a DequantizeLinear."""
        import onnx

        form = self.known.form
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = onnx.numpy_helper.from_array(np.zeros(1, dtype=np.float32))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for attribute in node.attribute:
            typed = (node.op_type, attribute.name) in (("Cast", "to"), ("DequantizeLinear", "output_dtype"))
            if typed and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = form.onnx_type
            if node.op_type == "ConstantOfShape" and attribute.t.data_type == onnx.TensorProto.FLOAT:
                value = form.store(onnx.numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(value, attribute.t.name))
