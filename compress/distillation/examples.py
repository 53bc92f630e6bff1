"""Examples as a torch data set: inputs at their real lengths, targets, and what a teacher said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from compress.data.encoded import Encoded
from compress.distillation.teacher import TeacherOutputs

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
TARGETS = "targets"
LABELLED = "labelled"


class Examples(Dataset[dict[str, np.ndarray]]):  # type: ignore[misc]
    """Encoded examples with targets, and optionally with a teacher's outputs.

    Args:
        encoded: token ids or arrays of one shape, with ``targets``.
        unlabelled: further examples whose targets are unknown.
        teacher: outputs for the labelled, then the unlabelled examples.
    """

    def __init__(
        self, encoded: Encoded, unlabelled: Encoded | None = None, teacher: TeacherOutputs | None = None
    ) -> None:
        self.encoded = encoded if unlabelled is None else join(encoded, unlabelled)
        self.padding = dict(self.encoded.padding)
        self.labelled = len(encoded)
        self.teacher = teacher
        self._targets = np.asarray(encoded.targets)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [int(length) for length in self.encoded.lengths]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        item = {name: rows[index] for name, rows in self.encoded.inputs.items()}
        known = index < self.labelled
        item[TARGETS] = self._targets[index] if known else np.zeros_like(self._targets[0])
        item[LABELLED] = np.array(known)
        if self.teacher is not None:
            item |= self.teacher.row(index)
        return item

    def collate(self, items: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Pad what runs along tokens to the longest item and stack the rest.

        Returns:
            Token inputs and token-wise teacher outputs: (batch, longest[, width]); the rest: (batch, ...).
        """
        along_tokens = {*self.padding, *(self.teacher.tokens if self.teacher is not None else ())}
        out = {}
        for name in items[0]:
            arrays = [item[name] for item in items]
            if name in along_tokens:
                longest = max(map(len, arrays))
                arrays = [_pad(array, longest, self.padding.get(name, 0)) for array in arrays]
            out[name] = torch.from_numpy(np.stack(arrays))
        return out


def join(first: Encoded, second: Encoded) -> Encoded:
    """Return the examples of both, without targets."""
    inputs = {name: [*rows, *second.inputs[name]] for name, rows in first.inputs.items()}
    return Encoded(inputs, first.padding, tokens=first.tokens)


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the model itself takes of a batch."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def _pad(array: np.ndarray, length: int, value: int) -> np.ndarray:
    out = np.full((length, *array.shape[1:]), value, dtype=array.dtype)
    out[: len(array)] = array
    return out
