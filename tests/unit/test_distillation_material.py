"""Augmentation, tokens that correspond, layers that are compared, defaults, and several seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from compress.data.encoded import Encoded
from compress.distillation.augmentation import augment, cut_span, drop_units, swap_neighbours
from compress.distillation.defaults import choose_epochs, choose_rate, halvings
from compress.distillation.material import gather, same_inputs, same_tokens
from compress.distillation.seeds import best_of, describe, train_seeds
from compress.distillation.teacher import Terms, token_bytes
from compress.distillation.teacher_store import teacher_outputs
from compress.distillation.terms import compare, pair_layers
from compress.distillation.training import History, Place, _judge
from compress.errors import UsageError
from compress.models.families import encoder_layers
from compress.models.loading import load_torch
from compress.models.structure import keep_units
from compress.store import Store
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [
    {"text": "the film was great and good .", "label": "good"},
    {"text": "she works a fine slow order", "label": "fine"},
    {"text": "great", "label": "good"},
    {"text": "我今天非常高兴", "label": "good"},
]
WEIGHTS = {"task": 0.1, "logits": 0.9, "hidden": None, "relations": 0.0}


def test_variants_are_new_unlabelled_and_the_same_each_time() -> None:
    variants = augment(ROWS, TASK.columns, 5, seed=3)
    assert variants == augment(ROWS, TASK.columns, 5, seed=3)
    assert variants != augment(ROWS, TASK.columns, 5, seed=4)
    assert all(row["label"] is None for row in variants)
    texts = [row["text"] for row in variants]
    assert len(set(texts)) == len(texts) > 10
    assert not set(texts) & {row["text"] for row in ROWS}
    assert all(text.strip() for text in texts)
    assert ROWS[0]["label"] == "good"


def test_two_texts_are_spliced_only_with_the_same_label() -> None:
    rows = [{"text": f"{x}1 {x}2 {x}3 {x}4", "label": label} for x, label in zip("abcd", "ppqq", strict=True)]
    mixed = set()
    for row in augment(rows, TASK.columns, 20, seed=0):
        letters = {word[0] for word in row["text"].split()}
        assert letters <= {"a", "b"} or letters <= {"c", "d"}
        mixed |= letters if len(letters) == 2 else set()
    assert mixed == set("abcd")


def test_a_pair_changes_in_one_column() -> None:
    rows = [{"text": "the film was great", "text_pair": "it works fine and slow", "label": "good"}]
    for row in augment(rows, TASK.columns, 8, seed=0):
        assert sum(row[name] != rows[0][name] for name in TASK.columns) == 1


def test_changes_keep_the_order_and_never_empty_a_text() -> None:
    rng = np.random.default_rng(0)
    units = [str(i) for i in range(20)]
    for _ in range(50):
        dropped = drop_units(units, rng)
        assert dropped == sorted(dropped, key=int)
        assert len(dropped) < 20
        assert sorted(swap_neighbours(units, rng)) == sorted(units)
        span = cut_span(units, rng)
        assert span == units[int(span[0]) : int(span[0]) + len(span)]
        assert 8 <= len(span) <= 18
    assert cut_span(["one"], rng) == ["one"]


def test_transfer_and_variants_are_learned_from_together() -> None:
    extra = [{"text": "a dull film", "label": None}]
    material = gather(ROWS, extra, TASK, max_length=8, variants=2, seed=0)
    assert list(material.labelled) == ROWS
    assert material.unlabelled[0] == extra[0]
    assert list(material.unlabelled[1:]) == augment(ROWS, TASK.columns, 2, 0)
    assert material.task.max_length == 8


def test_tokens_match_although_their_ids_differ(tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_classifier()
    own = TASK.encode(folder, ROWS[:3])
    description = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    kept = [token for token in vocabulary if token not in {"card", "train"}]
    description["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    ids = Tokenizer.from_str(json.dumps(description))
    encodings = ids.encode_batch([row["text"] for row in ROWS[:3]])
    moved = Encoded({"input_ids": [np.array(e.ids, dtype=np.int64) for e in encodings]}, {"input_ids": 0})
    assert not same_inputs(moved, own)
    assert same_tokens(moved, own, tmp_path, folder)
    other = Encoded({"input_ids": [row[:-1] for row in moved.inputs["input_ids"]]}, {"input_ids": 0})
    assert not same_tokens(other, own, tmp_path, folder)


def test_the_hidden_term_is_there_where_it_can_be(tiny_classifier: Callable[..., Path]) -> None:
    teacher, student = (load_torch(tiny_classifier("bert", pruned), TASK) for pruned in (False, True))
    assert compare(WEIGHTS, student, teacher, True).weights["hidden"] == 10
    assert compare(WEIGHTS, student, teacher, True).terms == Terms((0, 1))
    assert compare(WEIGHTS, student, teacher, False).terms == Terms()
    with pytest.raises(UsageError, match="different tokens"):
        compare(WEIGHTS | {"hidden": 1.0}, student, teacher, False)


def test_an_empty_layer_hands_its_target_to_the_state_that_is_read_next(tiny_classifier: Callable[..., Path]) -> None:
    def emptied(*gone: int) -> tuple[tuple[int, int], ...]:
        model = load_torch(tiny_classifier(), TASK)
        layers = encoder_layers(model)
        for position in gone:
            keep_units(layers[position], (), ())
        return pair_layers(model, 2)

    assert emptied() == ((0, 0), (1, 1))
    assert emptied(1) == ((1, 1),)
    assert emptied(0) == ((1, 1),)
    assert emptied(0, 1) == ()


def test_defaults_follow_what_was_removed_and_what_the_data_gives(tiny_classifier: Callable[..., Path]) -> None:
    teacher, pruned = (load_torch(tiny_classifier("bert", pruned), TASK) for pruned in (False, True))
    assert halvings(teacher, teacher) == 0
    own, whole = (sum(p.numel() for p in model.bert.encoder.parameters()) for model in (pruned, teacher))
    assert halvings(pruned, teacher) == pytest.approx(np.log2(whole / own))
    assert [choose_rate(x) for x in (0, 1, 2, 3)] == [1e-4, 1.4e-4, 2e-4, 2.8e-4]
    assert choose_epochs(0, 32 * 100, 32, new=False) == 4
    assert choose_epochs(1, 32 * 100, 32, new=False) == 8
    assert choose_epochs(1, 32 * 100, 32, new=True) == 16
    assert choose_epochs(0, 10, 32, new=False) == 40
    assert choose_epochs(0, 10**7, 32, new=False) == 2


def test_ties_go_to_the_epoch_closest_to_the_teacher_and_scores_come_first() -> None:
    targets, teacher = np.array([0, 1]), np.array([[2.0, 0, 0], [0, 2.0, 0]], dtype=np.float32)
    near, far = teacher * 0.9, teacher * 0.1
    wrong = np.array([[2.0, 0, 0], [2.001, 2.0, 0]], dtype=np.float32)
    ranks = [_judge(TASK, logits, targets, teacher)["rank"] for logits in (near, far, wrong)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[1] > 0.5 + 0.25 > ranks[2]
    assert _judge(TASK, far, targets, None) == {"score": 1.0, "rank": 1.0}


def test_a_fuller_entry_serves_every_later_question(tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    folder, store, place = tiny_classifier(), Store(tmp_path / "store"), Place(tmp_path)
    model, encoded = load_torch(folder, TASK), TASK.encode(folder, ROWS[:3])
    seen: list[str] = []
    place = replace(place, emit=lambda message, done=None, total=None: seen.append(message))
    first = teacher_outputs(store, "digest", model, encoded, Terms((1,)), place)
    assert set(first.tokens) == {"teacher_hidden_1"}
    assert seen
    seen.clear()
    for terms in (Terms((0, 1)), Terms((0,)), Terms()):
        found = teacher_outputs(store, "digest", model, encoded, terms, place)
        assert len(found.tokens) == len(terms.hidden)
        np.testing.assert_array_equal(found.logits, first.logits)
    assert not seen
    assert token_bytes(model, encoded, Terms((0, 1))) == 2 * 2 * 32 * int(encoded.lengths.sum())
    teacher_outputs(store, "other", model, encoded, Terms(), place)
    assert seen


def _history(score: float, divergence: float) -> History:
    return History("accuracy", 0.5, (score,), (1.0,), (divergence,), 1)


def test_several_seeds_are_recorded_resumed_and_the_best_is_kept(tmp_path: Path) -> None:
    outcomes = {5: _history(0.8, 0.3), 6: _history(0.9, 0.2), 7: _history(0.9, 0.1)}
    runs: list[int] = []

    def run(student: torch.nn.Module, place: Place) -> History:
        place.checkpoints.mkdir(exist_ok=True)
        (place.checkpoints / "checkpoint-1").mkdir()
        runs.append(place.seed)
        if runs == [5, 6]:
            raise KeyboardInterrupt
        with torch.no_grad():
            student.weight.fill_(place.seed)
        return outcomes[place.seed]

    student, place = torch.nn.Linear(2, 2), Place(tmp_path, seed=5)
    before = student.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        train_seeds(student, run, 3, place)
    (tmp_path / "seed-6" / "checkpoint-1").rmdir()
    trials = train_seeds(student, run, 3, place)
    assert runs == [5, 6, 6, 7]
    assert torch.equal(student.weight, before)
    assert [trial.history for trial in trials] == list(outcomes.values())
    assert [float(trial.student.weight.detach()[0, 0]) for trial in trials] == [5, 6, 7]
    assert best_of(trials, higher=True).seed == 7
    assert best_of(trials, higher=False).seed == 5
    notes = describe(trials)
    assert notes["validation_by_seed"] == {"5": 0.8, "6": 0.9, "7": 0.9}
    assert notes["validation_deviation"] == pytest.approx(np.std([0.8, 0.9, 0.9], ddof=1), abs=1e-6)
    assert describe(trials[:1]) == {}
    assert not list(tmp_path.glob("*/checkpoint-*"))
