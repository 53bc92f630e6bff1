"""What a person hands in, one example or several, as rows of a task's columns; what is no example is refused."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.data.pictures import IMAGE, read_picture
from compress.errors import DataError
from compress.tasks.base import Row, Task


def is_one(examples: Any, task: Task) -> bool:
    """Say whether this is one example: a text, a path, a mapping, for texts a tuple, for images pixels.

    Anything else that can be iterated over is several. Tables are not taken for their column names.
    """
    if isinstance(examples, str | bytes | Path | Mapping) or not isinstance(examples, Iterable):
        return True
    if IMAGE in task.columns:
        return 0 < len(getattr(examples, "shape", ())) < 4
    return isinstance(examples, tuple) or getattr(examples, "ndim", 1) != 1


def rows_of(examples: Any, task: Task) -> Iterator[Row]:
    """Yield rows of the task's columns, without a label.

    Raises:
        DataError: one is not an example of the task; the error says which.
    """
    if is_one(examples, task):
        yield _row(examples, task, "the example")
    else:
        for i, example in enumerate(examples):
            yield _row(example, task, f"example {i}")


def _row(example: Any, task: Task, place: str) -> Row:
    columns = task.columns
    cells: Mapping[Any, Any] = {columns[0]: example}
    if isinstance(example, Mapping):
        cells = example
    elif isinstance(example, tuple) and IMAGE not in columns:
        cells = dict(zip(columns, example, strict=True)) if len(example) == len(columns) else {}
    if columns[0] not in cells or not set(cells) <= set(columns):
        raise _refusal(example, task, place)
    row = {name: _picture(cell, place) if name == IMAGE else cell for name, cell in cells.items()}
    for name, cell in row.items():
        if not (name == IMAGE or _is_text(cell) or (cell is None and name != columns[0])):
            raise _refusal(example, task, place)
    return row


def _picture(value: Any, place: str) -> Any:
    try:
        picture = read_picture(value, None, place)
    except DataError as error:
        where = error.value if error.value.startswith(place) else f"{place}: {error.value}"
        raise DataError(error.what, value=where, fix=error.fix) from error
    if picture is None:
        raise DataError("An image is missing.", value=place, fix="Give the path of an image file, or pixels.")
    return picture


def _is_text(value: Any) -> bool:
    """Say whether this is a string of whole characters: no tokenizer takes half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(example: Any, task: Task, place: str) -> DataError:
    named = "{" + ", ".join(f"{name!r}: ..." for name in task.columns) + "}"
    one = "an image" if IMAGE in task.columns else "a str of whole characters"
    pair = ", a tuple of two" if len(task.columns) == 2 else ""
    return DataError(
        f"This is not an example for {task.name}.",
        value=f"{place}: {type(example).__name__} {reprlib.repr(example)}",
        fix=f"Give {one}{pair} or {named}; several in a list.",
    )
