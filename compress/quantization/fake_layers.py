"""Put fake quantization into a torch model exactly where its ONNX graph will have integers, and take it out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from compress.models.families import replace_module
from compress.quantization.fake import FakeEmbedding, FakeLinear, LearnedRange
from compress.quantization.graph import Graph
from compress.quantization.products import Product, weight_of
from compress.quantization.ranges import Range
from compress.quantization.writing import Int8Format

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Layers:
    """Which torch layer each product of a graph is, and the ranges that they share.

    Attributes:
        products: those that will be integers, in the order of the graph.
        paths: node -> dotted path of its layer; a layer that runs several times has several nodes.
    """

    products: tuple[Product, ...]
    paths: Mapping[str, str]

    @property
    def linears(self) -> list[Product]:
        return [product for product in self.products if product.family == "linear"]


@dataclass
class _Shared:
    """Layers that must have one range: those that read one tensor, and the uses of one layer."""

    keys: set[str] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)


def match_layers(exported: onnx.ModelProto, products: Sequence[Product], model: nn.Module) -> Layers:
    """Find the layer behind every product by its weight; its node's name only decides between equal weights.

    Args:
        exported: the graph of ``model``.
        products: linear layers and tables of the graph.
        model: the torch model, with the weights of the graph.

    Returns:
        The products whose layer was found.
    """
    graph = Graph(exported)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    paths: dict[str, str] = {}
    for product in products:
        weight = weight_of(graph, product)
        kind = nn.Embedding if product.family == "table" else nn.Linear
        equal = [name for name, it in layers.items() if isinstance(it, kind) and _has(it, weight)]
        named, taken = product.node.rpartition("/")[0], set(paths.values())
        if equal:
            paths[product.node] = min(equal, key=lambda name: (name != named, name in taken))
    return Layers(tuple(product for product in products if product.node in paths), paths)


def insert_fakes(model: nn.Module, layers: Layers, ranges: Mapping[str, Range], how: Int8Format) -> None:
    """Replace layers by fake ones, in place; parameters stay the same objects, and each range adds one.

    Args:
        model: has the layers.
        layers: what ``match_layers`` found.
        ranges: tensor -> initial range, for the input of every linear layer.
        how: bits and channels of the weights, type of the activations.
    """
    for shared in _sharing(layers):
        seen = [ranges[product.input] for product in shared.products]
        learned = LearnedRange(Range(min(it.low for it in seen), max(it.high for it in seen)), how.activation)
        paths = dict.fromkeys(layers.paths[product.node] for product in shared.products)
        for i, path in enumerate(paths):
            fake = FakeLinear(
                model.get_submodule(path), learned, owns=i == 0, bits=how.weight_bits, per_channel=how.per_channel
            )
            replace_module(model, path, fake)
    tables = {layers.paths[product.node] for product in layers.products if product.family == "table"}
    for path in sorted(tables):
        replace_module(model, path, FakeEmbedding(model.get_submodule(path)))


def learned_ranges(model: nn.Module, layers: Layers) -> dict[str, Range]:
    """Return node -> range of its input, as the fake layers have it now."""
    found = {product.node: model.get_submodule(layers.paths[product.node]) for product in layers.linears}
    return {node: layer.input_range.read() for node, layer in found.items()}


def rounded_weights(model: nn.Module, layers: Layers) -> dict[str, np.ndarray]:
    """Return node -> weight as it multiplies in training: (K, N) of a linear layer, (rows, columns) of a table."""
    out = {}
    for product in layers.products:
        layer = model.get_submodule(layers.paths[product.node])
        rounded = layer.rounded().detach().cpu()
        out[product.node] = (rounded.T if product.family == "linear" else rounded).numpy()
    return out


def unlike_training(
    written: onnx.ModelProto, layers: Layers, weights: Mapping[str, np.ndarray], ranges: Mapping[str, Range]
) -> list[str]:
    """Return the nodes of a QDQ graph whose integers stand for other numbers than those of training.

    Args:
        written: the graph.
        layers: its products.
        weights: what ``rounded_weights`` returned.
        ranges: what ``learned_ranges`` returned.
    """
    graph, out = Graph(written), []
    for product in layers.products:
        node = graph.node(product.node)
        if product.family == "table":
            turn = graph.consumers[node.output[0]][0]
            same = np.array_equal(_dequantized(graph, node.input[0], turn.input[1]), weights[node.name])
        else:
            back, turn = (graph.producers[name] for name in node.input[:2])
            scale = graph.constant(back.input[1])
            wanted = ranges[node.name].scale if _has_zero_point(graph, back) else ranges[node.name].symmetric_scale
            same = np.array_equal(_dequantized(graph, *turn.input[:2]), weights[node.name])
            same = same and scale is not None and bool(np.all(scale == np.float32(wanted)))
        if not same:
            out.append(product.node)
    return out


def remove_fakes(model: nn.Module) -> None:
    """Put plain layers with the same parameters where the fake ones are, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, FakeLinear | FakeEmbedding):
            replace_module(model, path, module.plain())


def _has(module: nn.Linear | nn.Embedding, weight: np.ndarray) -> bool:
    """Say whether a layer's weight is this one: (K, N) of a linear layer, (rows, columns) of a table."""
    own = module.weight.detach().cpu()
    own = own.T if isinstance(module, nn.Linear) else own
    return tuple(own.shape) == weight.shape and np.array_equal(own.numpy(), weight)


def _dequantized(graph: Graph, integers: str, scale: str) -> np.ndarray:
    values, step = graph.constant(integers), graph.constant(scale)
    return np.empty(0) if values is None or step is None else values.astype(np.float32) * step


def _has_zero_point(graph: Graph, node: onnx.NodeProto) -> bool:
    zero = graph.constant(node.input[2])
    return zero is not None and zero.dtype == np.uint8


def _sharing(layers: Layers) -> list[_Shared]:
    groups: list[_Shared] = []
    for product in layers.linears:
        keys = {f"tensor {product.input}", f"layer {layers.paths[product.node]}"}
        joined = _Shared(keys, [])
        for group in [group for group in groups if group.keys & keys]:
            groups.remove(group)
            joined.keys |= group.keys
            joined.products += group.products
        joined.products.append(product)
        groups.append(joined)
    return groups
