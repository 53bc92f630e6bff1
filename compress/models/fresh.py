"""A new small BERT classifier with a WordPiece tokenizer of its own, for tasks without pretrained weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import UsageError
from compress.models.loading import save_torch
from compress.tasks.base import Task

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PRIVATE = 0xF0000
"""First code point of Unicode's supplementary private use area A."""


def fresh_classifier(
    train_texts: Sequence[str],
    task: Task,
    *,
    vocab_size: int,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    seed: int,
    out: Path,
) -> None:
    """Train a tokenizer, make a randomly initialised BertForSequenceClassification, and write both.

    The same arguments give the same bytes.

    Args:
        train_texts: what the vocabulary is learned from; lower-cased.
        task: gives the head, and ``max_length`` rows of the position table.
        vocab_size: most entries of the vocabulary, special tokens included.
        layers: encoder layers.
        hidden: width of the encoder; a multiple of ``heads``.
        heads: attention heads per layer.
        intermediate: feed-forward neurons per layer.
        seed: of the initial weights.
        out: an empty folder.

    Raises:
        UsageError: ``hidden`` is not a multiple of ``heads``.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    if hidden % heads:
        raise UsageError(
            "The width of a fresh encoder is not a multiple of its heads.",
            value=f"hidden {hidden}, heads {heads}",
            fix="Take hidden = heads * 32 or heads * 64.",
        )
    tokenizer = _train_tokenizer(train_texts, vocab_size, task.max_length)
    tokenizer.save_pretrained(out)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=task.max_length,
        pad_token_id=tokenizer.pad_token_id,
        **task.config_options(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
    save_torch(model, out, tokenizer_from=out)


def _train_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int) -> Any:
    from transformers import BertTokenizer

    vocabulary = learn_wordpieces(texts, vocab_size - len(_SPECIALS))
    tokens = {token: i for i, token in enumerate((*_SPECIALS, *vocabulary))}
    return BertTokenizer(vocab=tokens, do_lower_case=True, model_max_length=max_length)


def learn_wordpieces(texts: Sequence[str], size: int) -> list[str]:
    """Learn a WordPiece vocabulary from lower-cased texts: characters first, then merges by frequency.

    ``tokenizers.trainers.WordPieceTrainer`` numbers its ``##`` pieces in the order of a randomly seeded hash
    map. Here every character inside a word is first replaced by a private one of its own, so that the plain
    BPE trainer, which sorts its alphabet, learns the same pieces in the same order each time.

    Args:
        texts: raw texts.
        size: pieces at most; all characters are kept in any case.

    Returns:
        Pieces in id order; those that continue a word begin with ``##``.
    """
    from tokenizers import Tokenizer, models, trainers

    words = _count_words(texts)
    alphabet = sorted({char for word in words for char in word})
    inner = {char: chr(_PRIVATE + i) for i, char in enumerate(alphabet)}
    outer = {mark: char for char, mark in inner.items()}
    marked = {word[0] + "".join(inner[char] for char in word[1:]): count for word, count in words.items()}
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False)
    learner.train_from_iterator((word for word, count in marked.items() for _ in range(count)), trainer)
    pieces = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    plain = ("".join(outer.get(char, char) for char in piece) for piece, _ in pieces)
    return [f"##{text}" if piece[0] in outer else text for text, (piece, _) in zip(plain, pieces, strict=True)]


def _count_words(texts: Sequence[str]) -> dict[str, int]:
    """Split texts as BERT does; return word -> count, sorted by word."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return dict(sorted(counts.items()))
