"""Which models a latency table is measured from, what its key names, and what it makes of their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.data.encoded import Encoded
from compress.errors import DataError, MissingCapabilityError, UsageError
from compress.models.families import Dimensions
from compress.pruning.costs import CostTable
from compress.pruning.ladder import Widths
from compress.runtimes.target import find_target
from compress.search import latency
from compress.search.deploy import require_onnx_target, spread_over_lengths
from compress.search.fitting import Curve
from compress.search.latency import LatencyTable, latency_table
from compress.search.variants import choose_anchors, choose_variants, dense_total, dense_variants
from compress.store import Store
from compress.tasks.text_classification import TextClassification

MINILM = Dimensions(layers=6, hidden=384, heads=12, neurons=1536, positions=512)
CONFIG = {"model_type": "bert", "num_hidden_layers": 6, "vocab_size": 30_522, "id2label": {"0": "a", "1": "b"}}
TARGET = find_target("ort-cpu-1t")
TASK = TextClassification(("a", "b"))


def examples(lengths: Sequence[int]) -> Encoded:
    rows = [np.arange(100, 100 + n) for n in lengths]
    return Encoded(
        {"input_ids": rows, "attention_mask": [np.ones(n, dtype=np.int64) for n in lengths]},
        {"input_ids": 0, "attention_mask": 0},
    )


def test_every_attention_width_and_a_ladder_of_neurons_are_measured() -> None:
    variants = choose_variants(MINILM, 6, 32)
    heads, neurons = ({w[0] for w in (v.heads if i == 0 else v.neurons for v in variants) if w} for i in (0, 1))
    assert heads == set(range(13))
    assert {0, 32, 1536} <= neurons
    assert all(width % 32 == 0 for width in neurons)
    assert 10 <= len(neurons) <= 12
    assert Widths((), ()) in variants
    assert Widths((0,) * 6, (0,) * 6) in variants
    assert len(set(variants)) == len(variants) < 35


def test_wide_sublayers_are_measured_among_usual_ones() -> None:
    variants = choose_variants(MINILM, 6, 32)
    assert Widths((12, 4, 4, 12, 4, 4), (320,) * 6) in variants
    assert Widths((1,) * 6, (320,) * 6) in variants
    assert Widths((4,) * 6, (1536, 320, 320, 1536, 320, 320)) in variants
    assert Widths((4,) * 6, (32,) * 6) in variants


def test_anchors_span_all_sizes() -> None:
    anchors = choose_anchors(MINILM, 6, 32)
    assert anchors[0] == Widths((12,) * 6, (1536,) * 6)
    sizes = [model.heads[0] / 12 + model.neurons[0] / 1536 for model in anchors]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * sizes[0]
    assert all(model.neurons[0] % 32 == 0 for model in anchors)


def test_a_dense_width_off_the_grid_is_measured_too() -> None:
    neurons = {v.neurons[0] for v in choose_variants(Dimensions(2, 32, 4, 100, 64), 2, 32) if v.neurons}
    assert neurons == {0, 32, 64, 96, 100}


def test_a_deep_dense_model_is_extrapolated_from_two_depths() -> None:
    assert dense_variants(MINILM, 6) == [Widths((12,) * 6, (1536,) * 6)]
    assert dense_total(MINILM, dense_variants(MINILM, 6), [7.0]) == 7.0
    deep = Dimensions(12, 768, 12, 3072, 512)
    variants = dense_variants(deep, 5)
    assert [len(v.heads) for v in variants] == [5, 2]
    assert dense_total(deep, variants, [1.0 + 5 * 3, 1.0 + 2 * 3]) == pytest.approx(1.0 + 12 * 3)


def test_chosen_examples_stand_for_the_lengths_of_all() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 1000)
    chosen = lengths[spread_over_lengths(lengths, 32)]
    assert chosen.mean() == pytest.approx(lengths.mean(), rel=0.03)
    assert np.median(chosen) == pytest.approx(np.median(lengths), abs=1)
    assert sorted(spread_over_lengths(lengths[:5], 32)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "error"), [("torch-cpu-1t", UsageError), ("tensorrt", MissingCapabilityError)])
def test_targets_without_onnx_are_refused_with_what_to_use(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="ort-cpu-1t"):
        require_onnx_target(find_target(name))


def test_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        latency_table(MINILM, CONFIG, TASK, examples([]), TARGET, "fp32", store=Store(tmp_path))


def true_ms(widths: Widths, scale: float = 1.0) -> float:
    heads = sum(0.02 + 0.1 * h for h in widths.heads)
    neurons = sum(0.02 + 0.001 * n for n in widths.neurons)
    return (0.5 + heads + neurons) * scale


class FakeBench:
    """Times models by a formula; FP32 ones take twice as long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.ids: set[int] = set()
        monkeypatch.setattr(latency, "make_templates", self.make_templates)
        monkeypatch.setattr(latency, "time_side_by_side", self.time_side_by_side)

    def make_templates(self, *arguments: Any) -> dict[str, Any]:
        def template(scale: float) -> SimpleNamespace:
            return SimpleNamespace(write=lambda widths, out: (widths, scale))

        return {"fp32": template(2.0), "int8": template(1.0)}

    def time_side_by_side(self, artifacts: Mapping[str, Any], encoded: Encoded, *_: Any, **options: Any) -> list[Any]:
        self.calls += 1
        self.ids |= {int(i) for row in encoded.inputs["input_ids"] for i in row}
        share = encoded.lengths / encoded.lengths.mean()
        return [SimpleNamespace(samples_ms=[[list(true_ms(*artifact) * share)] * 3]) for artifact in artifacts.values()]


