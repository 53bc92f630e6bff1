"""What is learned from: rows as the student and the teacher read them, and whether their tokens correspond."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.encoded import Encoded
from compress.distillation.augmentation import augment
from compress.distillation.examples import join
from compress.errors import DataError, UsageError
from compress.tasks.base import Row, Task, task_from


@dataclass(frozen=True)
class Material:
    """The rows to learn from, and how they are encoded for one model.

    Attributes:
        labelled: rows with a label.
        unlabelled: rows that only the teacher labels.
        task: with the length to which examples are cut.
    """

    labelled: Sequence[Row]
    unlabelled: Sequence[Row]
    task: Task

    def encode(self, folder: Path) -> tuple[Encoded, Encoded | None]:
        """Return the labelled examples, and the unlabelled ones if there are any."""
        bare = [{**row, "label": None} for row in self.unlabelled]
        return self.task.encode(folder, self.labelled), self.task.encode(folder, bare) if bare else None

    def encode_joined(self, folder: Path) -> Encoded:
        """Return all examples, the labelled ones first, without targets."""
        labelled, unlabelled = self.encode(folder)
        return labelled if unlabelled is None else join(labelled, unlabelled)


def gather(
    train: Sequence[Row], transfer: Sequence[Row], task: Task, *, max_length: int | None, variants: int, seed: int
) -> Material:
    """Put training rows, transfer rows and variants of the training rows together.

    Args:
        train: rows, some perhaps without a label.
        transfer: unlabelled rows.
        task: columns and lengths.
        max_length: longest training example in tokens; None: the task's.
        variants: made of every training row, see ``augment``.
        seed: of the variants.

    Raises:
        DataError: no training row has a label.
        UsageError: variants are asked for, but no row has a text.
    """
    labelled = [row for row in train if row.get("label") is not None]
    if not labelled:
        raise DataError("The training split has no labelled row.", fix="Give `data.train` a label column.")
    unlabelled = [*(row for row in train if row.get("label") is None), *transfer]
    if variants:
        made = augment(train, task.columns, variants, seed)
        if not made:
            raise UsageError(
                "No training example can be changed by words: there is no text in it.",
                value=f"augment {variants}; task {task.name}",
                fix="Leave `augment` out; give unlabelled examples in `data.transfer` instead.",
            )
        unlabelled += made
    if max_length is not None:
        task = task_from(task.dump() | {"max_length": min(max_length, task.max_length)})
    return Material(labelled, unlabelled, task)


def same_inputs(first: Encoded, second: Encoded) -> bool:
    """Say whether two models read exactly the same arrays."""
    if first is second:
        return True
    return set(first.inputs) == set(second.inputs) and all(
        _equal(rows, second.inputs[name]) for name, rows in first.inputs.items()
    )


def same_tokens(first: Encoded, second: Encoded, first_folder: Path, second_folder: Path) -> bool:
    """Say whether two models cut every text into the same tokens, so that their states correspond one by one.

    Ids may differ: a pruned vocabulary numbers the same tokens anew.

    Args:
        first, second: the same texts.
        first_folder, second_folder: whose ``tokenizer.json`` encoded them.
    """
    if same_inputs(first, second):
        return True
    if "input_ids" not in first.inputs or "input_ids" not in second.inputs:
        return False
    ids, others = first.inputs["input_ids"], second.inputs["input_ids"]
    translate = _translation(first_folder, second_folder)
    return all(len(a) == len(b) and np.array_equal(translate[a], b) for a, b in zip(ids, others, strict=True))


def hash_inputs(encoded: Encoded) -> str:
    """Return the sha256 of everything that a model reads."""
    digest = hashlib.sha256(encoded.lengths.tobytes())
    for name in sorted(encoded.inputs):
        digest.update(name.encode())
        for row in encoded.inputs[name]:
            digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


def _equal(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _translation(first: Path, second: Path) -> np.ndarray:
    """Return (ids of the first tokenizer,) int64: the second one's id of the same token, -1 where it has none."""
    from tokenizers import Tokenizer

    source, goal = (Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (first, second))
    out = np.full(max(source.values()) + 1, -1, dtype=np.int64)
    for token, index in source.items():
        out[index] = goal.get(token, -1)
    return out
