"""The three kinds of subword models, and what each of them needs to cut covered text the same way with fewer pieces.

Let V be a vocabulary and K a part of it, closed as below. Text is *covered* when every token that the model with
V cuts it into stands in K. Then the model with K cuts it into the same tokens:

- **WordPiece** takes the longest piece that matches, from left to right. The piece that V takes is in K, and K
  has no longer one, since K has nothing that V has not; so K takes it too, and the rest follows by induction.
- **BPE** joins the neighbours whose merge ranks first, again and again. K keeps, with every token, the parents
  of all merges that give it, and of the merges exactly those whose parents and result are in K, in their order.
  What V joins on its way to tokens of K are ancestors of these tokens, so each of its merges is there, and as
  no merge was added, each is still the first in rank; and where V finds nothing left to join, neither does K.
- **Unigram** takes the path of highest total score. The paths of K are paths of V with the same scores, so the
  best path of V, whose pieces K has, stays the best; ties go to the piece that starts first in both. The score
  of an unknown character is the lowest score of all pieces minus 10, so the piece that has it always stays.

A word that V does not know stays unknown where the alphabet is kept whole and V has every character of its
pieces as a piece of its own, as trained vocabularies do.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from compress.errors import ModelError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_RESERVED = re.compile(r"\[[^\[\]]+\]|<[^<>]+>")
"""Entries that no text gives: ``[unused7]``, ``<unused7>``."""
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""


class Pieces(ABC):
    """One kind of subword model, read from the entry ``model`` of a ``tokenizer.json``.

    Args:
        model: the entry; it is not changed.
    """

    kind: ClassVar[str]

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.model = model

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id."""
        return dict(self.model["vocab"])

    @property
    def unknown(self) -> str | None:
        """The token of what no other token covers."""
        return self.model.get("unk_token")

    def needed(self) -> set[str]:
        """Return the tokens that the algorithm itself cannot do without."""
        return {token for token in self.ids if token == self.unknown or _BYTE.fullmatch(token)}

    @abstractmethod
    def letter(self, token: str) -> str:
        """Return the token's text without the marks that say where in a word it stands."""

    def alphabet(self, letters: Iterable[str] | None = None) -> set[str]:
        """Return the tokens of a single character, in every form, of the given characters or of all."""
        wanted = None if letters is None else set(letters)
        plain = {token: self.letter(token) for token in self.ids}
        return {token for token, text in plain.items() if len(text) <= 1 and (wanted is None or text in wanted)}

    def close(self, tokens: set[str]) -> set[str]:
        """Return the tokens and all others that they are made through."""
        return set(tokens)

    def by_usefulness(self) -> list[str]:
        """Return the tokens, the most generally useful first."""
        return [token for token in self._ranked() if not _RESERVED.fullmatch(token)]

    def _ranked(self) -> list[str]:
        """By id: BERT numbers its pieces by frequency, BPE by the order in which they were learned."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def rewrite(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the entry ``model`` for fewer tokens, with their new ids (0, 1, ... in this order)."""
        return {**self.model, "vocab": dict(ids)}


class WordPiece(Pieces):
    """BERT, ELECTRA, DistilBERT: whole words, and pieces that continue a word behind ``##``."""

    kind = "WordPiece"

    def letter(self, token: str) -> str:
        prefix = str(self.model["continuing_subword_prefix"])
        return token[len(prefix) :] if token.startswith(prefix) and len(token) > len(prefix) else token


class BytePair(Pieces):
    """RoBERTa and most decoders: characters or bytes, joined by ranked merges."""

    kind = "BPE"

    def letter(self, token: str) -> str:
        token = token.removesuffix(self.model.get("end_of_word_suffix") or "\0")
        return token.removeprefix(self.model.get("continuing_subword_prefix") or "\0")

    def alphabet(self, letters: Iterable[str] | None = None) -> set[str]:
        """Return all single characters whatever is asked for: they may be bytes, which every text needs."""
        return super().alphabet()

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges, first in rank first; files hold them as pairs, or as one string with a space."""
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in self.model["merges"])
        return [(left, right) for left, right in pairs]

    def joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.model.get("continuing_subword_prefix") or "\0")

    def close(self, tokens: set[str]) -> set[str]:
        parents: dict[str, set[str]] = {}
        for left, right in self.merges():
            parents.setdefault(self.joined(left, right), set()).update((left, right))
        closed, waiting = set(tokens), list(tokens)
        while waiting:
            fresh = parents.get(waiting.pop(), set()) - closed
            closed |= fresh
            waiting.extend(fresh)
        return closed

    def rewrite(self, ids: Mapping[str, int]) -> dict[str, Any]:
        merges = [[a, b] for a, b in self.merges() if {a, b, self.joined(a, b)} <= ids.keys()]
        return {**self.model, "vocab": dict(ids), "merges": merges}


class Unigram(Pieces):
    """XLM-R, CamemBERT and other SentencePiece models: pieces with log probabilities."""

    kind = "Unigram"

    @property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, (piece, _) in enumerate(self.model["vocab"])}

    @property
    def scores(self) -> dict[str, float]:
        return {piece: float(score) for piece, score in self.model["vocab"]}

    @property
    def unknown(self) -> str | None:
        number = self.model.get("unk_id")
        return None if number is None else str(self.model["vocab"][number][0])

    def needed(self) -> set[str]:
        scores = self.scores
        return super().needed() | {min(scores, key=scores.__getitem__)}

    def letter(self, token: str) -> str:
        return token.removeprefix(_WORD_START)

    def _ranked(self) -> list[str]:
        scores = self.scores
        return sorted(scores, key=lambda piece: -scores[piece])

    def rewrite(self, ids: Mapping[str, int]) -> dict[str, Any]:
        scores = self.scores
        changed = {**self.model, "vocab": [[piece, scores[piece]] for piece in ids]}
        return changed if self.unknown is None else {**changed, "unk_id": ids[self.unknown]}


_KINDS = {cls.kind: cls for cls in (WordPiece, BytePair, Unigram)}


def pieces_of(model: Mapping[str, Any]) -> Pieces:
    """Return the pieces of the entry ``model`` of a ``tokenizer.json``.

    Raises:
        ModelError: another kind of model.
    """
    kind = str(model.get("type"))
    if kind not in _KINDS:
        raise ModelError(
            "The vocabulary of this kind of tokenizer cannot be trimmed.",
            value=kind,
            fix=f"Use `vocabulary: all` to trim positions only; trimmed are {', '.join(_KINDS)}.",
        )
    return _KINDS[kind](model)
