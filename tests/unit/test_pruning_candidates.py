"""Candidates that are only stood in for, against models that were really pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from compress.data.encoded import Encoded
from compress.models.families import encoder_layers
from compress.models.loading import load_torch
from compress.models.structure import keep_units
from compress.pruning import candidates
from compress.pruning.candidates import CandidateScorer
from compress.pruning.importance import importances
from compress.pruning.ladder import Widths
from compress.pruning.ranking import Ranking
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
TEXTS = ("the film was great", "a dull , slow film .", "i works", "she cancel my order , please : good", "fine") * 3
WHOLE = Widths((4, 4), (64, 64))
CASES = (Widths((3, 4), (64, 64)), Widths((4, 2), (40, 8)), Widths((4, 4), (64, 24)), Widths((0, 1), (16, 0)))


def prepare(folder: Path, importance: str = "obs") -> tuple[PreTrainedModel, Encoded, Ranking]:
    """Return a model in float64, where small divergences are exact, its examples and its ranking."""
    model = load_torch(folder, TASK)
    rows = [{"text": text, "label": TASK.labels[i % 3]} for i, text in enumerate(TEXTS)]
    examples = TASK.encode(folder, rows)
    ranking = importances.get(importance)().rank(model, TASK, examples, 4)
    return model.double(), examples, ranking


def really_pruned(folder: Path, ranking: Ranking, widths: Widths) -> PreTrainedModel:
    """Prune a copy physically and write the compensated weights into it."""
    model = load_torch(folder, TASK).double()
    kept = [ladder.kept(width) for ladder, width in zip(ranking.ladders.sublayers, widths.sublayers, strict=True)]
    for i, layer in enumerate(encoder_layers(model)):
        keep_units(layer, kept[2 * i], kept[2 * i + 1])
        for sublayer, name in ((2 * i, "attention_out"), (2 * i + 1, "ffn_out")):
            weights = ranking.weights(sublayer, kept[sublayer]) if kept[sublayer] else None
            if weights is not None and len(kept[sublayer]) < ranking.ladders.sublayers[sublayer].units:
                getattr(layer, name).weight.data = torch.from_numpy(weights).double()
    return model


def divergence(model: PreTrainedModel, dense: PreTrainedModel, examples: Encoded) -> float:
    """Return the mean divergence per example, one example at a time."""
    total = 0.0
    with torch.inference_mode():
        for index in range(len(examples)):
            batch = {name: torch.from_numpy(ids) for name, ids in examples.batch([index]).items()}
            total += float(TASK.divergence(model(**batch).logits, dense(**batch).logits, 1.0))
    return total / len(examples)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("importance", ["obs", "magnitude"])
def test_scores_are_those_of_really_pruned_models(
    family: str, importance: str, tiny_classifier: Callable[..., Path]
) -> None:
    folder = tiny_classifier(family)
    model, examples, ranking = prepare(folder, importance)
    scorer = CandidateScorer(model, TASK, ranking, examples, batch_size=4)
    for widths in CASES:
        wanted = divergence(really_pruned(folder, ranking, widths), model, examples)
        assert wanted > 1e-6
        assert scorer(widths) == pytest.approx(wanted, rel=1e-6)


def test_the_whole_model_diverges_by_nothing_and_stays_bit_identical(tiny_classifier: Callable[..., Path]) -> None:
    model, examples, ranking = prepare(tiny_classifier("bert"))
    model.train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    scorer = CandidateScorer(model, TASK, ranking, examples, batch_size=4)
    assert scorer(WHOLE) == pytest.approx(0.0, abs=1e-15)
    first = scorer(CASES[1])
    assert [scorer(widths) for widths in (CASES[3], CASES[1])][1] == first
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    layers = [layer.module for layer in encoder_layers(model)]
    assert all("forward" not in vars(layer) and not layer._forward_hooks for layer in layers)


def test_a_model_pruned_before_is_scored_against_itself(tiny_classifier: Callable[..., Path]) -> None:
    folder = tiny_classifier("bert", pruned=True)
    model, examples, ranking = prepare(folder)
    scorer = CandidateScorer(model, TASK, ranking, examples)
    assert scorer(Widths((1, 3), (24, 40))) == pytest.approx(0.0, abs=1e-15)
    widths = Widths((1, 2), (24, 8))
    wanted = divergence(really_pruned(folder, ranking, widths), model, examples)
    assert scorer(widths) == pytest.approx(wanted, rel=1e-6)


def test_neither_batch_size_nor_memory_changes_a_score(
    tiny_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples, ranking = prepare(tiny_classifier("bert"))
    generous = [CandidateScorer(model, TASK, ranking, examples, size)(CASES[2]) for size in (1, 32)]
    monkeypatch.setattr(candidates, "OUTPUT_BYTES", 0)
    monkeypatch.setattr(candidates, "WEIGHT_BYTES", 1)
    scorer = CandidateScorer(model, TASK, ranking, examples, 4)
    mean = [scorer(CASES[2]) for _ in range(2)]
    np.testing.assert_allclose(generous + mean, generous[0], rtol=1e-6)
