"""Quantization-aware training around a training loop: fake layers before it, the integer graph and its proof after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.data.encoded import Encoded
from compress.errors import ParityError, UsageError
from compress.quantization.ranges import Observer, Range
from compress.quantization.rules import Placement, Rules, place
from compress.quantization.writing import Int8Format, write_int8
from compress.tasks.base import Task

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

    from compress.quantization.fake_layers import Layers

MOST_DIFFERENCE = 0.05
"""Mean difference of logits between the fake torch model and the integer graph, in standard deviations of them."""
LEAST_AGREEMENT = 0.99
"""Share of examples with the same decision.

A sum in another order differs in its last bit, now and then that rounds to the next integer, and the layers behind
carry it on: of MiniLM on SST-2 more than half of the logits agree to seven digits, while single ones are off by a
tenth of a standard deviation, as they are between float32 and float64 in torch itself. So the largest difference
proves nothing, and weights and ranges are compared one by one besides.
"""
_OPERATORS = ("MatMul", "Gemm", "Gather")


@dataclass(frozen=True)
class Scheme:
    """What becomes integers, and how.

    Attributes:
        rules: of the runtime.
        how: bits and channels of weights, type of activations.
        observer: chooses the ranges that learning starts from.
        tables: whether embedding tables are stored in 8 bits.
        exclude: globs of node names that stay in float32.
        first_token: whether the last layer computes only the token that the classifier reads, where that is exact.
    """

    rules: Rules
    how: Int8Format
    observer: Observer = "mse"
    tables: bool = True
    exclude: tuple[str, ...] = ()
    first_token: bool = True


@dataclass(frozen=True)
class Prepared:
    """What fake layers are made of.

    Attributes:
        layers: the torch layer of every product that becomes integers.
        ranges: tensor -> calibrated range.
        excluded: node -> why it stays in float32, besides the rules.
    """

    layers: Layers
    ranges: Mapping[str, Range]
    excluded: Mapping[str, str]

    def insert(self, model: PreTrainedModel, how: Int8Format) -> None:
        """Put the fake layers into a model with the layers that this was made from."""
        from compress.quantization.fake_layers import insert_fakes

        insert_fakes(model, self.layers, self.ranges, how)


def prepare(
    model: PreTrainedModel, export: Export, calibration: Encoded, scheme: Scheme, *, threads: int = 1
) -> Prepared:
    """Decide what becomes integers, find its torch layers, and calibrate the ranges of their inputs.

    Args:
        model: float32, on the CPU; left as it was.
        export: returns the graph of a model.
        calibration: examples that ranges are chosen from.
        scheme: what becomes integers.
        threads: of the calibration.

    Raises:
        RecipeError: a glob of ``exclude`` matches nothing.
        UsageError: nothing is left to become integers.
    """
    from compress.quantization.calibration import calibrate
    from compress.quantization.fake_layers import match_layers
    from compress.quantization.int8 import excluded_nodes

    exported = export(model)
    excluded = dict.fromkeys(excluded_nodes(exported, _OPERATORS, scheme.exclude), "excluded by the recipe")
    wanted = _integers(place(exported, scheme.rules, excluded=excluded, tables=scheme.tables))
    layers = match_layers(exported, [product for _, product in wanted], model)
    excluded |= {node: "no torch layer has its weight" for node, _ in wanted if node not in layers.paths}
    if not layers.linears:
        raise UsageError(
            "No linear layer of the model would be quantized, so there is nothing to train for.",
            value=f"{type(model).__name__}; exclude {list(scheme.exclude)}",
            fix="Exclude less, or use `quantize`; convolutions are quantized by `quantize` only.",
        )
    histograms = scheme.observer not in ("minmax", "average")
    tensors = [product.input for product in layers.linears]
    seen = calibrate(exported, calibration, tensors, histograms=histograms, threads=threads)
    return Prepared(layers, seen.ranges(scheme.observer), excluded)


Export = Callable[["PreTrainedModel"], "onnx.ModelProto"]
"""Writes a float model as a graph."""


def finish(
    model: PreTrainedModel, export: Export, prepared: Prepared, scheme: Scheme
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Take the fake layers out of a trained model, in place, and write its integer graph.

    Args:
        model: with fake layers, on the CPU.
        export: returns the graph of a model.
        prepared: what the fake layers were made of.
        scheme: what becomes integers.

    Returns:
        The QDQ graph, and notes: nodes by precision, how far ranges moved.

    Raises:
        ParityError: the graph's integers do not stand for the weights and ranges of the fake layers.
    """
    from compress.quantization.fake_layers import learned_ranges, remove_fakes, rounded_weights, unlike_training
    from compress.quantization.first_token import keep_first_token

    learned, weights = learned_ranges(model, prepared.layers), rounded_weights(model, prepared.layers)
    remove_fakes(model)
    exported = export(model)
    cut = keep_first_token(exported) if scheme.first_token else None
    exported = exported if cut is None else cut
    placements = place(exported, scheme.rules, excluded=prepared.excluded, tables=scheme.tables)
    wanted = _integers(placements)
    if {node for node, _ in wanted} != set(prepared.layers.paths):
        raise ParityError(
            "The trained model exports to another graph than before training.",
            value=", ".join(sorted({node for node, _ in wanted} ^ set(prepared.layers.paths))[:3]),
            fix="Use the versions in constraints.txt; if it still fails, report it with the model's config.json.",
        )
    ranges = {product.input: learned[node] for node, product in wanted if node in learned}
    before = {product.node: prepared.ranges[product.input] for product in prepared.layers.linears}
    growth = [float(learned[node].scale / before[node].scale) for node in learned]
    notes = {
        "nodes_quantized": _count(placements, "int8"),
        "nodes_left": _count(placements, "float32"),
        "first_token": cut is not None,
        "range_growth": {"least": round(min(growth), 4), "most": round(max(growth), 4)},
    }
    written = write_int8(exported, placements, ranges, scheme.how)
    if unlike := unlike_training(written, prepared.layers, weights, learned):
        raise ParityError(
            "The INT8 graph has other weights or ranges than the trained model.",
            value=", ".join(unlike[:3]),
            fix="Report it with the model's config.json; until then `exclude` these nodes.",
        )
    return written, notes


