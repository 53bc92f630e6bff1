"""The peer: Torch-Pruning's own global pruning of heads and neurons, as a pass that recipes of a benchmark may use.

Torch-Pruning scores the units, ranks them over all layers and says which go at a ratio (Fang et al. 2023,
arXiv:2301.12900; ``BasePruner`` with ``global_pruning``, whole heads, feed-forward widths rounded to 32, nothing that
writes to the residual stream). The ratio is then found, like the widths of ``prune``, so that the model meets a
speed-up as measured. Its units are removed by our own surgery, since its models are saved by pickling them whole.

Importing this module registers the pass ``torch-pruning``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import UsageError
from compress.models.families import encoder_layers
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan, passes
from compress.pruning.channels import missing_torch_pruning
from compress.pruning.costs import CostTable
from compress.pruning.ladder import Widths
from compress.runtimes.target import find_target
from compress.search.cutting import Cutter

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.tasks.base import Task

RATIOS = 200
"""Pruning ratios that are tried: 0.005, 0.01, 0.015, ..."""
Kept = tuple[tuple[int, ...], ...]
"""Units that stay in each layer, ascending."""


class TorchPruningConfig(PassConfig):
    """What to reach, and with which of Torch-Pruning's scores."""

    speedup: float = Field(gt=1, description="times as fast on `target`, deployed, as the FP32 ONNX of the dense model")
    target: str = Field("ort-cpu-1t", description="where latency is measured")
    deploy: Literal["fp32", "int8", "fp16"] = Field("fp32", description="precision in which latency is measured")
    scores: Literal["taylor", "magnitude"] = Field("taylor", description="its GroupTaylor- or GroupMagnitudeImportance")
    reconstruct: bool = Field(False, description="refit what stays by least squares: ours, not Torch-Pruning's")
    samples: int = Field(1024, ge=1, description="training examples whose gradients and lengths count")
    batch_size: int = Field(32, ge=1, description="examples per forward pass")
    round_to: int = Field(32, ge=1, description="neurons kept per layer are a multiple of this")


