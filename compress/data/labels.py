"""Labels as data files write them, read as the task's problem needs them, and checked against the known names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from compress.data.splits import Row
from compress.errors import DataError, did_you_mean

Label = str | list[str] | float

_UNNAMED = re.compile(r"LABEL_\d+")
"""What a model calls a label that nobody has named."""


_MOST_DIGITS = 18
"""A longer row of digits is a name."""


def parse_label(value: Any, problem: str, separator: str, place: str) -> Label:
    """Read one label.

    Args:
        value: the cell: text, a number, or a list of either.
        problem: ``single_label`` gives a name, ``multi_label`` a list of names (an empty cell or list means that no
            label applies), ``regression`` a finite number.
        separator: what stands between the names in a multi-label cell of text.
        place: where the cell stands, for the error.

    Raises:
        DataError: no label, or one that is not of the problem's type.
    """
    if problem == "multi_label" and isinstance(value, str):
        value = [name for name in value.split(separator) if name.strip()]
    if value is None or (isinstance(value, str) and not value.strip()) or _is_nan(value):
        raise DataError("A row has no label.", value=place, fix="Label the row or remove it.")
    if problem == "regression":
        return _number(value, place)
    if problem == "single_label":
        return _name(value, problem, place)
    if not isinstance(value, list | tuple):
        value = [value]
    return list(dict.fromkeys(_name(item, problem, place) for item in value))


def collect_labels(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the label names that occur, sorted: whole numbers by value, anything else by code point."""
    names = {name for row in rows for name in _names(row)}
    if all(name.isdecimal() and len(name) <= _MOST_DIGITS for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_labels(split: str, rows: Iterable[Row], labels: Sequence[str], owner: str) -> None:
    """Refuse labels that are not among ``labels``.

    Args:
        split: name of the split, for the error.
        rows: its rows.
        labels: the known names.
        owner: whose labels these are, for the error ("the model", "train").

    Raises:
        DataError: names up to five unknown labels and suggests known ones.
    """
    unknown = [name for name in collect_labels(rows) if name not in set(labels)]
    if unknown:
        raise DataError(
            f"{len(unknown)} label{'s' if len(unknown) > 1 else ''} of {split} "
            f"{'are' if len(unknown) > 1 else 'is'} unknown to {owner}.",
            value=", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else ""),
            fix=_how_to_match(unknown[0], labels),
        )


def _how_to_match(unknown: str, labels: Sequence[str]) -> str:
    if all(_UNNAMED.fullmatch(name) for name in labels):
        return (
            f"Labels are matched by name and the model's have none: name them in `labels: {{{labels[0]}: ..., ...}}`."
        )
    return f"{did_you_mean(unknown, labels)} Labels are matched by name: correct the file or data.labels."


def _names(row: Row) -> Sequence[str]:
    label = row.get("label")
    return label if isinstance(label, list) else [label] if isinstance(label, str) else []


def _name(value: Any, problem: str, place: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(
        f"A label cannot be read as a name ({problem}).",
        value=f"{place}: {value!r}",
        fix="Write names or whole numbers; lists need problem: multi_label, fractions problem: regression.",
    )


def _number(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            "A label is not a finite number (regression).",
            value=f"{place}: {value!r}",
            fix="Write numbers with a decimal point, or choose problem: single_label.",
        )
    return number


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