def compare_logits(task: Task, fake: np.ndarray, integer: np.ndarray) -> dict[str, float]:
    """Prove that an integer graph computes what the fake torch model computes.

    Args:
        task: decides when two decisions agree.
        fake: (n, labels) logits of the torch model with fake layers.
        integer: (n, labels) logits of the graph for the same examples.

    Returns:
        Notes: median, mean and largest difference in standard deviations of the logits, share of equal decisions.

    Raises:
        ParityError: logits differ by more than 5 % of their standard deviation on the mean, or more than 1 % of the
            decisions differ.
    """
    gaps = np.abs(fake.astype(np.float64) - integer) / (float(fake.std()) or 1.0)
    agreement = float(task.agree(fake, integer).mean())
    if not (float(gaps.mean()) <= MOST_DIFFERENCE and agreement >= LEAST_AGREEMENT):
        raise ParityError(
            "The INT8 graph does not compute what the trained model computes.",
            value=f"mean difference {gaps.mean():.3f} standard deviations, same decision on {agreement:.2%}",
            fix="On a CPU without VNNI leave `reduce_range: auto`; otherwise report it with the model's config.json.",
        )
    return {
        "median": float(f"{np.median(gaps):.2g}"),
        "mean": float(f"{gaps.mean():.2g}"),
        "largest": float(f"{gaps.max():.2g}"),
        "agreement": round(agreement, 6),
    }


def _integers(placements: Sequence[Placement]) -> list[tuple[str, Any]]:
    return [(it.node, it.product) for it in placements if it.precision == "int8" and it.product is not None]


def _count(placements: Sequence[Placement], precision: str) -> dict[str, int]:
    """Count linear layers and tables by operator."""
    kinds = [
        it.operator
        for it in placements
        if it.precision == precision and it.product is not None and it.product.family != "attention"
    ]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