def test_table_predicts_unequal_structures_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, store = FakeBench(monkeypatch), Store(tmp_path)
    encoded = examples(range(5, 45))
    table = latency_table(MINILM, CONFIG, TASK, encoded, TARGET, "int8", store=store)
    unequal = Widths((0, 3, 12, 1, 7, 0), (1536, 0, 352, 32, 160, 992))
    assert table.costs.unit == "ms"
    assert table.costs.total(unequal) == pytest.approx(true_ms(unequal))
    assert table.dense_fp32_ms == pytest.approx(true_ms(Widths((12,) * 6, (1536,) * 6), 2.0))
    assert table.speedup(unequal) == pytest.approx(table.dense_fp32_ms / true_ms(unequal))
    assert table.costs.fixed == pytest.approx(0.5)
    assert sorted(table.costs.heads) == list(range(13))
    assert sorted(table.costs.neurons) == list(range(0, 1537, 32))
    assert bench.ids <= set(range(5, 1024))
    assert latency_table(MINILM, CONFIG, TASK, encoded, TARGET, "int8", store=store) == table
    assert bench.calls == 1


@pytest.mark.parametrize("change", ["lengths", "precision", "target", "batch", "grid"])
def test_key_names_what_the_table_depends_on(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, store = FakeBench(monkeypatch), Store(tmp_path)

    def table(**changes: Any) -> LatencyTable:
        given = {"encoded": examples(range(5, 45)), "target": TARGET, "deploy": "int8"} | changes
        return latency_table(MINILM, CONFIG, TASK, **given, store=store)

    table()
    table(
        encoded=Encoded(
            {n: [r + 1 for r in rows] for n, rows in examples(range(5, 45)).inputs.items()}, {"input_ids": 0}
        )
    )
    assert bench.calls == 1, "other words of the same lengths need no other table"
    changes: dict[str, dict[str, Any]] = {
        "lengths": {"encoded": examples(range(6, 46))},
        "precision": {"deploy": "fp32"},
        "target": {"target": TARGET.model_copy(update={"threads": 2})},
        "batch": {"batch_size": 8},
        "grid": {"grid": 64},
    }
    table(**changes[change])
    assert bench.calls == 2


def test_table_round_trips_through_json() -> None:
    table = LatencyTable(
        CostTable("ms", 0.5, {0: 0.1, 2: 0.3}, {0: 0.1, 32: 0.2}), Curve((1.0, 2.0), (1.1, 3.0)), 7.25, 0.01, 29, 20.0
    )
    assert LatencyTable.loads(table.dumps()) == table
