"""FP16 on the ONNX graph: decide a precision for each node, put a Cast on every border, convert the weights.

An implementation of our own, because a strongly typed runtime (TensorRT 10.12 and later) takes precision from
the graph and rejects an operator whose inputs differ. The converters at hand decide by lists of operators
and leave such mixtures; this one asks each operator's ONNX schema which inputs may be FP16, keeps every
node's floating-point inputs of one precision, and has ONNX's strict type inference confirm the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import ModelError, RecipeError

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""Largest finite FP16 number."""
FILL = -32752.0
"""What a mask's "minus infinity" becomes: half the range, so that adding a score cannot overflow, and
exp(FILL) is still 0."""
_RETYPED = ("Cast", "ConstantOfShape")
"""Operators whose output type is an attribute, which ``_retype_attributes`` changes; others keep theirs."""
UNSAFE = ("CumSum", "Exp", "Log", "Pow", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Sqrt")
"""Operators that stay in FP32: they overflow or cancel in FP16 (a LayerNorm taken apart squares its input).
LayerNormalization, Softmax and Gelu as single operators accumulate in FP32 inside and may be FP16."""


def cast_fp16(model: onnx.ModelProto, keep_float32: Sequence[str] = ()) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a copy of a float32 model that computes in FP16, with its public input and output types unchanged.

    Args:
        model: float32 graph; weights inside.
        keep_float32: operator types or globs of node names that stay in FP32, besides ``UNSAFE``.

    Returns:
        The model, and notes: nodes by precision, why nodes stayed, casts inserted, what happened to weights
        (numbers flushed to zero, mask fills replaced).

    Raises:
        RecipeError: an entry of ``keep_float32`` matches nothing.
        ModelError: the graph has control flow, or types that cannot be inferred.
    """
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    _constants_to_initializers(out.graph)
    conversion = _Conversion(out, _float_values(out))
    _check_selection(out.graph, keep_float32)
    conversion.decide(keep_float32)
    conversion.rewrite()
    del out.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(out, check_type=True, strict_mode=True)
    return inferred, conversion.notes()


@dataclass
class _Conversion:
    """One model on its way to FP16.

    Attributes:
        model: changed in place.
        floats: names of the values (weights included) that were float32.
        kept: position of a node -> why it stays in FP32.
        converted: positions of the nodes that become FP16.
        half: names of the values that are FP16 after ``decide``.
        casts: name of a value -> the Cast that makes it.
        weights: what happened to them, counted.
    """

    model: onnx.ModelProto
    floats: set[str]
    kept: dict[int, str] = field(default_factory=dict)
    converted: set[int] = field(default_factory=set)
    half: set[str] = field(default_factory=set)
    casts: dict[str, onnx.NodeProto] = field(default_factory=dict)
    weights: Counter[str] = field(default_factory=Counter)

    def decide(self, keep_float32: Sequence[str]) -> None:
        """Choose a precision for each node that touches float32 values."""
        overflowing = {t.name for t in self.model.graph.initializer if t.name in self.floats and _overflows(t)}
        versions = {entry.domain: entry.version for entry in self.model.opset_import}
        for position, node in enumerate(self.model.graph.node):
            if not self.floats & {*node.input, *node.output}:
                continue
            reason = _reason(node, self.floats, overflowing, keep_float32, versions.get(node.domain, 1))
            if reason:
                self.kept[position] = reason
            else:
                self.half.update(name for name in node.output if name in self.floats)
                self.converted.add(position)

    def rewrite(self) -> None:
        """Convert weights and attributes, and insert one Cast for each value and direction that needs it."""
        graph = self.model.graph
        weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name in self.floats}
        used: dict[tuple[str, bool], None] = {}
        nodes: list[onnx.NodeProto] = []
        for position, node in enumerate(graph.node):
            wants_half = position in self.converted
            for i, name in enumerate(node.input):
                if name in weights:
                    used[name, wants_half] = None
                    node.input[i] = _half_name(name) if wants_half else name
                elif name in self.floats and (name in self.half) != wants_half:
                    node.input[i] = self._cast(name, wants_half, nodes)
            if wants_half:
                _retype_attributes(node)
            nodes.append(node)
        nodes.extend(self._public_outputs(nodes))
        del graph.node[:]
        graph.node.extend(nodes)
        self._replace_weights(weights, used)

    def notes(self) -> dict[str, Any]:
        return {
            "nodes_float16": len(self.converted),
            "nodes_float32": len(self.kept),
            "kept_float32": dict(sorted(Counter(self.kept.values()).items())),
            "casts_inserted": len(self.casts),
            "weights": {name: int(self.weights[name]) for name in sorted(self.weights)},
        }

    def _cast(self, name: str, to_half: bool, nodes: list[onnx.NodeProto]) -> str:
        """Return the name of ``name`` in the other precision, adding the Cast when it is first needed."""
        target = _half_name(name) if to_half else f"{name}__float32"
        if target not in self.casts:
            self.casts[target] = _cast_node(name, target, to_half)
            nodes.append(self.casts[target])
        return target

    def _public_outputs(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Let each output that became FP16 end in a Cast that gives it its old type and name."""
        outputs = [value.name for value in self.model.graph.output if value.name in self.half]
        for node in nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name in outputs:
                        names[i] = _half_name(name)
        added = [_cast_node(_half_name(name), name, to_half=False) for name in outputs]
        self.casts.update({node.output[0]: node for node in added})
        return added

    def _replace_weights(self, weights: dict[str, onnx.TensorProto], used: dict[tuple[str, bool], None]) -> None:
        """Store each weight in the precisions in which it is read."""
        graph = self.model.graph
        public = {value.name for value in graph.output}
        tensors = []
        for tensor in graph.initializer:
            if tensor.name not in weights:
                tensors.append(tensor)
                continue
            if (tensor.name, True) in used:
                tensors.append(self._to_half(tensor))
            if (tensor.name, False) in used or tensor.name in public:
                self.weights["float32"] += 1
                tensors.append(tensor)
        del graph.initializer[:]
        graph.initializer.extend(tensors)

    def _to_half(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        import onnx

        values = onnx.numpy_helper.to_array(tensor)
        fills = np.abs(values) > LARGEST
        halved = np.where(fills, np.sign(values) * -FILL, values).astype(np.float16)
        self.weights["float16"] += 1
        self.weights["mask_fills_replaced"] += int(fills.sum())
        self.weights["numbers_flushed_to_zero"] += int(((halved == 0) & (values != 0)).sum())
        return onnx.numpy_helper.from_array(halved, _half_name(tensor.name))


def _reason(
    node: onnx.NodeProto, floats: set[str], overflowing: set[str], keep_float32: Sequence[str], version: int
) -> str | None:
    """Return why a node must stay in FP32, or None."""
    if any(node.op_type == entry or fnmatchcase(node.name, entry) for entry in keep_float32):
        return "asked for"
    if node.op_type in UNSAFE:
        return f"{node.op_type} overflows or cancels"
    if overflowing & set(node.input):
        return "a weight exceeds 65504"
    if not _schema_allows(node, floats, version):
        return f"{node.op_type} has no FP16 form"
    return None


def _schema_allows(node: onnx.NodeProto, floats: set[str], version: int) -> bool:
    """Say whether the operator's schema takes FP16 wherever this node has a float32 value."""
    import onnx

    if not floats & set(node.input) and node.op_type not in _RETYPED:
        return False
    if any(attribute.name == "dtype" for attribute in node.attribute):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for i, name in enumerate(names):
            parameter = parameters[min(i, len(parameters) - 1)]
            if name in floats and "tensor(float16)" not in allowed.get(parameter.type_str, [parameter.type_str]):
                return False
    return True


def _overflows(tensor: onnx.TensorProto) -> bool:
    """Say whether a weight has numbers beyond FP16; a single number is a mask fill and may be replaced."""
    import onnx

    values = onnx.numpy_helper.to_array(tensor)
    return values.size > 1 and bool((np.abs(values) > LARGEST).any())


def _retype_attributes(node: onnx.NodeProto) -> None:
    """Let a Cast to float32, and a ConstantOfShape that makes float32, make FP16 instead."""
    import onnx

    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = onnx.numpy_helper.from_array(np.zeros(1, dtype=np.float32))
        node.attribute.append(onnx.helper.make_attribute("value", zero))
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = onnx.TensorProto.FLOAT16
        if node.op_type == "ConstantOfShape" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            value = np.clip(onnx.numpy_helper.to_array(attribute.t), FILL, -FILL).astype(np.float16)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(value, attribute.t.name))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn tensor constants into weights, so that there is one kind of constant; give every node a name."""
    kept = []
    for i, node in enumerate(graph.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(
                "A graph with control flow cannot be cast to FP16.",
                value=f"{node.name or i}: {node.op_type}",
                fix="Export the model without If, Loop and Scan.",
            )
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            node.name = node.name or f"{node.op_type}_{i}"
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of all float32 values of a model, weights included.

    Raises:
        ModelError: type inference fails, or leaves a value without a type.
    """
    import onnx

    source = onnx.ModelProto()
    source.CopyFrom(model)
    del source.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(source, check_type=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            "The types of the ONNX graph are inconsistent.",
            value=str(error).splitlines()[0],
            fix="Export the model again.",
        ) from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    unknown = [name for node in graph.node for name in node.output if name and name not in types]
    if unknown:
        raise ModelError(
            "The type of a value in the ONNX graph cannot be inferred.",
            value=unknown[0],
            fix="Cast a graph of standard ONNX operators, before any fusion or quantization.",
        )
    return {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}


def _check_selection(graph: onnx.GraphProto, keep_float32: Sequence[str]) -> None:
    for entry in keep_float32:
        if not any(node.op_type == entry or fnmatchcase(node.name, entry) for node in graph.node):
            raise RecipeError(
                "`keep_float32` names no operator type and no node of the graph.",
                value=entry,
                fix=f"Node names look like: {', '.join(node.name for node in graph.node[:3])}.",
            )


def _cast_node(source: str, target: str, to_half: bool) -> onnx.NodeProto:
    import onnx

    kind = onnx.TensorProto.FLOAT16 if to_half else onnx.TensorProto.FLOAT
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _half_name(name: str) -> str:
    return f"{name}__float16"
