"""Splits of a data set: rows, digests, and what was counted when they were compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        name: train, validation, test, calibration or transfer.
        rows: column -> value, renamed to the task's columns (``text``, ``text_pair``, ``label``).
        digest: sha256 over the normalised rows, in order.
        source: where it came from as the recipe writes it, never an expanded path.
    """

    name: str
    rows: Sequence[Row]
    digest: str
    source: str

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Overlap:
    """Distinct normalised texts that stand in two splits, and what was done about them."""

    first: str
    second: str
    count: int
    action: str
    """"none found", "allowed", "dropped from train" or "dropped from transfer"."""


@dataclass(frozen=True)
class TaskData:
    """Everything a run knows about its examples.

    Attributes:
        splits: by name; ``calibration`` is a stratified, seeded sample of train.
        labels: label names in id order, empty for regression.
        overlaps: one record for each pair of splits.
        synthetic: True for generated text; every report of it must say so.
    """

    splits: Mapping[str, Split]
    labels: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    synthetic: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Split:
        return self.splits[name]

    def __contains__(self, name: object) -> bool:
        return name in self.splits
