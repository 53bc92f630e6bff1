"""Readers of tables: CSV, TSV, JSON lines, Parquet, folders saved by ``datasets``, data sets on the hub."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data.lines import LARGEST_FILE, read_lines
from compress.errors import DataError, did_you_mean
from compress.reading import Unreadable, parse_json

if TYPE_CHECKING:
    from datasets import Dataset

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv")


@dataclass(frozen=True)
class Table:
    """Rows as a file holds them.

    Attributes:
        name: what an error calls the table (a file name, a hub id).
        columns: column names.
        rows: one dict per row, with every column that the row has.
        numbers: line (text formats) or row number of each row, counted from 1.
        unit: "line", "row" or "image".
        folder: where relative paths in its cells start; None where it is no file.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[dict[str, Any]]
    numbers: Sequence[int]
    unit: str
    folder: Path | None = None

    def place(self, index: int) -> str:
        """Say where row ``index`` stands, for an error."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def read_table(path: Path, split: str) -> Table:
    """Read a file by its suffix, or a folder that ``datasets.save_to_disk`` wrote.

    Args:
        path: the file or folder.
        split: which split to take of a saved ``DatasetDict``.

    Raises:
        DataError: nothing there, unknown suffix, not UTF-8, or malformed; with the line where there is one.
    """
    if path.is_dir():
        return _read_saved(path, split)
    if not path.is_file():
        raise DataError(
            f"The data file for {split} does not exist.",
            value=path,
            fix="Check the path, and the variables in it (${NAME} comes from the environment or --var).",
        )
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return replace(_read_delimited(path, DELIMITERS[suffix]), folder=path.parent)
    if suffix == ".jsonl":
        return replace(_read_jsonl(path), folder=path.parent)
    if suffix == ".parquet":
        return replace(_read_parquet(path), folder=path.parent)
    raise DataError(
        f"Files that end in {suffix!r} cannot be read." if suffix else "A data file needs an extension.",
        value=path.name,
        fix=did_you_mean(suffix, SUFFIXES) + " A folder saved by datasets.save_to_disk works as well.",
    )


def read_hub(dataset: str, name: str | None, split: str) -> Table:
    """Read one split of a data set on the Hugging Face hub, or of its copy in the local cache.

    Raises:
        DataError: the hub cannot be reached, or the id, the configuration or the split does not exist.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(dataset, name, split=split)
    except Exception as error:  # the client raises its own, requests', httpx' and builtin types
        raise DataError(
            f"The hub data set {dataset!r} could not be loaded ({type(error).__name__}).",
            value=_first_line(error),
            fix="Check the id, name and split, and the network; offline, save it once with "
            "datasets.save_to_disk and give its folder as path.",
        ) from error
    return _from_dataset(loaded, f"{dataset}[{split}]")


def _read_delimited(path: Path, delimiter: str) -> Table:
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if not header or len(set(header)) != len(header):
            raise DataError(
                "The header names a column twice." if header else "The file has no header.",
                value=f"{path.name}: {delimiter.join(header)}" if header else path.name,
                fix="Let the first line name each column once.",
            )
        rows, numbers = [], []
        start = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"A row has {len(cells)} cells, the header {len(header)}.",
                    value=f"{path.name}, line {start}",
                    fix=f"Put quotes around text that holds {delimiter!r} or a line break.",
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"The file is malformed: {error}.",
            value=f"{path.name}, line {reader.line_num}",
            fix='Close every quoted cell and double the quotes inside it (""), or save the data as JSON lines.',
        ) from error
    return Table(path.name, header, rows, numbers, "line")


def _read_jsonl(path: Path) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except Unreadable as error:
            row, problem = None, str(error).removeprefix("not JSON: ").partition(": line 1")[0]
        else:
            problem = f"a {type(row).__name__} instead of an object"
        if not isinstance(row, dict):
            raise DataError(
                f"A line is not a JSON object: {problem}.",
                value=f"{path.name}, line {number}",
                fix='Write one object per line, such as {"text": "...", "label": "..."}.',
            )
        rows.append(row)
        numbers.append(number)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path.name, columns, rows, numbers, "line")


def _read_parquet(path: Path) -> Table:
    from datasets import Dataset
    from pyarrow import parquet  # type: ignore[import-untyped]

    fix = "Write it again, with pandas.DataFrame.to_parquet or datasets.Dataset.to_parquet."
    try:
        with parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            if size > LARGEST_FILE or file.metadata.num_rows > LARGEST_FILE:
                raise DataError(
                    "The Parquet file is too large.",
                    value=f"{path.name}: {file.metadata.num_rows:,} rows, {size:,} bytes unpacked",
                    fix="Keep the rows that matter in a smaller file: training reads all of them into memory.",
                )
            dataset = Dataset(file.read())
    except DataError:
        raise
    except Exception as error:  # pyarrow has its own errors, and datasets reads its notes in the file's schema
        raise DataError(
            "The file is not a readable Parquet file.", value=f"{path.name}: {_first_line(error)}", fix=fix
        ) from error
    return _from_dataset(dataset, path.name)


def _read_saved(path: Path, split: str) -> Table:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # pyarrow, json and file errors of a folder that is something else
        raise DataError(
            "The folder was not saved by datasets.save_to_disk.",
            value=f"{path}: {_first_line(error)}",
            fix=f"Give a saved folder, or a file that ends in {', '.join(SUFFIXES)}.",
        ) from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise DataError(
                f"The saved folder has no split {split!r}.",
                value=path.name,
                fix=f"Set `split`. {did_you_mean(split, loaded)}",
            )
        loaded = loaded[split]
    return _from_dataset(loaded, path.name)


def _from_dataset(dataset: Dataset, name: str) -> Table:
    """Turn a ``datasets.Dataset`` into a table; ids of ``ClassLabel`` features become names."""
    if len(set(dataset.column_names)) < len(dataset.column_names):
        raise DataError(
            "The table names a column twice.",
            value=f"{name}: {', '.join(dataset.column_names)}",
            fix="Let each column have a name of its own.",
        )
    try:
        columns = {column: _named(dataset.features[column], dataset[column][:]) for column in dataset.column_names}
    except Exception as error:  # a decoder of cells, or an id of a class that has no name
        raise DataError(
            "A column of the table cannot be read.",
            value=f"{name}: {type(error).__name__}: {_first_line(error)}",
            fix="Write the table again with plain columns of text and labels.",
        ) from error
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return Table(name, list(columns), rows, range(1, len(rows) + 1), "row")


def _named(feature: Any, values: list[Any]) -> list[Any]:
    names = getattr(feature, "names", None)
    if names is not None:
        return [None if value is None or value < 0 else names[value] for value in values]
    inner = getattr(feature, "feature", None)
    if getattr(inner, "names", None) is not None:
        return [None if value is None else _named(inner, value) for value in values]
    return values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
