"""The models that a latency table is measured from: which widths, and their graphs on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.models.families import Dimensions
from compress.pruning.ladder import Widths
from compress.runtimes.target import Target
from compress.search.deploy import Precision, at_precision
from compress.search.probe import build_probe
from compress.search.template import Layer, locate, resize
from compress.tasks.base import Task

if TYPE_CHECKING:
    import onnx

NEURON_LEVELS = 11
"""Feed-forward widths that are measured besides 0; those between lie on the line that joins them."""
HEAD_LEVELS = 12
"""Attention widths that are measured besides 0, at most."""
ANCHORS = (0.8, 0.6, 0.45, 0.33, 0.25, 0.17, 0.08)
"""Shares of the dense widths in models that tell how the whole follows from its parts."""


def choose_variants(size: Dimensions, layers: int, grid: int) -> list[Widths]:
    """Return the structures to measure: every attention width at a middle feed-forward width, and the reverse.

    The middle is where pruned models lie. A narrower width is given to all layers, so that its small difference
    counts often; a wider one to every third layer, because a model that is wide everywhere no longer fits into the
    processor's caches, and its width would seem dearer than it is in a pruned model. Then all sub-layers removed,
    and no layers at all, which tells what is fixed.

    Args:
        size: of the dense encoder.
        layers: of the models that are measured.
        grid: feed-forward widths are multiples of this.
    """
    heads = _levels(size.heads, HEAD_LEVELS, 1)
    neurons = _levels(size.neurons, NEURON_LEVELS, grid)
    some_heads = min(heads, key=lambda width: abs(width - size.heads / 3))
    some_neurons = min(neurons, key=lambda width: abs(width - size.neurons / 4))
    usual = _alike(some_heads, some_neurons, layers)
    variants = [Widths(_spread(width, some_heads, layers), usual.neurons) for width in (0, *heads)]
    variants += [Widths(usual.heads, _spread(width, some_neurons, layers)) for width in (0, *neurons)]
    return list(dict.fromkeys([*variants, _alike(0, 0, layers), Widths((), ())]))


def choose_anchors(size: Dimensions, layers: int, grid: int) -> list[Widths]:
    """Return models of all sizes, all layers alike, from the dense one to a twentieth of it.

    Args:
        size: of the dense encoder.
        layers: of the models that are measured.
        grid: feed-forward widths are multiples of this.
    """
    models = [
        _alike(max(1, round(share * size.heads)), max(1, round(share * size.neurons / grid)) * grid, layers)
        for share in ANCHORS
    ]
    return list(dict.fromkeys([_alike(size.heads, size.neurons, layers), *models]))


def dense_variants(size: Dimensions, layers: int) -> list[Widths]:
    """Return the dense model, and one of half the layers where ``layers`` are fewer than the encoder has."""
    depths = [layers] if layers == size.layers else [layers, layers // 2]
    return [_alike(size.heads, size.neurons, depth) for depth in depths]


def dense_total(size: Dimensions, variants: Sequence[Widths], totals: Sequence[float]) -> float:
    """Return the total of the whole dense encoder from those of ``dense_variants``, on a line in the depth."""
    if len(variants) == 1:
        return totals[0]
    (deep, shallow), (most, least) = (len(v.heads) for v in variants), totals
    return most + (size.layers - deep) * (most - least) / (deep - shallow)


@dataclass(frozen=True)
class Template:
    """An exported probe at one precision, from which models of any width are cut.

    Attributes:
        graph: of the dense probe.
        layers: where its layers lie.
        specs: its inputs and output.
        task: goes into the manifests.
    """

    graph: onnx.ModelProto
    layers: tuple[Layer, ...]
    specs: Graph
    task: Mapping[str, Any]

    def write(self, widths: Widths, out: Path) -> Artifact:
        """Write one model as a throw-away artifact into a new folder."""
        out.mkdir()
        resized = resize(self.graph, self.layers, widths)
        (out / "model.onnx").write_bytes(resized.SerializeToString())
        made_by = PassRecord(name="latency-table", version=1, config={})
        return create_artifact(out, kind="onnx", task=self.task, graphs={"model": self.specs}, made_by=made_by)


def make_templates(
    config: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    task: Task,
    precisions: Collection[Precision],
    target: Target,
    work: Path,
) -> dict[Precision, Template]:
    """Export a probe once and return it at each of the precisions.

    Args:
        config: see ``probe_config``.
        inputs: what the model takes.
        task: of the model.
        precisions: those that are wanted.
        target: where the models will run, which decides the range of 8-bit weights.
        work: folder for the exported file.

    Raises:
        RunError: the exporter or the quantizer failed.
        ModelError: the graph is not understood.
    """
    import onnx

    from compress.export.onnx_export import export_onnx
    from compress.export.signature import read_graph

    model, file = build_probe(config), work / "probe.onnx"
    export_onnx(model, file, inputs=inputs)
    graph, specs = onnx.load(file), read_graph(file)
    layers = locate(graph.graph, model)
    return {p: Template(at_precision(graph, p, target)[0], layers, specs, task.dump()) for p in precisions}


def _levels(dense: int, count: int, grid: int) -> list[int]:
    """Return at most ``count`` widths on a grid, up to the dense one: all of them, or a geometric ladder."""
    if dense <= count * grid:
        return sorted({*range(grid, dense, grid), dense})
    ladder = np.geomspace(grid, dense, count)
    return sorted({*(max(1, round(width / grid)) * grid for width in ladder[:-1]), dense})


def _alike(heads: int, neurons: int, layers: int) -> Widths:
    return Widths((heads,) * layers, (neurons,) * layers)


def _spread(width: int, usual: int, layers: int) -> tuple[int, ...]:
    """Return the widths of all layers where one is asked for: everywhere if narrow, in every third layer if wide."""
    return tuple(width if width <= usual or layer % 3 == 0 else usual for layer in range(layers))
