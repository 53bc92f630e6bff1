"""Encoded examples as plain numpy: what a measuring child reads, without torch or a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """The inputs of a split: token ids at their real lengths, or arrays of one fixed shape.

    Attributes:
        inputs: input name -> one array per example. Token inputs: int64 (length,), every name with the same
            lengths. Fixed-shape inputs (``pixel_values``): (channels, height, width) float32, the same for all.
        padding: token input -> the value that fills the tail of a shorter row; empty for fixed shapes.
        targets: what the task's metrics compare with (labels), one row per example; None if unlabelled.
        tokens: fixed shapes only: positions that the model makes of one example (patches of an image).
    """

    inputs: Mapping[str, Sequence[np.ndarray]]
    padding: Mapping[str, int]
    targets: np.ndarray | None = None
    tokens: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def fixed(self) -> bool:
        """Whether every example has the same shape, so that a batch is a stack."""
        return not self.padding

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, tokens of each example."""
        if self.fixed:
            return np.full(len(self), self.tokens, dtype=np.int64)
        return np.array([len(row) for row in next(iter(self.inputs.values()))], dtype=np.int64)

    def select(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """Return the examples at ``indices``, in that order."""
        inputs = {name: [rows[i] for i in indices] for name, rows in self.inputs.items()}
        targets = None if self.targets is None else self.targets[np.asarray(indices, dtype=np.int64)]
        return Encoded(inputs, self.padding, targets, self.tokens)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return input name -> (batch, longest) int64, padded on the right, or (batch, *shape) for fixed shapes."""
        if self.fixed:
            return {name: np.stack([rows[i] for i in indices]) for name, rows in self.inputs.items()}
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
        """Write one ``.npz``: concatenated ids, offsets and padding, or stacked arrays; targets; no pickle."""
        arrays: dict[str, np.ndarray] = {} if self.targets is None else {"targets": self.targets}
        if self.fixed:
            arrays |= {f"fixed/{name}": np.stack(list(rows)) for name, rows in self.inputs.items()}
            arrays["tokens"] = np.array(self.tokens)
        else:
            arrays |= {f"ids/{name}": np.concatenate(list(rows)) for name, rows in self.inputs.items()}
            arrays |= {f"pad/{name}": np.array(value) for name, value in self.padding.items()}
            arrays["offsets"] = np.concatenate([[0], np.cumsum(self.lengths)])
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Encoded:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            targets = file["targets"] if "targets" in file.files else None
            if "tokens" in file.files:
                stacked = {n[6:]: list(file[n]) for n in file.files if n.startswith("fixed/")}
                return cls(stacked, {}, targets, int(file["tokens"]))
            cuts = file["offsets"][1:-1]
            inputs = {n[4:]: np.split(file[n], cuts) for n in file.files if n.startswith("ids/")}
            padding = {n[4:]: int(file[n]) for n in file.files if n.startswith("pad/")}
            return cls(inputs, padding, targets)
