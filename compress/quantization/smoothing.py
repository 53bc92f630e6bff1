"""Move the outliers of activations into weights, so that eight bits fit both (SmoothQuant, arXiv:2211.10438).

A linear layer computes ``X W = (X / s) (s W)`` for any positive s per channel. Where few channels of X are much
larger than the others, one range for the whole tensor leaves these few levels; dividing every channel by its s
evens them out, and rows of W, which has a scale per output, take the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.errors import UsageError
from compress.quantization.attention import find_attention
from compress.quantization.graph import Graph
from compress.quantization.products import Product, attribute, find_products, weight_of
from compress.quantization.rules import Placement

if TYPE_CHECKING:
    import onnx

Formula = Literal["smoothquant", "activations"]
"""``smoothquant`` weighs the peaks of a channel against those of its weights; ``activations`` looks at the channel
alone: weights that have a scale per output lose little, and alpha = 0 leaves the model as it was."""
SUFFIX = "smoothed"
_TINY = 1e-8
"""Peaks below it count as 0: dividing by them would blow up a value that calibration did not see."""


def smooth(
    model: onnx.ModelProto,
    channel_peaks: Mapping[str, np.ndarray],
    placements: Sequence[Placement],
    *,
    alpha: float,
    formula: Formula = "smoothquant",
    copies: bool = True,
) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """Return a model of the same function whose quantized linear layers read evened-out activations.

    Linear layers that read one tensor share one s. 1/s goes into what makes the tensor where that is exact: the
    linear layer whose channels it is made of (the value projection, whose channels attention only averages), or a
    LayerNormalization that nothing else reads. Elsewhere (a LayerNormalization that a residual reads too, a GELU)
    the layers read a copy, one Mul by 1/s.

    Names of nodes stay; weights and some inputs have new ones. So call ``place`` and ``calibrate`` again.

    Args:
        model: float32 graph; left as it was.
        channel_peaks: tensor -> (channels,) largest absolute values, see ``Calibration.channel_peaks``.
        placements: what ``place`` returned for the model; only linear layers placed in int8 are smoothed.
        alpha: 0..1, how much of the difficulty moves to the weights.
        formula: of s, see ``smoothing_scales``.
        copies: whether tensors may be smoothed that need a Mul at run time.

    Returns:
        The model, and a note for each tensor that int8 linear layers read, in the graph's order: ``tensor``,
        ``nodes`` that read it, ``folded_into`` (what took 1/s, None if the tensor was left) and ``reason``.

    Raises:
        UsageError: alpha is not between 0 and 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(
            "The migration strength of smoothing is a share.", value=alpha, fix="Give an alpha between 0 and 1."
        )
    work = _Smoothing(Graph(model), alpha, formula, copies)
    groups: dict[str, list[Product]] = {}
    for placement in placements:
        if placement.precision == "int8" and placement.product is not None and placement.product.family == "linear":
            groups.setdefault(placement.product.input, []).append(placement.product)
    notes = []
    for tensor, readers in reversed(groups.items()):
        folded, reason = work.smooth(tensor, readers, channel_peaks.get(tensor))
        nodes = [product.node for product in readers]
        notes.append({"tensor": tensor, "nodes": nodes, "folded_into": folded, "reason": reason})
    return work.finish(), notes[::-1]


