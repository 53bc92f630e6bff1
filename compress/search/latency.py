"""Latency tables: what every width of a sub-layer costs in milliseconds on a target, measured in its runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import TensorSpec, hash_json
from compress.bench.environment import environment
from compress.bench.protocol import Emit, silent
from compress.data.encoded import Encoded
from compress.errors import DataError
from compress.models.families import Dimensions, family_of
from compress.pruning.costs import CostTable, neuron_levels
from compress.pruning.ladder import Widths
from compress.runtimes.base import runtimes
from compress.runtimes.target import Target
from compress.search.deploy import Precision, require_onnx_target, spread_over_lengths, time_side_by_side
from compress.search.fitting import Curve, Fit, fit_costs, fit_curve, quiet_totals
from compress.search.probe import probe_config
from compress.search.variants import choose_anchors, choose_variants, dense_total, dense_variants, make_templates
from compress.store import Store
from compress.tasks.base import Task

SCHEMA = 2
"""Of the stored table; raise it whenever the same key would give other numbers."""
INPUTS = 32
"""Examples that stand for the user's distribution of lengths."""
ROUNDS = 20
SECONDS = 60.0
"""Rounds over the inputs at most, and the time after which no further round begins."""
WARMUP_SECONDS = 0.1
SPECIALS = 5
"""Token ids below this are left to padding and markers when examples are fitted to the probe's vocabulary."""
_FILE = "table.json"
_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "transformers")


@dataclass(frozen=True)
class LatencyTable:
    """A measured table.

    Attributes:
        costs: milliseconds per example of every width, in models of the size that pruned ones have.
        curve: from the sum of a model's costs to its milliseconds, over all sizes.
        dense_fp32_ms: the FP32 ONNX of the dense architecture in the same session, which speed-ups refer to.
        worst_fit: largest relative difference between the table and a model that it was made from.
        variants: how many models were timed.
        tokens: median length of the timed examples.
    """

    costs: CostTable
    curve: Curve
    dense_fp32_ms: float
    worst_fit: float
    variants: int
    tokens: float

    def predict_ms(self, widths: Widths) -> float:
        """Return the predicted milliseconds per example of a model."""
        return self.curve.total(self.costs.total(widths))

    def budget(self, ms: float) -> float:
        """Return the sum of costs of a model that is predicted to take ``ms``."""
        return self.curve.cost_sum(ms)

    def speedup(self, widths: Widths) -> float:
        """Return the predicted speed-up of a model over the dense FP32 one."""
        return self.dense_fp32_ms / self.predict_ms(widths)

    def at_least(self, min_heads: int = 0, min_neurons: int = 0) -> LatencyTable:
        """Return the table with other minima of the widths that may be chosen."""
        return replace(self, costs=self.costs.at_least(min_heads, min_neurons))

    def every(self, heads: int) -> LatencyTable:
        """Return the table with only those numbers of heads that are multiples of ``heads``, and the dense one."""
        return replace(self, costs=self.costs.every(heads))

    def dumps(self) -> str:
        """Return the JSON form; ``LatencyTable.loads`` gives an equal table."""
        record = {name: getattr(self, name) for name in ("dense_fp32_ms", "worst_fit", "variants", "tokens")}
        return json.dumps(record | {"costs": json.loads(self.costs.dumps()), "curve": asdict(self.curve)}, indent=1)

    @classmethod
    def loads(cls, text: str) -> LatencyTable:
        """Read what ``dumps`` wrote."""
        record = json.loads(text)
        curve = Curve(*(tuple(record["curve"][name]) for name in ("sums", "totals")))
        return cls(**(record | {"costs": CostTable.loads(json.dumps(record["costs"])), "curve": curve}))


def latency_table(
    size: Dimensions,
    model_config: Mapping[str, Any],
    task: Task,
    encoded: Encoded,
    target: Target,
    deploy: Precision,
    *,
    store: Store,
    grid: int = 32,
    batch_size: int = 1,
    seed: int = 0,
    emit: Emit = silent,
) -> LatencyTable:
    """Return the latency table of an architecture on a target; measure it unless the store has it.

    About thirty models with random weights are timed side by side, see ``choose_variants``, the dense FP32 one
    among them; the costs are those whose sums come closest to all of their times.

    Args:
        size: of the dense encoder.
        model_config: its config.json.
        task: of the model.
        encoded: the user's examples, whose lengths the table is made for.
        target: where the models will run: a CPU target whose runtime opens ONNX files.
        deploy: the precision in which they will run.
        store: keeps the table.
        grid: feed-forward widths are multiples of this.
        batch_size: examples that run together; costs are per example all the same.
        seed: draws the order of the inputs.
        emit: progress sink.

    Raises:
        UsageError: the target opens no ONNX files.
        MissingCapabilityError: the target cannot run here.
        ModelError: the architecture is not supported, or its graph is not understood.
        DataError: there are no examples.
    """
    require_onnx_target(target)
    if not len(encoded):
        raise DataError(
            "There are no examples whose lengths a latency table could be made for.",
            fix="Give a split with at least one example.",
        )
    chosen = encoded.select(spread_over_lengths(encoded.lengths, INPUTS))
    probe = _Probe(size, probe_config(size, model_config), task, chosen, target, deploy, grid, batch_size, seed)

    def build(folder: Path) -> None:
        with store.workspace() as work:
            (folder / _FILE).write_text(probe.measure(work, emit).dumps() + "\n", encoding="utf-8")

    folder, _ = store.get_or_build(probe.key(), f"latency table: {target.name}, {deploy}", build)
    return LatencyTable.loads((folder / _FILE).read_text(encoding="utf-8"))


