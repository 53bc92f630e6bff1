"""A new small BERT classifier with a WordPiece tokenizer of its own, for tasks without pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compress.errors import UsageError
from compress.models.loading import save_torch
from compress.tasks.base import Task

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


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
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIALS), min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocabulary = cast("Mapping[str, int]", learner.get_vocab())
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=ordered, do_lower_case=True, model_max_length=max_length)
