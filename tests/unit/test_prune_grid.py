"""Widths that a target's kernels take whole: pruning to a share keeps to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

from compress.errors import MissingCapabilityError, RecipeError
from compress.models.families import dimensions
from compress.passes.prune import Prune, PruneConfig
from compress.passes.shrink import _share_costs, grid_of
from compress.pruning.allocation import choose_widths
from compress.pruning.costs import macs_table
from compress.pruning.ladder import Ladder, Ladders
from compress.runtimes.target import Grid, find_target, parse_target
from compress.search.deploy import require_onnx_target

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=384,
    num_hidden_layers=2,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=16,
)
SIZE = dimensions(CONFIG.to_dict())


@pytest.mark.parametrize(
    ("features", "head_size", "step"), [(64, 32, 2), (64, 64, 1), (64, 16, 4), (64, 48, 4), (8, 32, 1), (1, 7, 1)]
)
def test_the_step_of_heads_is_the_smallest_that_keeps_to_the_grid(features: int, head_size: int, step: int) -> None:
    found = Grid(attention=features).head_step(head_size)
    assert found == step == next(n for n in range(1, 99) if n * head_size % features == 0)


@pytest.mark.parametrize(
    ("deploy", "round_to", "expected"),
    [("int8", 32, (2, 64)), ("fp32", 32, (2, 64)), ("fp16", 32, (1, 32)), ("fp16", 1, (1, 8)), ("int8", 48, (2, 192))],
)
def test_tensorrt_has_a_grid_for_each_precision(deploy: Any, round_to: int, expected: tuple[int, int]) -> None:
    config = PruneConfig(macs=0.5, target="tensorrt", deploy=deploy, round_to=round_to)
    assert grid_of(config, SIZE.head_size) == expected
    assert grid_of(PruneConfig(macs=0.5, deploy=deploy, round_to=round_to), SIZE.head_size) == (1, round_to)


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25, 0.1])
def test_widths_for_tensorrt_are_whole_tiles(budget: str, share: float) -> None:
    model = BertForSequenceClassification(CONFIG)
    config = PruneConfig.model_validate({budget: share, "target": "tensorrt", "deploy": "int8"})
    costs = _share_costs(model, config)
    rng = np.random.default_rng(0)
    losses = [np.concatenate([[0.0], np.sort(rng.random(n)).cumsum()]) for n in (12, 12, 1536, 1536)]
    ladders = [Ladder(rng.permutation(len(loss) - 1), loss) for loss in losses]
    plain = _share_costs(model, PruneConfig.model_validate({budget: share}))
    full = plain.fixed + 2 * (plain.cost(0, 12) + plain.cost(1, 1536))
    widths = choose_widths(Ladders(tuple(ladders[:2]), tuple(ladders[2:])), costs, share * full)
    assert all(heads * SIZE.head_size % 64 == 0 for heads in widths.heads)
    assert all(neurons % 64 == 0 for neurons in widths.neurons)
    assert costs.total(widths) <= share * full


def test_a_model_that_is_off_the_grid_may_stay_as_it_is_and_costs_are_still_known() -> None:
    table, coarse = macs_table(SIZE, 64), macs_table(SIZE, 64).every(5)
    assert coarse.levels(0, 12) == (0, 5, 10, 12)
    assert coarse.levels(0, 7) == (0, 5, 7)
    assert coarse.cost(0, 7) == pytest.approx(table.cost(0, 7))


def test_a_budget_of_time_is_refused_for_tensorrt_and_a_share_is_not() -> None:
    with pytest.raises(MissingCapabilityError, match="cannot be timed on TensorRT"):
        require_onnx_target(find_target("tensorrt"))
    from compress.passes.base import ModelInfo

    info = ModelInfo("torch", frozenset(), CONFIG.to_dict(), 1, 1)
    timed = Prune().plan({"model": info}, PruneConfig(speedup=2.0, target="tensorrt"))
    assert "cannot be timed on TensorRT" in timed.missing[0]
    share = Prune().plan({"model": info}, PruneConfig(macs=0.5, target="tensorrt"))
    assert share.missing == ()
    assert "widths for tensorrt" in share.summary


def test_the_key_of_a_pruned_model_has_the_grid() -> None:
    assert Prune().settle(PruneConfig(macs=0.5)) == {}
    settled = Prune().settle(PruneConfig(macs=0.5, target="tensorrt"))
    assert settled["grid"]["int8"] == {"attention": 64, "neurons": 64, "channels": 32}


def test_a_target_of_ones_own_has_a_grid(tmp_path: Path) -> None:
    text = "name: npu\nruntime: onnxruntime\ngrid:\n  int8: {attention: 32, neurons: 48}\n"
    (tmp_path / "npu.yaml").write_text(text, encoding="utf-8")
    config = PruneConfig(params=0.5, target=str(tmp_path / "npu.yaml"), deploy="int8")
    assert grid_of(config, 32) == (1, 96)
    with pytest.raises(RecipeError, match="not a target"):
        parse_target(text.replace("48", "0"), "npu.yaml")


def test_prune_for_tensorrt_end_to_end(tiny_classifier: Callable[..., Path]) -> None:
    """The widths of a really pruned model: heads of 8 and 64 neurons leave all or nothing of a sub-layer."""
    from compress.models.families import encoder_layers
    from compress.models.loading import load_torch
    from compress.search.cutting import Cutter, Method, present_widths
    from tests.conftest import tiny_task

    model = load_torch(tiny_classifier("bert"), tiny_task())
    costs = _share_costs(model, PruneConfig(macs=0.6, target="tensorrt"))
    rng = np.random.default_rng(0)

    def ladder(units: int) -> Ladder:
        return Ladder(np.arange(units), np.concatenate([[0.0], rng.random(units).cumsum()]))

    class Ranked:
        comparable = True
        ladders = Ladders((ladder(4), ladder(4)), (ladder(64), ladder(64)))

        def weights(self, sublayer: int, kept: Any) -> None:
            return None

    cutter = Cutter(model, tiny_task(), None, Ranked(), Method("obs", reconstruct=False), lambda *a: None)  # type: ignore[arg-type]
    pruned = cutter.cut(cutter.choose(costs, 0.6 * costs.total(present_widths(model))))
    assert all(layer.heads in (0, 4) and layer.neurons in (0, 64) for layer in encoder_layers(pruned))
