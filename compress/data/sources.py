"""From the ``data:`` section of a recipe to checked splits: read, carve, compare, sample, digest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from compress.data.builtin import digits, generate
from compress.data.builtin.digits import NAME as DIGITS
from compress.data.calibration import calibration_rows, stratified_indices, stratum
from compress.data.config import DEFAULT_SAMPLES, DataConfig, Problem, Source
from compress.data.digest import rows_digest
from compress.data.formats import Table, read_hub, read_table
from compress.data.image_folder import is_image_folder, read_image_folder
from compress.data.labels import check_labels, collect_labels, parse_label
from compress.data.overlap import HELD_OUT, resolve_overlaps, row_key
from compress.data.pictures import IMAGE, Picture, read_picture
from compress.data.splits import Row, Split, TaskData
from compress.errors import DataError, did_you_mean
from compress.reading import Unreadable, local_path

Expand = Callable[[str], Path | str]

LABELLED = ("train", *HELD_OUT)


def load_data(
    config: DataConfig,
    *,
    expand: Expand = str,
    text_columns: Sequence[str] = ("text", "text_pair"),
    problem: Problem = "single_label",
    known_labels: Sequence[str] | None = None,
) -> TaskData:
    """Read every split that the recipe names, and check them together.

    Args:
        config: the ``data:`` section.
        expand: fills in ``${NAME}`` in a path or a hub id; what it returns is opened and never recorded.
        text_columns: the task's columns of text or images; the first is required, others may be absent from a file.
        problem: how labels are read.
        known_labels: the model's label names in id order; labels of the data are matched with them by name.

    Returns:
        Splits of rows with every text column (None where the file has none) and, but for ``transfer``, ``label``;
        ``calibration`` drawn from what is left of train. ``notes`` counts rows: ``rows`` by split,
        ``calibration_asked``, ``dropped`` by split.

    Raises:
        DataError: a file, a column, a label, a split or a count is wrong; the message says which and where.
    """
    _check_roles(config, text_columns)
    rows, sources = _read_all(config, expand, text_columns, problem)
    labels = _settle_labels(config, rows, problem, known_labels)
    before = {name: len(members) for name, members in rows.items()}
    rows, overlaps = resolve_overlaps(rows, config.on_overlap, text_columns)
    dropped = {name: before[name] - len(members) for name, members in rows.items() if len(members) < before[name]}
    for name, members in rows.items():
        _refuse_empty(name, members, sources[name])
    asked = config.calibration.samples
    if asked is None:
        asked = min(DEFAULT_SAMPLES, len(rows.get("train", ())))
    if "train" in rows and asked:
        rows["calibration"] = calibration_rows(rows["train"], asked, config.seed)
        sources["calibration"] = f"{asked} rows of train, stratified, seed {config.seed}"
    return TaskData(
        splits={name: Split(name, members, rows_digest(members), sources[name]) for name, members in rows.items()},
        labels=labels,
        overlaps=overlaps,
        synthetic=config.builtin is not None and config.builtin.name != DIGITS,
        notes={
            "rows": {name: len(members) for name, members in rows.items()},
            "calibration_asked": asked,
            "dropped": dropped,
        },
    )


def read_rows(
    path: Path,
    *,
    text_columns: Sequence[str] = ("text", "text_pair"),
    problem: str = "single_label",
    label_separator: str = ",",
) -> list[Row]:
    """Read one file or saved folder whose columns have the task's names; without a label column, rows have no label.

    Raises:
        DataError: the file cannot be read, is empty, or holds a row without text or with a bad label.
    """
    images = text_columns[0] == IMAGE and is_image_folder(path)
    table = read_image_folder(path, "test") if images else read_table(path, "test")
    config = DataConfig(test=Source(path=path.name), label_separator=label_separator)
    rows = _task_rows(table, config, text_columns, problem, labelled="label" in table.columns)
    _refuse_empty("test", rows, table.name)
    return rows


def _read_all(
    config: DataConfig, expand: Expand, text_columns: Sequence[str], problem: Problem
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Return rows and sources by split name: train first, carved splits removed from it."""
    rows: dict[str, list[Row]] = {}
    sources: dict[str, str] = {}
    if config.builtin is not None:
        rows, sources = _built_in(config, text_columns, problem)
    for name in (*LABELLED, "transfer"):
        source: Source | None = getattr(config, name)
        if source is None or source.from_ is not None:
            continue
        table = _open(source, name, expand, text_columns[0] == IMAGE)
        rows[name] = _task_rows(table, config, text_columns, problem, labelled=name != "transfer")
        sources[name] = describe(source, name)
        _refuse_empty(name, rows[name], sources[name])
        rows[name] = _limit(rows[name], source, name, config.seed)
    whole = len(rows.get("train", ()))
    for name in HELD_OUT:
        source = getattr(config, name)
        if source is not None and source.fraction is not None:
            count = round(source.fraction * whole)
            rows[name], rows["train"] = _carve(rows["train"], count, text_columns, config.seed)
            sources[name] = describe(source, name)
            _refuse_empty(name, rows[name], sources[name])
            rows[name] = _limit(rows[name], source, name, config.seed)
    return {name: rows[name] for name in (*LABELLED, "transfer") if name in rows}, sources


