"""A teacher's outputs: computed once, kept in the store, read again in every epoch and every later run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from compress.data.encoded import Encoded
from compress.distillation.internals import Internals, last_attention, read_internals
from compress.models.families import dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE_BYTES = 4 * 2**30
"""Token-wise outputs above this size are computed in every step instead of being stored."""
LOGITS = "teacher_logits"
RELATIONS = "teacher_relations"
_BATCH = 64


@dataclass(frozen=True)
class Terms:
    """Which outputs of a teacher are wanted besides its logits.

    Attributes:
        hidden: encoder layers, from 0, whose outputs are compared.
        relations: whether the last layer's queries, keys and values are.
    """

    hidden: tuple[int, ...] = ()
    relations: bool = False


@dataclass(frozen=True)
class TeacherOutputs:
    """Outputs for a list of examples; arrays may be memory-mapped.

    Attributes:
        logits: (n, labels) float32.
        tokens: column name -> (tokens of all examples, width) float16, in the order of the examples.
        offsets: (n + 1,) int64, where each example's tokens begin.
    """

    logits: np.ndarray
    tokens: Mapping[str, np.ndarray]
    offsets: np.ndarray

    def only(self, terms: Terms) -> TeacherOutputs:
        """Return these outputs without the token-wise ones that ``terms`` does not ask for."""
        names = {hidden_column(layer) for layer in terms.hidden} | ({RELATIONS} if terms.relations else set())
        kept = {name: array for name, array in self.tokens.items() if name in names}
        return TeacherOutputs(self.logits, kept, self.offsets)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Return one example's outputs: logits (labels,), token-wise ones (tokens, width)."""
        place = slice(self.offsets[index], self.offsets[index + 1])
        return {LOGITS: self.logits[index]} | {name: array[place] for name, array in self.tokens.items()}


def hidden_column(layer: int) -> str:
    return f"teacher_hidden_{layer}"


def token_bytes(teacher: PreTrainedModel, encoded: Encoded, terms: Terms) -> int:
    """Return how large the token-wise outputs would be on disk, in bytes."""
    return int(encoded.lengths.sum()) * 2 * sum(_widths(teacher, terms).values())


def write_outputs(
    teacher: PreTrainedModel,
    encoded: Encoded,
    terms: Terms,
    folder: Path,
    count: Callable[[int, int], None] | None = None,
) -> None:
    """Run the teacher over all examples and write one ``.npy`` per output.

    Args:
        teacher: in evaluation mode.
        encoded: the examples, with the teacher's own token ids.
        terms: token-wise outputs to write.
        folder: an empty folder.
        count: progress, called with (done, total).
    """
    offsets = np.concatenate([[0], np.cumsum(encoded.lengths)])
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=(int(offsets[-1]), width)
        )
        for name, width in _widths(teacher, terms).items()
    }
    logits: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    for indices in encoded.batches(_BATCH, by_length=True):
        batch = {name: torch.from_numpy(ids).to(teacher.device) for name, ids in encoded.batch(indices).items()}
        with torch.inference_mode():
            seen = read_internals(teacher, batch, terms.hidden, terms.relations)
        logits.append((indices, seen.logits.float().cpu().numpy()))
        for name, values in _columns(seen, terms).items():
            stored = values.to(torch.float16).cpu().numpy()
            for row, index in enumerate(indices):
                length = offsets[index + 1] - offsets[index]
                arrays[name][offsets[index] : offsets[index + 1]] = stored[row, :length]
        done += len(indices)
        if count is not None:
            count(done, len(encoded))
    for array in arrays.values():
        array.flush()
    np.save(folder / f"{LOGITS}.npy", _in_order(logits), allow_pickle=False)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    (folder / "columns.json").write_text(json.dumps(sorted(arrays)) + "\n", encoding="utf-8")


def read_outputs(folder: Path) -> TeacherOutputs:
    """Open what ``write_outputs`` wrote; token-wise arrays stay on disk."""
    names = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    tokens = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    logits = np.load(folder / f"{LOGITS}.npy", allow_pickle=False)
    return TeacherOutputs(logits, tokens, np.load(folder / "offsets.npy", allow_pickle=False))


def _widths(teacher: PreTrainedModel, terms: Terms) -> dict[str, int]:
    """Return column name -> features per token."""
    if not terms.hidden and not terms.relations:
        return {}
    hidden = dimensions(teacher.config.to_dict()).hidden
    widths = {hidden_column(layer): hidden for layer in terms.hidden}
    return widths | ({RELATIONS: 3 * int(last_attention(teacher).query.out_features)} if terms.relations else {})


def _columns(seen: Internals, terms: Terms) -> dict[str, torch.Tensor]:
    columns = {hidden_column(layer): states for layer, states in zip(terms.hidden, seen.hidden, strict=True)}
    return columns | ({RELATIONS: seen.relations} if seen.relations is not None else {})


def _in_order(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    out = np.empty((sum(len(indices) for indices, _ in parts), parts[0][1].shape[1]), dtype=np.float32)
    for indices, values in parts:
        out[indices] = values
    return out
