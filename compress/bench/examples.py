"""The timed sequence as the user has it, in a file for a child: texts as JSON lines, pictures as their pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress.data.pictures import IMAGE, Picture, read_picture
from compress.tasks.base import Row


def save_rows(rows: Sequence[Row], columns: Sequence[str], folder: Path, name: str) -> Path:
    """Write rows without their labels; return the file.

    Args:
        rows: the examples, as they were read.
        columns: those of the task; a first column ``image`` makes an ``.npz`` of decoded pixels.
        folder: where to write.
        name: of the file, without its ending.
    """
    if columns[0] == IMAGE:
        pictures = [read_picture(row.get(IMAGE), None, "an example to measure") for row in rows]
        arrays = {f"{i}": picture.pixels() for i, picture in enumerate(pictures) if picture is not None}
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        return folder / f"{name}.npz"
    lines = [json.dumps({column: row.get(column) for column in columns}, ensure_ascii=False) for row in rows]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def load_rows(path: Path) -> list[Row]:
    """Read what ``save_rows`` wrote."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return [{IMAGE: Picture.of_pixels(file[f"{i}"])} for i in range(len(file.files))]
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]