class TorchPruning(Pass):
    """Prunes heads and neurons where Torch-Pruning's global ranking says, to a measured speed-up."""

    name: ClassVar[str] = "torch-pruning"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torch-pruning", "transformers")
    Config: ClassVar[type[PassConfig]] = TorchPruningConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    adds: ClassVar[frozenset[str]] = frozenset({"pruned"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: TorchPruningConfig) -> Plan:
        info = inputs["model"]
        summary = f"{config.speedup:g} times as fast on {config.target}, by Torch-Pruning's {config.scores}"
        pruned = replace(info, traits=info.traits | self.adds, parameters=None, macs=None)
        return Plan(summary, pruned, missing_torch_pruning())

    def settle(self, config: TorchPruningConfig) -> dict[str, Any]:
        from compress.search.latency import machine

        return {"machine": machine(), "target": find_target(config.target).model_dump(mode="json")}

    def apply(self, inputs: Mapping[str, Artifact], config: TorchPruningConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch
        from compress.models.signature import torch_graph

        source = inputs["model"]
        dense = load_torch(source.path, context.task)
        with limit_threads(context.threads):
            pruned, notes = _prune(dense, source, config, context)
        save_torch(pruned, context.out, tokenizer_from=source.path)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(pruned),
            macs=count_macs(pruned),
            notes=notes,
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


passes.register(TorchPruning.name, TorchPruning)


class TorchPruningCutter(Cutter):
    """Gives the widths and the models that Torch-Pruning would make; for the latency loop of ``prune``.

    Args:
        model: an encoder that was not pruned before; it is not changed.
        task: gives the loss whose gradients ``taylor`` reads.
        examples: labelled training examples.
        config: of the pass.
    """

    def __init__(self, model: PreTrainedModel, task: Task, examples: Encoded, config: TorchPruningConfig) -> None:
        self.model, self.examples, self._config = model, examples, config
        self._plans: dict[Widths, tuple[Kept, Kept]] = {}
        for heads, neurons in _kept_at_ratios(copy.deepcopy(model), task, examples, config):
            self._plans.setdefault(Widths(tuple(map(len, heads)), tuple(map(len, neurons))), (heads, neurons))

    def choose(self, costs: CostTable, budget: float) -> Widths:
        """Return the widths at the smallest ratio that costs at most ``budget``."""
        for widths in self._plans:
            if costs.total(widths) <= budget:
                return widths
        raise UsageError(
            "Torch-Pruning leaves too much at every ratio: it removes no sub-layer as a whole.",
            value=f"{budget:.4g} {costs.unit} asked, {min(map(costs.total, self._plans)):.4g} is the least",
            fix="Ask for less.",
        )

    def cut(self, widths: Widths, *, refit: bool = True) -> PreTrainedModel:
        """Return a copy that keeps Torch-Pruning's units; with ``refit``, refitted if the config says so."""
        from compress.models.structure import keep_units
        from compress.pruning.reconstruction import reconstruct

        pruned = copy.deepcopy(self.model)
        for layer, heads, neurons in zip(encoder_layers(pruned), *self._plans[widths], strict=True):
            keep_units(layer, heads, neurons)
        if refit and self._config.reconstruct:
            reconstruct(pruned, self.model, self.examples, self._config.batch_size)
        return pruned


def _prune(
    dense: PreTrainedModel, source: Artifact, config: TorchPruningConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the pruned model and what to put on record, under the names that ``prune`` uses."""
    from compress.models.families import dimensions
    from compress.search.latency import latency_table
    from compress.search.shrinking import Bench, LatencyGoal, shrink_to_latency

    examples, target = _sample(source, config, context), find_target(config.target)
    settings = dense.config.to_dict()
    table = latency_table(
        dimensions(settings),
        settings,
        context.task,
        examples,
        target,
        config.deploy,
        store=context.store,
        grid=config.round_to,
        seed=context.seed,
        emit=context.emit,
    )
    bench = Bench(source.path, context.task, examples, target, config.deploy, 1, context.store, context.emit)
    cutter = TorchPruningCutter(dense, context.task, examples, config)
    shrunk = shrink_to_latency(cutter, table, LatencyGoal(speedup=config.speedup), bench)
    widths = {"heads": list(shrunk.widths.heads), "neurons": list(shrunk.widths.neurons)}
    return shrunk.model, widths | {"importance": f"torch-pruning {config.scores}", "search": shrunk.notes}


def _sample(source: Artifact, config: TorchPruningConfig, context: Context) -> Encoded:
    """Draw labelled training rows by seed: those that ``prune`` draws."""
    rows = [row for row in context.data["train"].rows if row.get("label") is not None]
    chosen = np.random.default_rng(context.seed).choice(len(rows), min(config.samples, len(rows)), replace=False)
    return context.task.encode(source.path, [rows[i] for i in sorted(chosen)])


def _kept_at_ratios(
    model: PreTrainedModel, task: Task, examples: Encoded, config: TorchPruningConfig
) -> Iterator[tuple[Kept, Kept]]:
    """Yield the heads and neurons that stay at every ratio, the smallest ratio first.

    The groups that the pruner would prune are read, never pruned, so that every step starts from the dense model.
    A group that would lose all it has is left whole: Torch-Pruning drops it without a word. Its tables of heads are
    written to at every step, so they are put back.

    Args:
        model: gets gradients and eager attention.
        task, examples, config: as for the cutter.
    """
    import torch
    import torch_pruning

    layers = encoder_layers(model)
    model.set_attn_implementation("eager")
    model.requires_grad_(True)
    if config.scores == "taylor":
        _accumulate_gradients(model, task, examples, config.batch_size)
    counts = {module: layer.heads for layer in layers for module in (layer.query, layer.key, layer.value)}
    prunable = {*counts, *(layer.ffn_in for layer in layers)}
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    heads = dict(counts)
    batch = examples.batch(np.arange(2))
    scores = torch_pruning.importance.GroupTaylorImportance, torch_pruning.importance.GroupMagnitudeImportance
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs={name: torch.from_numpy(array) for name, array in batch.items()},
        forward_fn=lambda network, inputs: network(**inputs).logits,
        importance=scores[config.scores == "magnitude"](),
        global_pruning=True,
        pruning_ratio=1.0,
        head_pruning_ratio=1.0,
        iterative_steps=RATIOS,
        round_to=config.round_to,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        in_channel_groups={},
        out_channel_groups={},
        root_module_types=[torch.nn.Linear],
        ignored_layers=[module for module in linears if module not in prunable],
    )
    for _ in range(RATIOS):
        gone = _rows_that_go(pruner, prunable)
        heads.update(counts)
        pruner.out_channel_groups.update(counts)
        yield (
            tuple(_stay(layer.heads, {row // layer.head_size for row in gone[layer.query]}) for layer in layers),
            tuple(_stay(layer.neurons, gone[layer.ffn_in]) for layer in layers),
        )


def _accumulate_gradients(model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int) -> None:
    """Leave the gradient of the summed loss on every weight, which is what GroupTaylorImportance reads."""
    import torch

    model.eval()
    for indices in examples.batches(batch_size, by_length=True):
        inputs = {name: torch.from_numpy(array) for name, array in examples.batch(indices).items()}
        targets = torch.from_numpy(np.asarray(examples.targets)[indices])
        (task.loss(model(**inputs).logits, targets) * len(indices)).backward()


def _rows_that_go(pruner: Any, modules: set[Module]) -> dict[Module, set[int]]:
    """Take the pruner's next step and return the output rows of each module that it would remove."""
    gone: dict[Module, set[int]] = {module: set() for module in modules}
    for group in pruner.step(interactive=True):
        for dependency, rows in group:
            module = dependency.target.module
            if module in modules and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                gone[module].update(map(int, rows))
    return gone


def _stay(units: int, gone: set[int]) -> tuple[int, ...]:
    return tuple(unit for unit in range(units) if unit not in gone)
