"""An ONNX graph that can be rewritten: who makes a tensor, who reads it, which constants it holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
"""Domain of the operators that only ONNX Runtime has."""


class Graph:
    """A copy of a model, indexed by tensor name; the model that it was made of stays as it is.

    New nodes are put in front of an existing one, removed ones disappear, and ``finish`` drops what nothing
    reads any more. Graphs without subgraphs only: an encoder's export has none.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._by_name = {node.name: node for node in self.nodes}
        self._before: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        self._removed: set[int] = set()
        self.outputs = frozenset(value.name for value in graph.output)
        self.inputs = tuple(value.name for value in graph.input)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)

    def node(self, name: str) -> onnx.NodeProto:
        """Return the node of a name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    def constant(self, name: str) -> np.ndarray | None:
        """Return the values of an initializer; None if the name is none."""
        from onnx import numpy_helper

        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of an initializer without reading its values; None if the name is none."""
        tensor = self._constants.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def is_float(self, name: str) -> bool:
        """Say whether a name is an initializer in float32."""
        import onnx

        tensor = self._constants.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Store an initializer and return its name; one of the same name is replaced."""
        from onnx import numpy_helper

        self._constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that reads a tensor if exactly one does and it is no output of the graph."""
        readers = [node for node in self.consumers[name] if id(node) not in self._removed]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def bias_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """Return the Add that alone reads a product and adds a constant row to it, and the row's name."""
        reader = self.only_consumer(node.output[0])
        if reader is None or reader.op_type != "Add":
            return None
        others = [name for name in reader.input if name != node.output[0]]
        shape = self.shape_of(others[0]) if len(others) == 1 else None
        return (reader, others[0]) if shape is not None and len(shape) == 1 and shape[0] > 1 else None

    def put_before(self, node: onnx.NodeProto, new: Sequence[onnx.NodeProto]) -> None:
        """Put nodes in front of one of the original nodes."""
        self._before[id(node)] += new

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Remove nodes and put others where the last of them stood."""
        last = max(old, key=self.position)
        self.put_before(last, new)
        self._removed |= {id(node) for node in old}

    def position(self, node: onnx.NodeProto) -> int:
        return next(i for i, known in enumerate(self.nodes) if known is node)

    def finish(self) -> onnx.ModelProto:
        """Return the model: its nodes in order, nothing unread; inner shapes are dropped, they went stale."""
        import onnx

        nodes: list[onnx.NodeProto] = []
        for node in self.nodes:
            nodes += self._before.get(id(node), [])
            if id(node) not in self._removed:
                nodes.append(node)
        nodes = self._alive(nodes)
        graph = self._model.graph
        read = {name for node in nodes for name in node.input}
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        constants = [tensor for name, tensor in self._constants.items() if name in read or name in self.outputs]
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in constants]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(copies)
        graph.initializer.extend(kept)
        self._declare_domains(copies)
        return self._model

    def _alive(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return the nodes that an output depends on, in their order."""
        wanted, alive = set(self.outputs), []
        for node in reversed(nodes):
            if wanted & set(node.output):
                alive.append(node)
                wanted.update(node.input)
        return alive[::-1]

    def _declare_domains(self, nodes: Sequence[onnx.NodeProto]) -> None:
        import onnx

        known = {entry.domain for entry in self._model.opset_import}
        for domain in sorted({node.domain for node in nodes} - known - {"", "ai.onnx"}):
            self._model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
