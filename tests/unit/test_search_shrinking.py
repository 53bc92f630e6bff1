"""Meeting a goal: on a machine that is made up, the model that is found is the largest one that meets it as timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.errors import UsageError
from compress.models.families import dimensions
from compress.models.loading import load_torch
from compress.pruning.costs import CostTable, macs_table
from compress.pruning.ladder import Widths
from compress.pruning.ranking import Ranking
from compress.runtimes.target import find_target
from compress.search.cutting import Cutter, Method, present_widths, rank_units
from compress.search.deploy import Speedup
from compress.search.fitting import Curve
from compress.search.latency import LatencyTable
from compress.search.shrinking import (
    ATTEMPTS,
    OVERSHOOT,
    LatencyGoal,
    shrink_to_accuracy,
    shrink_to_cost,
    shrink_to_latency,
)
from compress.store import Store
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
TEXTS = ("the film was great", "a dull , slow film .", "i works", "cancel my order , please : good") * 4


@pytest.fixture
def cutter(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Cutter:
    torch.set_num_threads(1)
    folder = tiny_classifier("bert")
    model = load_torch(folder, TASK)
    examples = TASK.encode(folder, [{"text": text, "label": "fine"} for text in TEXTS])
    method = Method("fisher", reconstruct=False)
    ranking = rank_units(model, "a digest", TASK, examples, method, Store(tmp_path / "store"), _silent)
    return Cutter(model, TASK, examples, ranking, method, _silent)


def _silent(*args: Any) -> None:
    pass


def costs_of(cutter: Cutter) -> CostTable:
    return macs_table(dimensions(cutter.model.config.to_dict()), grid=1, fixed=300_000.0)


class MadeUpBench:
    """A machine on which a model takes ``truth(predicted)`` milliseconds."""

    target, precision, batch_size = find_target("ort-cpu-1t"), "fp32", 1

    def __init__(self, costs: CostTable, truth: Callable[[float], float]) -> None:
        self.costs, self.truth, self.timed = costs, truth, list[Widths]()

    def emit(self, *args: Any) -> None:
        pass

    @contextmanager
    def against(self, model: Any) -> Iterator[Callable[[Any], Speedup]]:
        dense_ms = self.costs.total(present_widths(model))

        def time(pruned: Any) -> Speedup:
            widths = present_widths(pruned)
            self.timed.append(widths)
            ms = self.truth(self.costs.total(widths))
            return Speedup(dense_ms / ms, dense_ms / ms, dense_ms / ms, ms, dense_ms)

        yield time


def table_of(costs: CostTable, cutter: Cutter) -> LatencyTable:
    return LatencyTable(costs, Curve((1.0, 2.0), (1.0, 2.0)), costs.total(cutter.present), 0.0, 30, 8.0)


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("goal", [LatencyGoal(speedup=2.0), LatencyGoal(latency_ms=100_000.0)])
def test_the_goal_holds_as_timed_whatever_the_table_predicts(cutter: Cutter, goal: LatencyGoal, error: float) -> None:
    costs = costs_of(cutter)
    bench = MadeUpBench(costs, lambda predicted: error * predicted)
    if goal.latency_ms:
        goal = LatencyGoal(latency_ms=0.5 * costs.total(cutter.present))
    shrunk = shrink_to_latency(cutter, table_of(costs, cutter), goal, bench)  # type: ignore[arg-type]
    took = error * costs.total(shrunk.widths)
    allowed = goal.allowed_ms(costs.total(cutter.present))
    assert allowed / OVERSHOOT / 1.02 <= took <= allowed
    assert shrunk.widths == present_widths(shrunk.model)
    assert shrunk.notes["measured_ms"] == took
    assert shrunk.notes["met"] is True
    assert len(shrunk.notes["attempts"]) == len(bench.timed) <= ATTEMPTS


def test_a_goal_that_no_model_meets_as_timed_is_an_error(cutter: Cutter) -> None:
    costs = costs_of(cutter)
    bench = MadeUpBench(costs, lambda predicted: costs.total(cutter.present) / 1.5)
    with pytest.raises(UsageError, match=r"budget cannot be met|No pruned model met"):
        shrink_to_latency(cutter, table_of(costs, cutter), LatencyGoal(speedup=2.0), bench)  # type: ignore[arg-type]


def test_accuracy_goal_finds_the_fastest_model_within_the_drop(cutter: Cutter) -> None:
    costs = costs_of(cutter)
    dense = costs.total(cutter.present)
    bench = MadeUpBench(costs, lambda predicted: predicted)

    def score(model: Any) -> float:
        return 90.0 - 10.0 * (1 - costs.total(present_widths(model)) / dense)

    shrunk = shrink_to_accuracy(cutter, table_of(costs, cutter), score, 4.0, bench)  # type: ignore[arg-type]
    assert 0.6 * dense <= costs.total(shrunk.widths) <= 0.64 * dense
    assert shrunk.notes["budget"] == {"max_drop_points": 4.0}
    assert all(row["drop_points"] >= 0 for row in shrunk.notes["candidates"])
    with pytest.raises(UsageError, match="loses more than allowed"):
        shrink_to_accuracy(cutter, table_of(costs, cutter), lambda m: float(m is cutter.model), 0.5, bench)  # type: ignore[arg-type]


def test_cutting_leaves_the_model_alone_and_equals_zeroed_columns(cutter: Cutter) -> None:
    before = {name: tensor.clone() for name, tensor in cutter.model.state_dict().items()}
    shrunk = shrink_to_cost(cutter, costs_of(cutter), 0.5 * costs_of(cutter).total(cutter.present))
    assert costs_of(cutter).total(shrunk.widths) <= 0.5 * costs_of(cutter).total(cutter.present)
    assert all(torch.equal(before[name], tensor) for name, tensor in cutter.model.state_dict().items())
    assert present_widths(cutter.model) != shrunk.widths
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with torch.no_grad():
        pruned = shrunk.model(**inputs).logits
        _zero_the_rest(cutter, shrunk.widths)
        torch.testing.assert_close(pruned, cutter.model(**inputs).logits, atol=1e-5, rtol=1e-5)


def _zero_the_rest(cutter: Cutter, widths: Widths) -> None:
    from compress.models.families import encoder_layers

    ladders = cutter.ranking.ladders
    for i, layer in enumerate(encoder_layers(cutter.model)):
        heads, neurons = ladders.heads[i].kept(widths.heads[i]), ladders.neurons[i].kept(widths.neurons[i])
        gone_heads = [h for h in range(layer.heads) if h not in heads]
        for h in gone_heads:
            layer.attention_out.weight[:, h * layer.head_size : (h + 1) * layer.head_size] = 0
        layer.ffn_out.weight[:, [n for n in range(layer.neurons) if n not in neurons]] = 0


def test_a_ranking_comes_from_the_store_for_the_same_model_and_examples(cutter: Cutter, tmp_path: Path) -> None:
    store, method, calls = Store(tmp_path / "store"), Method("fisher"), list[str]()

    def rank(digest: str, method: Method) -> Ranking:
        emit = lambda what, *rest: calls.append(what)  # noqa: E731
        return rank_units(cutter.model, digest, TASK, cutter.examples, method, store, emit)

    first = rank("a digest", method)
    assert calls == []
    np.testing.assert_array_equal(first.ladders.heads[0].order, cutter.ranking.ladders.heads[0].order)
    rank("another digest", method)
    assert calls
    calls.clear()
    rank("a digest", Method("taylor"))
    assert calls
