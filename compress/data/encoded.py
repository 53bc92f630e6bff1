"""Tokenized examples as plain numpy: what a measuring child reads, without torch or a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split at their real lengths.

    Attributes:
        inputs: input name -> one int64 array (length,) per example; every name has the same lengths.
        padding: input name -> the value that fills the tail of a shorter row.
        targets: what the task's metrics compare with (labels), one row per example; None if unlabelled.
    """

    inputs: Mapping[str, Sequence[np.ndarray]]
    padding: Mapping[str, int]
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, tokens of each example."""
        return np.array([len(row) for row in next(iter(self.inputs.values()))], dtype=np.int64)

    def select(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """Return the examples at ``indices``, in that order."""
        inputs = {name: [rows[i] for i in indices] for name, rows in self.inputs.items()}
        targets = None if self.targets is None else self.targets[np.asarray(indices, dtype=np.int64)]
        return Encoded(inputs, self.padding, targets)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return input name -> (batch, longest) int64, padded on the right to the longest row."""
        width = max(len(next(iter(self.inputs.values()))[i]) for i in indices)
        out = {}
        for name, rows in self.inputs.items():
            array = np.full((len(indices), width), self.padding[name], dtype=np.int64)
            for row, index in enumerate(indices):
                array[row, : len(rows[index])] = rows[index]
            out[name] = array
        return out

    def batches(self, size: int, *, by_length: bool = False) -> list[np.ndarray]:
        """Return index arrays of at most ``size`` examples; ``by_length`` groups similar lengths."""
        order = np.argsort(self.lengths, kind="stable") if by_length else np.arange(len(self))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def save(self, path: Path) -> None:
        """Write one ``.npz``: concatenated ids, offsets, padding and targets; no pickle."""
        arrays: dict[str, np.ndarray] = {
            f"ids/{name}": np.concatenate(list(rows)) for name, rows in self.inputs.items()
        }
        arrays |= {f"pad/{name}": np.array(value) for name, value in self.padding.items()}
        arrays["offsets"] = np.concatenate([[0], np.cumsum(self.lengths)])
        if self.targets is not None:
            arrays["targets"] = self.targets
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Encoded:
        with np.load(path, allow_pickle=False) as file:
            cuts = file["offsets"][1:-1]
            inputs = {n[4:]: np.split(file[n], cuts) for n in file.files if n.startswith("ids/")}
            padding = {n[4:]: int(file[n]) for n in file.files if n.startswith("pad/")}
            return cls(inputs, padding, file["targets"] if "targets" in file.files else None)