def smoothing_scales(
    activation: np.ndarray, weight: np.ndarray, alpha: float, formula: Formula = "smoothquant"
) -> np.ndarray:
    """Return s of every channel.

    Args:
        activation: (K,) largest absolute values of the channels.
        weight: (K,) largest absolute values of the rows that multiply them.
        alpha: 0..1.
        formula: ``smoothquant`` is ``max|X_j|^alpha / max|W_j|^(1 - alpha)`` (Xiao et al. 2023, equation 4);
            ``activations`` is ``max|X_j|^alpha`` (as Lin et al. 2023, arXiv:2306.00978, scale with mean values).

    Returns:
        (K,) float32; 1 where a channel or its row is always 0, or a peak is not finite.
    """
    peaks = np.asarray(activation, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    known = np.logical_and.reduce([np.isfinite(peak) & (peak > _TINY) for peak in peaks])
    x, w = (np.where(known, peak, 1.0) for peak in peaks)
    scale = x**alpha / w ** (1.0 - alpha) if formula == "smoothquant" else x**alpha
    return np.where(known, scale, 1.0).astype(np.float32)


@dataclass(frozen=True)
class _Maker:
    """A linear layer whose output channels a tensor is made of, one to one.

    Attributes:
        product: the layer.
        biases: nodes and input positions that add a constant row to its output.
        name: what it is called in notes.
    """

    product: Product
    biases: tuple[tuple[onnx.NodeProto, int], ...]
    name: str


class _Smoothing:
    """Smooths tensors of a graph, those read last first: a layer's columns are settled before its rows are seen."""

    def __init__(self, graph: Graph, alpha: float, formula: Formula, copies: bool) -> None:
        self.graph, self.alpha, self.formula, self.copies = graph, alpha, formula, copies
        self.linear = {product.node: product for product in find_products(graph) if product.family == "linear"}
        self.attentions = {attention.merge.output[0]: attention for attention in find_attention(graph)}
        self.weights: dict[str, np.ndarray] = {}

    def smooth(self, tensor: str, readers: Sequence[Product], peaks: np.ndarray | None) -> tuple[str | None, str]:
        """Smooth one tensor; return what took 1/s, and why it did (or why the tensor was left)."""
        depth = readers[0].depth
        if peaks is None or peaks.shape != (depth,) or any(product.depth != depth for product in readers):
            return None, "calibration has no peaks of its channels"
        rows = np.max([np.abs(self._weight(product)).max(axis=1) for product in readers], axis=0)
        scale = smoothing_scales(peaks, rows, self.alpha, self.formula)
        folded, reason = self._divide(tensor, readers, scale)
        if folded is not None:
            for product in readers:
                self.weights[product.node] = self._weight(product) * scale[:, None]
        return folded, reason

    def finish(self) -> onnx.ModelProto:
        """Store the new weights and return the model."""
        for name, weight in self.weights.items():
            node = self.graph.node(name)
            turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
            node.input[1] = self.graph.add_constant(f"{name}.weight.{SUFFIX}", weight.T if turned else weight)
        return self.graph.finish()

    def _weight(self, product: Product) -> np.ndarray:
        """(K, N) float32, as it stands now."""
        return self.weights[product.node] if product.node in self.weights else weight_of(self.graph, product)

    def _divide(self, tensor: str, readers: Sequence[Product], scale: np.ndarray) -> tuple[str | None, str]:
        """Make the readers of a tensor read it divided by a scale per channel."""
        names = {product.node for product in readers}
        alone = tensor not in self.graph.outputs and {node.name for node in self.graph.consumers[tensor]} <= names
        maker = self._maker(tensor) if alone else None
        if maker is not None and maker.product.width == scale.size:
            self._divide_columns(maker, scale)
            return maker.name, "its channels are those of the output, and nothing else reads them"
        node = self.graph.producers.get(tensor)
        if node is not None and alone and self._divide_normalization(node, scale):
            return "LayerNormalization", "nothing else reads it"
        why = f"{node.op_type if node is not None else 'the input'} cannot take a scale"
        if not alone:
            why = "another node reads the tensor as it is"
        if not self.copies:
            return None, why
        self._copy(tensor, readers, scale)
        return "Mul", why

    def _maker(self, tensor: str) -> _Maker | None:
        """Find the linear layer whose channels a tensor is made of: the values of an attention, or right before it."""
        graph, attention = self.graph, self.attentions.get(tensor)
        if attention is not None:
            node, added, name = attention.value, attention.biases[2], "value projection"
        else:
            node, added, name = *self._linear_before(tensor), "linear layer"
        if node is None or node.name not in self.linear:
            return None
        product = self.linear[node.name]
        adders = [
            *([node] if node.op_type == "Gemm" and len(node.input) > 2 else []),
            *([added] if added is not None else []),
        ]
        rows = [(it, i) for it in adders for i, row in enumerate(it.input) if graph.shape_of(row) == (product.width,)]
        return _Maker(product, tuple(rows), name) if len(rows) == len(adders) else None

    def _linear_before(self, tensor: str) -> tuple[onnx.NodeProto | None, onnx.NodeProto | None]:
        """Return the product that makes a tensor and the Add of its bias; a ReLU in between keeps positive scales."""
        graph = self.graph
        node = graph.producers.get(tensor)
        if node is not None and node.op_type == "Relu" and graph.only_consumer(node.input[0]) is not None:
            node = graph.producers.get(node.input[0])
        if node is None or node.op_type != "Add":
            return node, None
        for name in node.input:
            product = graph.producers.get(name)
            added = graph.bias_of(product) if product is not None else None
            if added is not None and added[0] is node:
                return product, node
        return None, None

    def _divide_columns(self, maker: _Maker, scale: np.ndarray) -> None:
        self.weights[maker.product.node] = self._weight(maker.product) / scale
        for node, position in maker.biases:
            self._divide_row(node, position, scale)

    def _divide_normalization(self, node: onnx.NodeProto, scale: np.ndarray) -> bool:
        """Divide the weight and bias of a LayerNormalization over the last axis; say whether it is one."""
        shapes = [self.graph.shape_of(name) for name in node.input[1:] if name]
        if node.op_type != "LayerNormalization" or any(shape != scale.shape for shape in shapes):
            return False
        for position in range(1, 1 + len(shapes)):
            self._divide_row(node, position, scale)
        return True

    def _divide_row(self, node: onnx.NodeProto, position: int, scale: np.ndarray) -> None:
        """Give a node its own copy of a constant row, divided: other nodes may read the old one."""
        name = node.input[position]
        values = self.graph.constant(name)
        if values is not None:
            node.input[position] = self.graph.add_constant(f"{node.name}.{position}.{SUFFIX}", values / scale)

    def _copy(self, tensor: str, readers: Sequence[Product], scale: np.ndarray) -> None:
        """Put one Mul by 1/s in front of the first reader, and let all of them read it."""
        from onnx import helper

        nodes = sorted((self.graph.node(product.node) for product in readers), key=self.graph.position)
        out = f"{tensor}.{SUFFIX}"
        factor = self.graph.add_constant(f"{out}.factor", (1.0 / scale).astype(np.float32))
        self.graph.put_before(nodes[0], [helper.make_node("Mul", [tensor, factor], [out], name=f"{out}/Mul")])
        for node in nodes:
            node.input[0] = out
