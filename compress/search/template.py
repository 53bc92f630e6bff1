"""One exported encoder from which graphs of every other width are cut in milliseconds.

Latency does not depend on the values of weights, only on their shapes, and an export takes ten seconds. So a dense
encoder with random weights is exported once, and quantized or cast once; a narrower one is the same graph with
smaller initializers. This works because the exported graph holds no head count: attention is reshaped to
``(batch, sequence, -1, head_size)``. A sub-layer without units is its bias, as ``compress.models.removed`` leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import ModelError
from compress.models.families import encoder_layers
from compress.pruning.ladder import Widths

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

_WEIGHT_FORMS = ("", "__float16", "_quantized")
"""What casting and quantizing append to the name of a weight."""
_COLUMN_FORMS = ("_scale", "_zero_point")
"""Companions of a quantized weight with one number for each of its columns."""


@dataclass(frozen=True)
class SubLayer:
    """The tensors of one sub-layer in the float32 graph.

    Attributes:
        axes: initializer -> the axis along which its units lie.
        features: elements of that axis for one unit.
        result: the value that the output projection gives.
        bias: what remains of it when no unit is left.
    """

    axes: Mapping[str, int]
    features: int
    result: str
    bias: str


@dataclass(frozen=True)
class Layer:
    """One encoder layer in the float32 graph: both sub-layers, and the values that enter and leave it."""

    attention: SubLayer
    ffn: SubLayer
    enters: str
    leaves: str


def locate(graph: onnx.GraphProto, model: PreTrainedModel) -> tuple[Layer, ...]:
    """Find the tensors of every encoder layer in the graph that was exported from a dense model.

    Raises:
        ModelError: the graph is not built as that of a supported encoder.
    """
    names = {id(module): name for name, module in model.named_modules()}
    find = _Finder(graph)
    found = []
    for layer in encoder_layers(model):
        into = [names[id(linear)] for linear in (layer.query, layer.key, layer.value)]
        attention = find.sublayer(into, names[id(layer.attention_out)], layer.head_size)
        ffn = find.sublayer([names[id(layer.ffn_in)]], names[id(layer.ffn_out)], 1)
        found.append(Layer(attention, ffn, *find.ends(attention, ffn)))
    return tuple(found)


def resize(model: onnx.ModelProto, layers: Sequence[Layer], widths: Widths) -> onnx.ModelProto:
    """Return the graph with other widths: the first heads and neurons of every layer stay.

    Args:
        model: the dense graph in float32, quantized by ``quantize_dynamic`` or cast by ``cast_fp16``.
        layers: where the layers lie in the float32 graph.
        widths: heads and neurons kept; layers beyond those that it lists are left out.
    """
    import onnx

    cuts: dict[str, tuple[int, int]] = {}
    instead: dict[str, str] = {}
    shapes = zip(layers, widths.heads, widths.neurons, strict=False)
    for sublayer, units in ((s, u) for x, h, n in shapes for s, u in ((x.attention, h), (x.ffn, n))):
        cuts.update(_cuts(sublayer, units))
        if units == 0:
            instead[sublayer.result] = sublayer.bias
    if len(widths.heads) < len(layers):
        instead[layers[-1].leaves] = layers[len(widths.heads)].enters
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    half = {name: f"{name}__float16" for name in instead.values() if f"{name}__float16" in weights}
    aliases = {value: half.get(name, name) for value, name in instead.items()}
    nodes = _live_nodes(model.graph, aliases)
    used = {name for node in nodes for name in node.input}
    out = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    out.producer_name = model.producer_name
    out.graph.name = model.graph.name
    out.graph.node.extend(nodes)
    out.graph.input.extend(model.graph.input)
    out.graph.output.extend(model.graph.output)
    out.graph.initializer.extend(
        _cut(tensor, *cuts[name]) if name in cuts else tensor for name, tensor in weights.items() if name in used
    )
    return out


class _Finder:
    """Look-ups in the graph of an exported encoder; a node is named after its module and its operator."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._weights = {tensor.name for tensor in graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def sublayer(self, into: Sequence[str], out: str, features: int) -> SubLayer:
        """Find a sub-layer by its modules: linears into the units, and the linear out of them."""
        axes: dict[str, int] = {}
        for module in into:
            axes |= {self._weight(f"{module}/MatMul"): 1, self._weight(f"{module}/Add"): 0}
        axes[self._weight(f"{out}/MatMul")] = 0
        end = self._node(f"{out}/Add")
        return SubLayer(axes, features, end.output[0], self._weight(end.name))

    def ends(self, attention: SubLayer, ffn: SubLayer) -> tuple[str, str]:
        """Return the values that enter and leave a layer: the residual stream before and after it."""
        (first,), (last,) = self._readers[attention.result], self._readers[ffn.result]
        (enters,) = (name for name in first.input if name != attention.result)
        leaves = str(last.output[0])
        readers = self._readers.get(leaves, [])
        if len(readers) == 1 and readers[0].op_type == "LayerNormalization":
            leaves = str(readers[0].output[0])
        return enters, leaves

    def _weight(self, name: str) -> str:
        found = [x for x in self._node(name).input if x in self._weights]
        if len(found) != 1:
            raise _not_understood(f"{name} has {len(found)} weights")
        return str(found[0])

    def _node(self, name: str) -> Any:
        if name not in self._nodes:
            raise _not_understood(f"no node {name}")
        return self._nodes[name]


def _not_understood(value: str) -> ModelError:
    return ModelError(
        "The exported graph is not built as a latency table needs it.",
        value=value,
        fix="Prune to `macs` or `params` instead of a latency, and report this with the model's config.json.",
    )


def _cuts(sublayer: SubLayer, units: int) -> dict[str, tuple[int, int]]:
    """Return initializer -> (axis, length), under every name that it may have after quantizing or casting."""
    length, out = units * sublayer.features, {}
    for name, axis in sublayer.axes.items():
        out.update({name + form: (axis, length) for form in _WEIGHT_FORMS})
        if axis == 1:
            out.update({name + form: (0, length) for form in _COLUMN_FORMS})
    return out


def _cut(tensor: onnx.TensorProto, axis: int, length: int) -> onnx.TensorProto:
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    if array.ndim == 0:
        return tensor
    kept = np.ascontiguousarray(array[:length] if axis == 0 else array[:, :length])
    return onnx.numpy_helper.from_array(kept, tensor.name)


def _live_nodes(graph: onnx.GraphProto, aliases: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Return copies of the nodes that the outputs still need once values are read under other names."""
    import onnx

    needed = {value.name for value in graph.output}
    kept = []
    for source in reversed(graph.node):
        if needed.isdisjoint(source.output):
            continue
        node = onnx.NodeProto()
        node.CopyFrom(source)
        for i, name in enumerate(node.input):
            while name in aliases:
                name = aliases[name]
            node.input[i] = name
        needed.update(node.input)
        kept.append(node)
    return kept[::-1]
