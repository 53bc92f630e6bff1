"""Rows that stand in two splits: found by normalised text, then refused, dropped or allowed, and always counted."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence

from compress.data.pictures import Picture
from compress.data.splits import Overlap, Row
from compress.errors import DataError

LEARNT = ("train", "transfer")
"""Splits that a model learns from: rows are dropped here."""

HELD_OUT = ("validation", "test")
"""Splits that measure a model: never changed."""


def content_key(*texts: str | None) -> str:
    """Return the sha256 of a row's texts as a reader sees them: NFKC, casefolded, white space collapsed.

    Absent texts (None) are left out. Labels do not take part: the same sentence with two labels is an overlap as well.
    """
    parts = [_normalise(text) for text in texts if text is not None]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def resolve_overlaps(
    splits: Mapping[str, Sequence[Row]], mode: str, text_columns: Sequence[str] = ("text", "text_pair")
) -> tuple[dict[str, list[Row]], tuple[Overlap, ...]]:
    """Count the texts that stand in two splits, and act on them.

    Every held-out split is compared with every split that is learnt from, and validation with test. Under
    ``drop_from_train`` rows leave train (and transfer); a text in both validation and test stays in both, because
    dropping it would change a benchmark's test set, and is recorded as allowed.

    Args:
        splits: rows by split name.
        mode: ``error``, ``drop_from_train`` or ``allow``.
        text_columns: the columns that make up the text.

    Returns:
        The splits, and one record for each pair that was compared; counts are of distinct texts.

    Raises:
        DataError: in mode ``error``, some pair overlaps.
    """
    keys = {name: [row_key(row, text_columns) for row in rows] for name, rows in splits.items()}
    pairs = [(a, b) for a in LEARNT for b in HELD_OUT] + [HELD_OUT]
    overlaps = [
        Overlap(first, second, count, _action(first, count, mode))
        for first, second in pairs
        if first in keys and second in keys
        for count in [len(set(keys[first]) & set(keys[second]))]
    ]
    found = [f"{o.first}/{o.second}: {o.count}" for o in overlaps if o.count]
    if mode == "error" and found:
        raise DataError(
            "Some texts stand in more than one split.",
            value=", ".join(found),
            fix="Remove them, or set data.on_overlap: drop_from_train (removes them from train; the held-out splits "
            "stay as they are) or allow (keeps and reports them).",
        )
    kept = {name: list(rows) for name, rows in splits.items()}
    if mode == "drop_from_train":
        held_out = {key for name in HELD_OUT for key in keys.get(name, [])}
        for name in set(LEARNT) & set(splits):
            kept[name] = [row for row, key in zip(splits[name], keys[name], strict=True) if key not in held_out]
    return kept, tuple(overlaps)


def row_key(row: Row, text_columns: Sequence[str]) -> str:
    """Return the content key of a row whose texts or images stand in ``text_columns``."""
    cells = (row.get(name) for name in text_columns)
    return content_key(*(cell.digest if isinstance(cell, Picture) else cell for cell in cells))


def _action(first: str, count: int, mode: str) -> str:
    if not count:
        return "none found"
    return f"dropped from {first}" if mode == "drop_from_train" and first in LEARNT else "allowed"


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
