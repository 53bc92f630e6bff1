"""Vocabulary trimming: what is kept, what every tokenizer file says then, and equal pieces on covered text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from compress.distillation.internals import predict
from compress.errors import ModelError, UsageError
from compress.models.loading import load_torch, save_torch
from compress.pruning.coverage import compare_tokenizers
from compress.pruning.pieces import BytePair, Unigram, WordPiece, pieces_of
from compress.pruning.vocabulary import (
    Vocabulary,
    choose_vocabulary,
    count_tokens,
    trim_positions,
    trim_rows,
    write_tokenizer,
)
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("no", "yes"), max_length=24)
LETTERS = "abc"
KINDS = ("WordPiece", "BPE", "Unigram")
TEXTS = st.lists(st.text(LETTERS, min_size=1, max_size=9), min_size=1, max_size=6).map(" ".join)


def random_pieces(rng: np.random.Generator, count: int) -> list[str]:
    """Strings of two to four letters, each once."""
    made = {"".join(rng.choice(list(LETTERS), rng.integers(2, 5))) for _ in range(count)}
    return sorted(made, key=lambda piece: (len(piece), piece))


def word_piece(seed: int) -> Tokenizer:
    rng = np.random.default_rng(seed)
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]"]
    plain, inner = random_pieces(rng, 30), [f"##{piece}" for piece in random_pieces(rng, 30)]
    words = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *plain, *inner]
    vocabulary = {token: i for i, token in enumerate([*specials, *rng.permutation(words)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def byte_pair(seed: int) -> Tokenizer:
    """Byte-level, like RoBERTa; merges make the pieces through shorter ones that the vocabulary has."""
    rng = np.random.default_rng(seed)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = ["\u0120", *LETTERS], []
    while len(merges) < 50:
        left, right = rng.choice(known, 2)
        if len(left + right) <= 5 and (left, right) not in merges:
            merges.append((str(left), str(right)))
            known = list(dict.fromkeys([*known, left + right]))
    tokens = list(dict.fromkeys([*tokens, *known]))
    vocabulary = {str(token): i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram(seed: int) -> Tokenizer:
    rng = np.random.default_rng(seed)
    start = "\u2581"
    words = [start, *LETTERS, *random_pieces(rng, 30), *(start + piece for piece in random_pieces(rng, 20))]
    scores = np.round(-rng.uniform(1.0, 9.0, len(words)), 1)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, float(score)) for word, score in zip(words, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


MAKERS = {"WordPiece": word_piece, "BPE": byte_pair, "Unigram": unigram}


def write_folder(folder: Path, tokenizer: Tokenizer, padding: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": tokenizer.id_to_token(padding), "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "pad_token_id": padding}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    root = tmp_path_factory.mktemp("tokenizers")

    def make(kind: str, seed: int) -> Path:
        folder = root / f"{kind}-{seed}"
        return folder if folder.is_dir() else write_folder(folder, MAKERS[kind](seed), 0 if kind == "WordPiece" else 1)

    return make


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 40), corpus=st.lists(TEXTS, min_size=1, max_size=4), others=st.lists(TEXTS, max_size=8))
def test_covered_text_is_cut_into_the_same_tokens(
    kind: str, seed: int, corpus: list[str], others: list[str], folders: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, out = folders(kind, seed), tmp_path_factory.mktemp("out")
    vocabulary = choose_vocabulary(folder, count_tokens(folder, corpus), margin=2)
    write_tokenizer(folder, out, vocabulary=vocabulary, positions=None)
    before, after = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (folder, out))
    kept = set(vocabulary.tokens)
    for text in (*corpus, *others):
        old, new = before.encode(text), after.encode(text)
        if text in corpus or set(old.tokens) <= kept:
            assert new.tokens == old.tokens
            assert vocabulary.rows[new.ids].tolist() == old.ids
            assert before.decode(old.ids) == after.decode(new.ids)
        assert after.token_to_id("[UNK]" if kind == "WordPiece" else "<unk>") not in new.ids
    assert after.get_vocab() == {token: i for i, token in enumerate(vocabulary.tokens)}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10), text=st.text("ab\u00e9\u4e2d ", max_size=12))
@settings(max_examples=40, deadline=None)
def test_unknown_characters_stay_unknown(kind: str, seed: int, text: str, folders: Any, tmp_path_factory: Any) -> None:
    folder, out = folders(kind, seed), tmp_path_factory.mktemp("out")
    counts = count_tokens(folder, ["aa ab ba bb"])
    write_tokenizer(folder, out, vocabulary=choose_vocabulary(folder, counts, margin=0), positions=None)
    before, after = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (folder, out))
    unknown = "[UNK]" if kind == "WordPiece" else "<unk>"
    assert before.encode(text).ids.count(before.token_to_id(unknown)) == after.encode(text).ids.count(
        after.token_to_id(unknown)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_always_stays(kind: str, folders: Any) -> None:
    folder = folders(kind, 1)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = choose_vocabulary(folder, {}, margin=0).tokens
    pieces = pieces_of(document["model"])
    assert {entry["content"] for entry in document["added_tokens"]} <= set(tokens)
    assert pieces.alphabet() <= set(tokens)
    assert set(LETTERS) <= pieces.alphabet()
    if kind == "WordPiece":
        assert {f"##{letter}" for letter in LETTERS} <= set(tokens)
        assert "[unused0]" not in tokens
    if kind == "BPE":
        assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokens)
    if kind == "Unigram":
        assert isinstance(pieces, Unigram)
        assert min(pieces.scores, key=pieces.scores.__getitem__) in tokens
    whole = choose_vocabulary(folder, {}, margin=10_000)
    reserved = {"[unused0]"} if kind == "WordPiece" else set()
    assert set(whole.tokens) | reserved == pieces.ids.keys() | {entry["content"] for entry in document["added_tokens"]}


def test_margin_and_min_count(folders: Any) -> None:
    folder = folders("WordPiece", 2)
    pieces = pieces_of(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"])
    bare = choose_vocabulary(folder, {}, margin=0)
    first = [token for token in pieces.by_usefulness() if token not in bare.tokens][:3]
    assert set(choose_vocabulary(folder, {}, margin=3).tokens) == {*bare.tokens, *first}
    last = pieces.by_usefulness()[-1]
    counts = {last: 2, first[0]: 1}
    assert choose_vocabulary(folder, counts, margin=0, min_count=2).used == 1
    assert last in choose_vocabulary(folder, counts, margin=0, min_count=2).tokens
    assert (
        choose_vocabulary(folder, counts, margin=0, min_count=2).tokens
        != choose_vocabulary(folder, counts, margin=0).tokens
    )


def test_merges_are_closed_under_parents() -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "abb": 3, "ba": 4, "aab": 5}
    merges = [["a", "b"], ["ab", "b"], ["b", "a"], ["a", "ab"]]
    pieces = BytePair({"type": "BPE", "vocab": vocabulary, "merges": merges})
    assert pieces.close({"abb"}) == {"a", "b", "ab", "abb"}
    kept = {token: i for i, token in enumerate(("a", "b", "ab", "abb"))}
    assert pieces.rewrite(kept)["merges"] == [["a", "b"], ["ab", "b"]]
    old_form = BytePair({"type": "BPE", "vocab": vocabulary, "merges": ["a b", "ab b", "b a", "a ab"]})
    assert old_form.merges() == pieces.merges()
    marked = BytePair({"type": "BPE", "vocab": {}, "merges": [], "continuing_subword_prefix": "##"})
    assert marked.joined("a", "##b") == "ab"


def test_alphabet_of_the_corpus() -> None:
    pieces = WordPiece(
        {"vocab": {"a": 0, "##a": 1, "\u4e2d": 2, "##\u4e2d": 3, "##": 4}, "continuing_subword_prefix": "##"}
    )
    assert pieces.alphabet() == {"a", "##a", "\u4e2d", "##\u4e2d"}
    assert pieces.alphabet("a") == {"a", "##a"}


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be trimmed") as caught:
        pieces_of({"type": "WordLevel", "vocab": {}})
    assert "WordPiece, BPE, Unigram" in caught.value.fix


def test_rates(folders: Any, tmp_path: Path) -> None:
    folder = folders("WordPiece", 3)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    longest = max((token for token in document["model"]["vocab"] if token.isalpha()), key=len)
    write_tokenizer(folder, tmp_path, vocabulary=choose_vocabulary(folder, {}, margin=0), positions=None)
    same, rates = compare_tokenizers(folder, tmp_path, ["a b", f"a {longest}", "z"])
    assert same.tolist() == [True, False, True]
    assert rates["texts_changed"] == pytest.approx(1 / 3)
    assert rates["words_changed"] == pytest.approx(1 / 5)
    assert rates["unknown_before"] == pytest.approx(1 / 5)
    assert rates["tokens_before"] == pytest.approx(5 / 3)
    assert rates["tokens_after"] == pytest.approx((4 + len(longest)) / 3)
    assert rates["unknown_after"] == pytest.approx(1 / (4 + len(longest)))


def classifier(folder: Path, kind: str, seed: int) -> Path:
    """A random two-layer model of the family that has this kind of tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    family, padding = {"WordPiece": ("bert", 0), "BPE": ("roberta", 1), "Unigram": ("xlm-roberta", 1)}[kind]
    tokenizer = MAKERS[kind](seed)
    write_folder(folder, tokenizer, padding)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    options = {"max_position_embeddings": 66, "num_labels": 2, "initializer_range": 0.3, "pad_token_id": padding}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, vocab_size=tokenizer.get_vocab_size() + 3, **sizes, **options)
        model = AutoModelForSequenceClassification.from_config(config)
    save_torch(model, folder, tokenizer_from=folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_covered_text_gets_bit_equal_logits(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    folder, out = classifier(tmp_path / "whole", kind, 5), tmp_path / "trimmed"
    out.mkdir()
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(LETTERS), rng.integers(1, 8))) for _ in range(12)]
    rows = [{"text": " ".join(rng.choice(words, rng.integers(1, 6))), "text_pair": None} for _ in range(20)]
    rows += [{"text": rows[0]["text"], "text_pair": rows[1]["text"]}]
    vocabulary = choose_vocabulary(folder, count_tokens(folder, words + [f"a {word}" for word in words]), margin=1)
    model = load_torch(folder, TASK)
    trim_rows(model, vocabulary)
    trim_positions(model, TASK.max_length)
    write_tokenizer(folder, out, vocabulary=vocabulary, positions=TASK.max_length)
    save_torch(model, out, tokenizer_from=out)
    whole, trimmed = load_torch(folder, TASK), load_torch(out, TASK)
    assert trimmed.get_input_embeddings().num_embeddings == len(vocabulary.tokens) < vocabulary.total
    assert len(trimmed.base_model.embeddings.position_embeddings.weight) == 24 + (0 if kind == "WordPiece" else 2)
    first, second = TASK.encode(folder, rows), TASK.encode(out, rows)
    assert np.array_equal(predict(whole, first), predict(trimmed, second))
    opened = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert opened.model_max_length == 24
    assert opened(rows[0]["text"])["input_ids"] == second.inputs["input_ids"][0].tolist()
    assert opened.pad_token_id == trimmed.config.pad_token_id


