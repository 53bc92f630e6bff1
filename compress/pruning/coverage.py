"""What a smaller vocabulary does to texts: unknown tokens, words cut differently, longer inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.pruning.pieces import pieces_of
from compress.pruning.vocabulary import TOKENIZER


def compare_tokenizers(before: Path, after: Path, texts: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Cut texts with the tokenizers of two folders and compare the pieces, uncut and without special tokens.

    Args:
        before: folder of the original tokenizer.json.
        after: folder of the trimmed one.
        texts: at least one.

    Returns:
        (n,) bool, whether a text's pieces are the same strings; and the rates: ``texts``, ``texts_changed``
        and ``words_changed`` as shares, ``unknown_before`` and ``unknown_after`` as shares of tokens,
        ``tokens_before`` and ``tokens_after`` as means per text.
    """
    first, second = _cut(before, texts), _cut(after, texts)
    same = np.array([a.tokens == b.tokens for a, b in zip(first, second, strict=True)], dtype=bool)
    words = changed = 0
    for a, b in zip(first, second, strict=True):
        old, new = _words(a), _words(b)
        words += len(old)
        changed += sum(old[i] != new.get(i) for i in old)
    return same, {
        "texts": len(texts),
        "texts_changed": float(1.0 - same.mean()),
        "words_changed": changed / max(words, 1),
        "unknown_before": _unknown_share(before, first),
        "unknown_after": _unknown_share(after, second),
        "tokens_before": _mean_length(first),
        "tokens_after": _mean_length(second),
    }


def _cut(folder: Path, texts: Sequence[str]) -> list[Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode_batch(list(texts), add_special_tokens=False))


def _words(encoding: Any) -> dict[int, list[str]]:
    """Return the pieces of each word of a text, by the word's number."""
    words: dict[int, list[str]] = {}
    for number, token in zip(encoding.word_ids, encoding.tokens, strict=True):
        if number is not None:
            words.setdefault(number, []).append(token)
    return words


def _unknown_share(folder: Path, encodings: Sequence[Any]) -> float:
    """Return the share of unknown tokens; by id, since Unigram reports an unknown token as the text it stands for."""
    pieces = pieces_of(json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["model"])
    unknown = None if pieces.unknown is None else pieces.ids[pieces.unknown]
    tokens = sum(len(encoding.ids) for encoding in encodings)
    unknowns = sum(int(encoding.ids.count(unknown)) for encoding in encodings)
    return unknowns / max(tokens, 1)


def _mean_length(encodings: Sequence[Any]) -> float:
    return float(np.mean([len(encoding.tokens) for encoding in encodings]))
