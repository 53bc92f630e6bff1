from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import expit, kl_div, softmax
from sklearn.metrics import accuracy_score, f1_score

from compress.errors import DataError, ModelError
from compress.tasks.base import task_from
from compress.tasks.text_classification import TextClassification, input_names

SINGLE = TextClassification(("no", "yes"), max_length=6)
MULTI = TextClassification(("a", "b", "c"), problem="multi_label")
NUMBER = TextClassification((), problem="regression")


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "type_vocab_size": 2}))
    return tmp_path


@pytest.mark.parametrize("task", [SINGLE, MULTI, NUMBER])
def test_options_round_trip(task):
    assert task_from(json.loads(json.dumps(task.dump()))) == task


def test_encoding_keeps_real_lengths_and_cuts_the_longer_text(folder):
    encoded = SINGLE.encode(
        folder,
        [
            {"text": "good film", "label": "yes"},
            {"text": "good good good good film", "text_pair": "bad", "label": "no"},
        ],
    )
    assert list(encoded.lengths) == [4, 6]
    assert encoded.inputs["input_ids"][0].tolist() == [2, 4, 6, 3]
    assert encoded.inputs["input_ids"][1].tolist() == [2, 4, 4, 3, 5, 3]
    assert encoded.inputs["token_type_ids"][1].tolist() == [0, 0, 0, 0, 1, 1]
    assert encoded.targets.tolist() == [1, 0]
    batch = encoded.batch([0, 1])
    assert batch["input_ids"][0].tolist() == [2, 4, 6, 3, 0, 0]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0]


def test_inputs_follow_the_model_not_the_tokenizer(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    assert input_names(folder) == ["input_ids", "attention_mask"]


def test_unlabelled_rows_have_no_targets(folder):
    assert SINGLE.encode(folder, [{"text": "good"}]).targets is None


def test_unknown_label_is_named(folder):
    with pytest.raises(DataError, match="labels that the model does not know") as caught:
        SINGLE.encode(folder, [{"text": "good", "label": "maybe"}])
    assert "maybe" in caught.value.value
    assert "yes" in caught.value.value


def test_missing_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        SINGLE.encode(tmp_path, [{"text": "x"}])


def test_scores_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    assert SINGLE.score(logits, targets).value == pytest.approx(accuracy_score(targets, logits.argmax(1)))
    logits, hot = rng.normal(size=(50, 3)), rng.integers(0, 2, (50, 3)).astype(np.float32)
    score = MULTI.score(logits, hot)
    assert score.value == pytest.approx(accuracy_score(hot, logits > 0))
    assert score.extra["micro_f1"] == pytest.approx(f1_score(hot, logits > 0, average="micro"))
    values, wanted = rng.normal(size=(50, 1)), rng.normal(size=50)
    score = NUMBER.score(values, wanted)
    assert score.value == pytest.approx(np.abs(values[:, 0] - wanted).mean())
    assert score.extra["pearson"] == pytest.approx(np.corrcoef(values[:, 0], wanted)[0, 1])
    assert score.direction == "lower"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_against_scipy(temperature):
    rng = np.random.default_rng(1)
    s, t = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    student, teacher = torch.tensor(s), torch.tensor(t)
    p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
    expected = temperature**2 * kl_div(p, q).sum(axis=1).mean()
    single = TextClassification(("a", "b", "c"))
    assert float(single.divergence(student, teacher, temperature)) == pytest.approx(expected)
    p, q = expit(t / temperature), expit(s / temperature)
    expected = temperature**2 * (kl_div(p, q) + kl_div(1 - p, 1 - q)).sum(axis=1).mean()
    assert float(MULTI.divergence(student, teacher, temperature)) == pytest.approx(expected)
    assert float(NUMBER.divergence(student, teacher, temperature)) == pytest.approx(((s - t) ** 2).mean())
    assert float(single.divergence(student, student, temperature)) == pytest.approx(0.0, abs=1e-9)


def test_decisions_and_agreement():
    a, b = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[3.0, 1.0], [1.0, 0.0]])
    assert SINGLE.agree(a, b).tolist() == [True, False]
    assert [row["label"] for row in SINGLE.predictions(a)] == ["no", "yes"]
    assert SINGLE.predictions(a)[0]["score"] == pytest.approx(softmax([2.0, 1.0])[0])
    assert MULTI.predictions(np.array([[5.0, -5.0, 5.0]]))[0]["label"] == ["a", "c"]
    assert MULTI.agree(np.array([[5.0, -5.0, 5.0]]), np.array([[1.0, -1.0, -1.0]])).tolist() == [False]