def machine(target: Target | None = None) -> dict[str, Any]:
    """Return what a latency, and every choice made by it, belongs to: hardware, versions, and how tables are made.

    Args:
        target: where it was measured; None = on a built-in runtime.
    """
    facts = environment()
    cpu = {name: facts["cpu"][name] for name in ("model", "architecture", "flags", "usable_cores")}
    packages = {name: version for name, version in facts["packages"].items() if name in _PACKAGES}
    packages |= {} if target is None else runtimes.versions(target.runtime)
    return {"cpu": cpu, "packages": packages, "table": SCHEMA}


@dataclass(frozen=True)
class _Probe:
    """Everything that a table depends on; the fields are those of ``latency_table``, examples chosen already."""

    size: Dimensions
    config: Mapping[str, Any]
    task: Task
    encoded: Encoded
    target: Target
    deploy: Precision
    grid: int
    batch_size: int
    seed: int

    def key(self) -> str:
        """Return the store key: architecture, precision, target, lengths, hardware and versions."""
        return hash_json(
            {
                "what": "latency table",
                "size": asdict(self.size),
                "config": self.config,
                "inputs": [spec.model_dump() for spec in self.inputs()],
                "lengths": self.encoded.lengths.tolist(),
                "target": self.target.model_dump(mode="json"),
                "settings": [self.deploy, self.grid, self.batch_size, self.seed, INPUTS, ROUNDS, SECONDS],
                "machine": machine(self.target),
            }
        )

    def inputs(self) -> list[TensorSpec]:
        """Return what the examples give to a model."""
        if self.encoded.fixed:
            shapes = {name: rows[0].shape for name, rows in self.encoded.inputs.items()}
            return [TensorSpec(name=n, dtype="float32", shape=("batch", *shape)) for n, shape in shapes.items()]
        return [TensorSpec(name=n, dtype="int64", shape=("batch", "sequence")) for n in self.encoded.inputs]

    def measure(self, work: Path, emit: Emit) -> LatencyTable:
        """Time all variants and solve for the costs of their parts."""
        layers = int(self.config[family_of(self.config["model_type"]).layers_key])
        variants, dense = choose_variants(self.size, layers, self.grid), dense_variants(self.size, layers)
        models = list(dict.fromkeys([*variants, *choose_anchors(self.size, layers, self.grid)]))
        emit("latency table: exporting a model of this shape")
        templates = make_templates(self.config, self.inputs(), self.task, {"fp32", self.deploy}, self.target, work)
        artifacts = {f"{i}": templates[self.deploy].write(v, work / f"{i}") for i, v in enumerate(models)}
        artifacts |= {f"fp32-{i}": templates["fp32"].write(v, work / f"fp32-{i}") for i, v in enumerate(dense)}
        rows = time_side_by_side(
            artifacts,
            _with_small_ids(self.encoded, int(self.config.get("vocab_size", 0))),
            self.target,
            work=work,
            rounds=ROUNDS,
            seconds=SECONDS,
            batch_size=self.batch_size,
            warmup_seconds=WARMUP_SECONDS,
            seed=self.seed,
            emit=emit,
        )
        samples = np.array([row.samples_ms[0] for row in rows], dtype=np.float64)
        totals = quiet_totals(samples) / len(self.encoded)
        costs = _on_grid(fit_costs(variants, totals[: len(variants)]), self.size, self.grid)
        sums = np.array([costs.total(model) for model in models])
        curve = fit_curve(sums, totals[: len(models)])
        errors = [curve.total(float(each)) / total - 1 for each, total in zip(sums, totals, strict=False)]
        return LatencyTable(
            costs=costs,
            curve=curve,
            dense_fp32_ms=dense_total(self.size, dense, [float(t) for t in totals[len(models) :]]),
            worst_fit=max(map(abs, errors)),
            variants=len(rows),
            tokens=float(np.median(self.encoded.lengths)),
        )


def _on_grid(fit: Fit, size: Dimensions, grid: int) -> CostTable:
    """Return the costs of every width that may be chosen, on the lines that join the measured ones."""
    heads, neurons = (
        {int(w): float(np.interp(w, list(known), list(known.values()))) for w in wanted}
        for known, wanted in (
            (fit.heads, range(size.heads + 1)),
            (fit.neurons, neuron_levels(size.neurons, grid)),
        )
    )
    return CostTable("ms", fit.fixed, heads, neurons)


def _with_small_ids(encoded: Encoded, vocabulary: int) -> Encoded:
    """Return token examples whose ids the probe's vocabulary has; lengths and everything else stay."""
    if encoded.fixed:
        return encoded
    ids = [SPECIALS + row % (vocabulary - SPECIALS) for row in encoded.inputs["input_ids"]]
    return Encoded({**encoded.inputs, "input_ids": ids}, encoded.padding)