def describe(source: Source, split: str) -> str:
    """Say where a split came from without a machine's path: variables unexpanded, absolute paths cut to the name."""
    if source.from_ is not None:
        text = f"{source.fraction:g} of {source.from_}"
    elif source.hub is not None:
        text = f"hub:{source.hub}{f'/{source.name}' if source.name else ''}[{source.split or split}]"
    else:
        text = _without_machine_path(str(source.path)) + (f"[{source.split}]" if source.split else "")
    return f"{text}, {source.limit} rows" if source.limit is not None else text


def _without_machine_path(path: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(path).is_absolute():
            return kind(path).name
    return path


def _built_in(
    config: DataConfig, text_columns: Sequence[str], problem: Problem
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    builtin = config.builtin
    if builtin is None or problem != "single_label":
        raise DataError(
            "The built-in data set has one label per row.",
            value=f"problem: {problem}",
            fix="Use problem: single_label, or data of your own.",
        )
    make, column = (digits, IMAGE) if builtin.name == DIGITS else (generate, "text")
    if text_columns[0] != column:
        raise DataError(
            "The built-in data set is not for this task.",
            value=f"{builtin.name} has a column {column!r}; the task reads {text_columns[0]!r}",
            fix="Use `builtin: {name: digits}` for images, `{name: support-tickets}` for texts.",
        )
    rows: dict[str, list[Row]] = {}
    for name, members in make(builtin.rows, builtin.seed).items():
        rows[name] = [dict.fromkeys(text_columns) | dict(row) for row in members]
    source = f"builtin:{builtin.name}, {builtin.rows} rows, seed {builtin.seed}"
    return rows, dict.fromkeys(rows, source)


def _open(source: Source, split: str, expand: Expand, images: bool) -> Table:
    wanted = source.split or split
    if source.hub is not None:
        return read_hub(str(expand(source.hub)), source.name, wanted)
    try:
        path = local_path(str(expand(str(source.path))))
    except Unreadable as error:
        raise DataError(
            f"The data for {split} cannot be read.", value=f"{source.path}: {error}", fix="Correct the path."
        ) from error
    return read_image_folder(path, wanted) if images and is_image_folder(path) else read_table(path, wanted)


def _task_rows(
    table: Table, config: DataConfig, text_columns: Sequence[str], problem: str, *, labelled: bool
) -> list[Row]:
    """Rename columns to the task's, and check and parse every cell that the task reads."""
    needed = {text_columns[0], *(["label"] if labelled else [])}
    optional = {name for name in config.columns if name in text_columns}
    names = {role: config.columns.get(role, role) for role in (*text_columns, "label")}
    for role in sorted(needed | optional, reverse=True):
        if names[role] not in table.columns and table.rows:
            raise DataError(
                f"There is no column {names[role]!r} for the task's {role!r}.",
                value=table.name,
                fix=f"Set data.columns.{role}. {did_you_mean(names[role], table.columns)}",
            )
    rows: list[Row] = []
    for index, cells in enumerate(table.rows):
        row: dict[str, Any] = {role: _cell(cells.get(names[role]), table, index, role) for role in text_columns}
        if row[text_columns[0]] is None:
            kind = "image" if text_columns[0] == IMAGE else "text"
            raise DataError(
                f"A row has no {kind}.", value=table.place(index), fix=f"Write the {kind} or remove the row."
            )
        if labelled:
            place = table.place(index)
            row["label"] = parse_label(cells.get(names["label"]), problem, config.label_separator, place)
        rows.append(row)
    return rows


def _cell(value: Any, table: Table, index: int, role: str) -> str | Picture | None:
    if role == IMAGE:
        return read_picture(value, table.folder, table.place(index))
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    raise DataError(
        f"A cell of {role!r} is not text but {type(value).__name__}.",
        value=table.place(index),
        fix=f"Set data.columns.{role} to a column of text.",
    )


def _limit(rows: list[Row], source: Source, split: str, seed: int) -> list[Row]:
    if source.limit is None:
        return rows
    if source.limit > len(rows):
        raise DataError(
            f"The limit of {split} is larger than the split.",
            value=f"asked for {source.limit} rows, {split} has {len(rows)}",
            fix=f"Set data.{split}.limit to at most {len(rows)}, or remove it.",
        )
    return [rows[i] for i in stratified_indices([stratum(row) for row in rows], source.limit, seed)]


def _carve(rows: list[Row], count: int, text_columns: Sequence[str], seed: int) -> tuple[list[Row], list[Row]]:
    """Split ``count`` rows off, stratified; rows of the same text go together, so the two sides never overlap."""
    keys = [row_key(row, text_columns) for row in rows]
    first = {key: row for row, key in zip(reversed(rows), reversed(keys), strict=True)}
    unique = list(dict.fromkeys(keys))
    chosen = stratified_indices([stratum(first[key]) for key in unique], min(count, len(unique)), seed)
    taken = {unique[i] for i in chosen}
    carved = [row for row, key in zip(rows, keys, strict=True) if key in taken]
    return carved, [row for row, key in zip(rows, keys, strict=True) if key not in taken]


def _settle_labels(
    config: DataConfig, rows: dict[str, list[Row]], problem: Problem, known: Sequence[str] | None
) -> tuple[str, ...]:
    """Choose the label names (the recipe's, the model's, train's) and check every split against them."""
    if problem == "regression":
        return ()
    if config.labels is not None and known is not None and set(config.labels) != set(known):
        strange = sorted(set(config.labels) ^ set(known))
        raise DataError(
            "data.labels and the model's labels are not the same names.",
            value=", ".join(map(repr, strange[:5])) + (", ..." if len(strange) > 5 else ""),
            fix="Remove data.labels, or map the model's labels to these names.",
        )
    if config.labels is not None:
        labels, owner = config.labels, "data.labels"
    elif known is not None:
        labels, owner = tuple(known), "the model"
    else:
        origin = "train" if "train" in rows else next(iter(rows))
        labels, owner = collect_labels(rows[origin]), origin
    for name in LABELLED:
        check_labels(name, rows.get(name, ()), labels, owner)
    return labels


def _refuse_empty(split: str, rows: Sequence[Row], source: str) -> None:
    if not rows:
        raise DataError(
            f"The split {split} has no rows.",
            value=source,
            fix="Check the file; with drop_from_train, that not all of train stands in validation and test; "
            "with fraction, that it gives at least one row.",
        )


def _check_roles(config: DataConfig, text_columns: Sequence[str]) -> None:
    roles = (*text_columns, "label")
    for role in config.columns:
        if role not in roles:
            raise DataError(f"data.columns has an unknown task column {role!r}.", fix=did_you_mean(role, roles))
