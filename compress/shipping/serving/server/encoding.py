"""From the tensors of a request to what the model takes, and from its outputs to an answer; NumPy and tokenizers alone.

Texts are tokenized as the model was measured, one example after another, at their real lengths. Whatever is wrong
with a request is found here, before the model runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TEXT, PAIR = "text", "text_pair"
LONGEST_TEXT = 100_000
"""Characters of one text: a model reads a few hundred tokens, so more than this is a mistake."""
_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_MASK = "attention_mask"
Example = dict[str, np.ndarray]
"""Input of the model -> its values for one example: (tokens,) int64 or (channels, height, width) float32."""


class BadRequest(Exception):
    """The request cannot be answered; the message is for whoever sent it."""


class Encoder:
    """What turns requests into examples, and logits into answers."""

    def __init__(self, folder: Path, task: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> None:
        """Open what lies beside the model.

        Args:
            folder: of ``tokenizer.json`` and ``config.json``.
            task: name, labels, problem, max_length, as ``artifact.json`` has them.
            inputs: name, dtype and shape of each input of the model, likewise.
        """
        self.labels = [str(label) for label in task["labels"]]
        self.problem = str(task.get("problem", "single_label"))
        self.inputs = {str(each["name"]): each for each in inputs}
        self.texts = "input_ids" in self.inputs
        config = json.loads((folder / "config.json").read_text("utf-8")) if (folder / "config.json").is_file() else {}
        if self.texts:
            from tokenizers import Tokenizer

            self._longest = int(task["max_length"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._tokenizer.enable_truncation(self._longest, strategy="longest_first")
            self._tokenizer.no_padding()
            vocabulary = int(config.get("vocab_size") or self._tokenizer.get_vocab_size())
            types = int(config.get("type_vocab_size") or 1)
            self._limits = {"input_ids": vocabulary, _MASK: 2, "token_type_ids": types}

    def examples(self, tensors: Mapping[str, np.ndarray]) -> list[Example]:
        """Turn the tensors of a request into one example for each row.

        Args:
            tensors: ``text`` and perhaps ``text_pair``, (n,) or (n, 1) objects, bytes or str; or what the model takes.

        Raises:
            BadRequest: wrong names, types, shapes or values.
        """
        if self.texts and TEXT in tensors:
            self._only(tensors, {TEXT, PAIR})
            return self.tokenize(*(_texts(name, tensors[name]) for name in (TEXT, PAIR) if name in tensors))
        self._only(tensors, set(self.inputs))
        return self._tokens(tensors) if self.texts else self._images(tensors)

    def tokenize(self, texts: list[str], pairs: list[str] | None = None) -> list[Example]:
        """Tokenize texts, or pairs of texts, cut to the longest input of the task, the longer of a pair first.

        Raises:
            BadRequest: not as many pairs as texts.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise BadRequest(f"{len(texts)} texts, but {len(pairs)} in {PAIR!r}.")
        encodings = self._tokenizer.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        return [
            {name: np.array(getattr(encoding, _COLUMNS[name]), dtype=np.int64) for name in self.inputs}
            for encoding in encodings
        ]

    def answers(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Decode (n, labels) float32 logits.

        Returns:
            ``logits``; ``label`` (n,): the most likely one, or a JSON list of all over 0.5 where several may hold;
            ``score``: (n,) its probability, (n, labels) probabilities where several may hold, (n,) the value where
            the task is a regression, which has no ``label``.
        """
        values = logits.astype(np.float64)
        if self.problem == "regression":
            return {"logits": logits, "score": logits.reshape(-1)}
        if self.problem == "multi_label":
            chances = 1.0 / (1.0 + np.exp(-values))
            chosen = [json.dumps([self.labels[i] for i in np.flatnonzero(row > 0.5)]) for row in chances]
            return {"logits": logits, "label": np.array(chosen, dtype=object), "score": chances.astype(np.float32)}
        weights = np.exp(values - values.max(axis=1, keepdims=True))
        chances = weights / weights.sum(axis=1, keepdims=True)
        best = chances.argmax(axis=1)
        named = np.array([self.labels[i] for i in best], dtype=object)
        return {"logits": logits, "label": named, "score": chances.max(axis=1).astype(np.float32)}

    def _only(self, tensors: Mapping[str, np.ndarray], known: set[str]) -> None:
        if strange := sorted(set(tensors) - known):
            ways = [", ".join(self.inputs), *([f"{TEXT} (with {PAIR} for pairs)"] if self.texts else [])]
            raise BadRequest(f"Unknown input {', '.join(strange)!r}; send {' or '.join(reversed(ways))}.")

    def _tokens(self, tensors: Mapping[str, np.ndarray]) -> list[Example]:
        ids = tensors.get("input_ids")
        if ids is None:
            raise BadRequest(f"Neither {TEXT!r} nor 'input_ids' was sent.")
        if ids.ndim != 2 or ids.size == 0:
            raise BadRequest(f"'input_ids' has the shape {list(ids.shape)}, not [rows, tokens].")
        if ids.shape[1] > self._longest:
            raise BadRequest(f"{ids.shape[1]} tokens; this model takes at most {self._longest}.")
        filled = {"input_ids": ids, _MASK: np.ones_like(ids), "token_type_ids": np.zeros_like(ids)} | dict(tensors)
        for name in self.inputs:
            array, limit = filled[name], self._limits[name]
            if array.dtype.kind not in "iu":
                raise BadRequest(f"{name!r} is not of whole numbers (INT64).")
            if array.shape != ids.shape:
                raise BadRequest(f"{name!r} has the shape {list(array.shape)}, 'input_ids' {list(ids.shape)}.")
            if array.min() < 0 or array.max() >= limit:
                raise BadRequest(f"{name!r} has values outside 0 to {limit - 1}.")
        ends = [int(np.flatnonzero(row)[-1]) + 1 if row.any() else 0 for row in filled[_MASK]]
        if 0 in ends:
            raise BadRequest(f"Row {ends.index(0)} has no token that counts: its {_MASK} is 0 throughout.")
        return [{name: filled[name][i, :end].astype(np.int64) for name in self.inputs} for i, end in enumerate(ends)]

    def _images(self, tensors: Mapping[str, np.ndarray]) -> list[Example]:
        (name, wanted), *_ = self.inputs.items()
        if name not in tensors:
            raise BadRequest(f"{name!r} was not sent.")
        array, shape = tensors[name], [int(size) for size in wanted["shape"][1:]]
        if list(array.shape[1:]) != shape or not len(array):
            raise BadRequest(f"{name!r} has the shape {list(array.shape)}, not {['rows', *shape]}.")
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise BadRequest(f"{name!r} is not of finite numbers (FP32).")
        return [{name: row} for row in array.astype(np.float32)]


def _texts(name: str, array: np.ndarray) -> list[str]:
    if array.dtype.kind != "O":
        raise BadRequest(f"{name!r} is not of type BYTES.")
    if array.ndim not in (1, 2) or array.size == 0 or array.size != len(array):
        raise BadRequest(f"{name!r} has the shape {list(array.shape)}, not [rows] or [rows, 1].")
    found = []
    for i, value in enumerate(array.reshape(-1)):
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else value
            text.encode("utf-8")
        except (UnicodeError, AttributeError):
            raise BadRequest(f"{name!r}, row {i}, is not a text in UTF-8.") from None
        if not text.strip():
            raise BadRequest(f"{name!r}, row {i}, is empty.")
        if len(text) > LONGEST_TEXT:
            raise BadRequest(f"{name!r}, row {i}, has {len(text):,} characters; at most {LONGEST_TEXT:,} are read.")
        found.append(text)
    return found
