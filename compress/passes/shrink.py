"""What ``prune`` does to an encoder: rank, choose widths for its budget, cut, and check by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from compress.artifact import Artifact
from compress.models.depth import choose_layers, drop_layers
from compress.models.families import dimensions
from compress.pruning.costs import CostTable, macs_table, parameters_table
from compress.runtimes.target import Grid, Target, find_target
from compress.search.cutting import Cutter, Method, present_widths, rank_units
from compress.search.latency import LatencyTable, latency_table
from compress.search.shrinking import (
    Bench,
    LatencyGoal,
    Shrunk,
    shrink_to_accuracy,
    shrink_to_cost,
    shrink_to_latency,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.passes.base import Context
    from compress.passes.prune import PruneConfig
    from compress.pruning.ranking import Ranking


def shrink(
    model: PreTrainedModel, source: Artifact, examples: Encoded, config: PruneConfig, context: Context
) -> tuple[tuple[int, ...], Shrunk]:
    """Return the positions of the layers that stay, and the pruned model.

    Args:
        model: the incoming encoder; only ``layers`` changes it.
        source: the artifact that it comes from.
        examples: labelled training examples.
        config: of the pass.
        context: of the run.
    """
    method = Method(
        importance=config.importance or "obs",
        reconstruct=config.reconstruct,
        search=config.search,
        uniform=config.uniform,
        batch_size=config.batch_size,
        seed=context.seed,
    )
    total = dimensions(model.config.to_dict()).layers
    layers = tuple(range(total))
    full = _share_costs(model, config).total(present_widths(model))
    ranking = None
    if config.budget is not None or config.layers_by == "importance":
        ranking = rank_units(model, source.digest, context.task, examples, method, context.store, context.emit)
    if config.layers is not None:
        by = layer_losses(ranking) if ranking is not None and config.layers_by == "importance" else None
        layers = choose_layers(config.layers, total, by)
        drop_layers(model, layers)
        ranking = None if ranking is None else ranking.select(layers)
    if config.budget is None or ranking is None:
        return layers, Shrunk(model, present_widths(model))
    cutter = Cutter(model, context.task, examples, ranking, method, context.emit)
    if config.budget in ("macs", "params"):
        return layers, _to_share(cutter, full, config)
    return layers, _to_latency(cutter, source, examples, config, context)


def layer_losses(ranking: Ranking) -> np.ndarray:
    """Return (layers,) float64: what it costs to lose both sub-layers of each layer."""
    ladders = ranking.ladders
    return np.array([h.loss[-1] + n.loss[-1] for h, n in zip(ladders.heads, ladders.neurons, strict=True)])


def _share_costs(model: PreTrainedModel, config: PruneConfig) -> CostTable:
    """Return the costs that ``macs`` and ``params`` are shares of."""
    make = parameters_table if config.params is not None else macs_table
    size = dimensions(model.config.to_dict())
    heads, neurons = grid_of(config, size.head_size)
    return make(size, neurons, min_heads=config.min_heads, min_neurons=config.min_neurons).every(heads)


def grid_of(config: PruneConfig, head_size: int) -> tuple[int, int]:
    """Return what numbers of heads and of neurons are multiples of: what was asked for, and what the target needs."""
    grid = target_grid(config)
    return grid.head_step(head_size), math.lcm(config.round_to, grid.neurons)


def target_grid(config: PruneConfig) -> Grid:
    """Return the grid of the target in the precision in which the model will run.

    Raises:
        RecipeError: the target is unknown.
    """
    return getattr(find_target(config.target).grid, config.deploy)  # type: ignore[no-any-return]


def _to_share(cutter: Cutter, full: float, config: PruneConfig) -> Shrunk:
    """Shrink to a share of what the incoming encoder cost."""
    costs = _share_costs(cutter.model, config)
    budget = full * float(config.macs or config.params or 1.0)
    shrunk = shrink_to_cost(cutter, costs, budget)
    notes = {"budget": {config.budget: budget / full}, "unit": costs.unit, "kept": costs.total(shrunk.widths) / full}
    return Shrunk(shrunk.model, shrunk.widths, notes)


def _to_latency(cutter: Cutter, source: Artifact, examples: Encoded, config: PruneConfig, context: Context) -> Shrunk:
    """Shrink to a measured latency, or to the lowest that the accuracy allows."""
    target = find_target(config.target)
    table = _table(cutter.model, examples, target, config, context)
    bench = Bench(
        folder=source.path,
        task=context.task,
        encoded=examples,
        target=target,
        precision=config.deploy,
        batch_size=config.batch,
        store=context.store,
        emit=context.emit,
    )
    if config.max_drop_points is None:
        return shrink_to_latency(cutter, table, LatencyGoal(config.speedup, config.latency_ms), bench)
    score = _validation_points(source, context)
    return shrink_to_accuracy(cutter, table, score, config.max_drop_points, bench)


def _table(
    model: PreTrainedModel, examples: Encoded, target: Target, config: PruneConfig, context: Context
) -> LatencyTable:
    settings = model.config.to_dict()
    size = dimensions(settings)
    heads, neurons = grid_of(config, size.head_size)
    table = latency_table(
        size,
        settings,
        context.task,
        examples,
        target,
        config.deploy,
        store=context.store,
        grid=neurons,
        batch_size=config.batch,
        seed=context.seed,
        emit=context.emit,
    )
    return table.at_least(config.min_heads, config.min_neurons).every(heads)


def _validation_points(source: Artifact, context: Context) -> Callable[[PreTrainedModel], float]:
    """Return what scores a model on validation: 100 times the metric, higher is better."""
    from compress.distillation.internals import predict

    encoded = context.task.encode(source.path, context.data["validation"].rows)
    targets = np.asarray(encoded.targets)
    sign = 1.0 if context.task.direction == "higher" else -1.0
    return lambda model: sign * 100.0 * context.task.score(predict(model, encoded), targets).value
