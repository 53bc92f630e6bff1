"""A model as the rules look at it: nodes of every depth, who makes and reads a tensor, its type, shape and value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.checks.protos import graphs, infer, inlined
from compress.errors import ModelError

if TYPE_CHECKING:
    import onnx

_SIZES_ONLY = ("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size", "TopK")


class View:
    """Read-only index of a model.

    Attributes:
        model: as it was read, its own functions written out; large weights may lie in other files.
        folder: where those files are.
        nodes: of the graph and of the graphs inside its nodes, in order.
        initializers: name -> tensor.
        types: name of a value -> ONNX element type; what cannot be inferred is absent.
        shapes: name of a value -> sizes; what cannot be inferred is absent.
        opset: version of the standard operators.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None = None) -> None:
        self.model, self.folder = inlined(model), folder
        model = self.model
        self.opset = max((it.version for it in model.opset_import if it.domain in ("", "ai.onnx")), default=1)
        self.graphs = list(graphs(model.graph))
        self.nodes: list[onnx.NodeProto] = [node for graph in self.graphs for node in graph.node]
        self.initializers = {tensor.name: tensor for graph in self.graphs for tensor in graph.initializer}
        self._given = {value.name for graph in self.graphs for value in graph.input}
        self._given |= {tensor.values.name for graph in self.graphs for tensor in graph.sparse_initializer}
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)
        self.types, self.shapes = infer(model)
        self.untensors = [
            value.name for value in (*model.graph.input, *model.graph.output) if not value.type.HasField("tensor_type")
        ]
        self._signed = self._quantized_as_int8()
        self._known: set[str] | None = None

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of some operator types, in order."""
        return (node for node in self.nodes if node.op_type in operators)

    def has(self, name: str) -> bool:
        """Say whether a value is an input of a graph, a weight, or made by a node."""
        return name in self.producers or name in self.initializers or name in self._given

    def constant(self, name: str) -> np.ndarray | None:
        """Return the values of an initializer or a Constant node; None if it is neither or cannot be read."""
        from onnx import numpy_helper

        tensor = self.initializers.get(name)
        if tensor is None:
            return self._constant_node(name)
        try:
            return np.asarray(numpy_helper.to_array(tensor, str(self.folder or "")))
        except Exception:  # a missing file, an unknown type, too few bytes: each has a rule of its own
            return None

    def type_name(self, kind: int) -> str:
        """Return ONNX's name of an element type."""
        from onnx import TensorProto

        return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"type {kind}"

    def declared(self, name: str) -> str | None:
        """Return the name of a value's type as ONNX has it; None if it is not known."""
        kind = self.types.get(name)
        return None if kind is None else self.type_name(kind)

    def kind(self, name: str) -> str | None:
        """Return the name of the type that TensorRT computes a value in: FLOAT for DOUBLE, INT8 for quantized UINT8."""
        kind = self.declared(name)
        return "INT8" if name in self._signed else "FLOAT" if kind == "DOUBLE" else kind

    def known(self, name: str) -> bool:
        """Say whether a value is constant: made of initializers and of sizes that are fixed, by whatever operators."""
        if self._known is None:
            self._known = set(self.initializers)
            before = -1
            while before < len(self._known):  # once, and once more for a graph that is not in order
                before = len(self._known)
                self._known.update(name for node in self.nodes if self._computes_constant(node) for name in node.output)
        return name in self._known

    def stored(self, name: str) -> bool:
        """Say whether a value is in the file, or is a Cast or Identity of one that is."""
        node = self.producers.get(name)
        while node is not None and node.op_type in ("Cast", "Identity"):
            name = node.input[0]
            node = self.producers.get(name)
        return name in self.initializers or (node is not None and node.op_type == "Constant")

    def inputs_behind(self, name: str) -> list[str]:
        """Return the inputs of the model on whose values a value depends, not just on their sizes or places."""
        found, todo, seen = [], [name], {name}
        while todo:
            current = todo.pop()
            node = self.producers.get(current)
            if node is None:
                found += [current] if current in self.inputs and current not in self.initializers else []
            elif node.op_type not in _SIZES_ONLY:
                fresh = [source for source in node.input if source and source not in seen]
                todo += fresh
                seen.update(fresh)
        return found

    def same_type_inputs(self, node: onnx.NodeProto) -> list[list[str]]:
        """Return the groups of inputs to which the operator's schema gives one type."""
        import onnx

        if node.domain not in ("", "ai.onnx"):
            return []
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return []
        groups: dict[str, list[str]] = defaultdict(list)
        for position, name in enumerate(node.input):
            parameter = schema.inputs[min(position, len(schema.inputs) - 1)]
            if name and (position < len(schema.inputs) or parameter.is_homogeneous):
                groups[parameter.type_str].append(name)
        return [names for kind, names in groups.items() if len(names) > 1 and not kind.startswith("tensor(")]

    def size(self, name: str, axis: int) -> int | None:
        """Return the size of one axis of a value; None if it is not known."""
        shape = self.shapes.get(name)
        found = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        return found if isinstance(found, int) else None

    def count(self, name: str) -> int | None:
        """Return how many numbers a value has; None if a size is not known."""
        shape = self.shapes.get(name)
        sizes = [size for size in shape or () if isinstance(size, int)]
        return math.prod(sizes) if shape is not None and len(sizes) == len(shape) else None

    def label(self, node: onnx.NodeProto) -> str:
        """Return the name to show for a node: its own, else its operator and first output."""
        return node.name or f"{node.op_type} that makes {next(filter(None, node.output), 'nothing')}"

    def _quantized_as_int8(self) -> set[str]:
        """Return the values that are UINT8 in ONNX because QuantizeLinear made them; TensorRT makes INT8."""
        import onnx

        found: set[str] = set()
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" or (node.input and node.input[0] in found):
                found.update(name for name in node.output if self.types.get(name) == onnx.TensorProto.UINT8)
        return found

    def _computes_constant(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Shape", "Size"):
            return self.count(node.input[0]) is not None
        return not node.op_type.startswith("Random") and all(name in (self._known or ()) for name in node.input if name)

    def _constant_node(self, name: str) -> np.ndarray | None:
        from onnx import helper, numpy_helper

        node = self.producers.get(name)
        if node is None or node.op_type != "Constant" or len(node.attribute) != 1:
            return None
        value = helper.get_attribute_value(node.attribute[0])
        if node.attribute[0].name == "value":
            return np.asarray(numpy_helper.to_array(value))
        return np.asarray(value) if node.attribute[0].name.startswith(("value_int", "value_float")) else None


def read_view(path: Path) -> View:
    """Read an ONNX file; weights in other files stay there.

    Raises:
        ModelError: the file is no ONNX model.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, whose place differs from version to version
        raise ModelError("This file is not an ONNX model.", value=path, fix="Give an .onnx file.") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError("This ONNX file has no graph.", value=path, fix="Export the model again.")
    return View(model, path.parent)