def test_every_file_follows_the_new_ids(tmp_path: Path, folders: Any) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders("WordPiece", 4), source)
    settings_file = source / "tokenizer_config.json"
    settings_file.write_text(
        json.dumps(
            {
                "pad_token": "[PAD]",
                "model_max_length": 10**30,
                "added_tokens_decoder": {"2": {"content": "[UNK]"}, "3": {"content": "[CLS]"}},
            }
        ),
        encoding="utf-8",
    )
    before = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    before["truncation"] = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (source / "tokenizer.json").write_text(json.dumps(before), encoding="utf-8")
    vocabulary = choose_vocabulary(source, {}, margin=0)
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    assert ids["[UNK]"] == 1, "[unused0] went, so every id after it moved"
    (tmp_path / "out").mkdir()
    write_tokenizer(source, tmp_path / "out", vocabulary=vocabulary, positions=24)
    after = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert {entry["content"]: entry["id"] for entry in after["added_tokens"]} == {
        token: ids[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    }
    special = after["post_processor"]["special_tokens"]
    assert (special["[CLS]"]["ids"], special["[SEP]"]["ids"]) == ([ids["[CLS]"]], [ids["[SEP]"]])
    assert (after["padding"]["pad_id"], after["truncation"]["max_length"]) == (ids["[PAD]"], 24)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert after[part] == before[part]
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert said["model_max_length"] == 24
    assert {key: entry["content"] for key, entry in said["added_tokens_decoder"].items()} == {
        "1": "[UNK]",
        "2": "[CLS]",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_head_is_cut_with_the_table(tied: bool) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=20, tie_word_embeddings=tied, **sizes)).eval()
    if not tied:
        model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(20, 8))
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    rows = np.array([0, 3, 4, 9, 19])
    with torch.no_grad():
        whole = model(torch.tensor([[3, 9, 19]])).logits[..., rows]
        trim_rows(model, Vocabulary(("p", "a", "b", "c", "d"), rows, 20, 4))
        assert torch.equal(model(torch.tensor([[1, 3, 4]])).logits, whole)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert (model.config.vocab_size, model.config.pad_token_id) == (5, 0)


def test_roberta_keeps_its_padding_id(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", "BPE", 1)
    model = load_torch(folder, TASK)
    assert choose_vocabulary(folder, {}, margin=0).tokens[:2] == ("<s>", "<pad>")
    with pytest.raises(UsageError, match="numbers positions from it"):
        trim_rows(model, Vocabulary(("<pad>", "a"), np.array([1, 9]), 300, 1))


def test_a_table_cannot_be_made_longer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shorter than asked for") as caught:
        trim_positions(load_torch(classifier(tmp_path / "model", "BPE", 1), TASK), 65)
    assert caught.value.value == "65 tokens of 64"
