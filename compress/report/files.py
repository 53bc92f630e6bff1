"""Reports on disk: ``report.json`` is the record, ``report.md`` and ``report.html`` render it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from compress.disk import write_atomically
from compress.errors import UsageError
from compress.reading import LARGEST_JSON, Unreadable, local_path, parse_json, read_text
from compress.report.html import render_html
from compress.report.markdown import render_markdown
from compress.report.model import SCHEMA, Report
from compress.report.schema import migrate

JSON_NAME = "report.json"
_PRODUCE = "Give the report.json of a run, or the folder that holds it."


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write the record and its renderings; each file is replaced whole or not at all.

    Returns:
        "json", "markdown", "html" -> path.
    """
    write_atomically(folder / JSON_NAME, report.model_dump_json(indent=2) + "\n")
    return {"json": folder / JSON_NAME, **render_report(report, folder)}


def render_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write the renderings alone: a record that was read stays as it is, whatever version wrote it.

    Returns:
        "markdown", "html" -> path.
    """
    texts = {"markdown": ("report.md", render_markdown(report)), "html": ("report.html", render_html(report))}
    for name, text in texts.values():
        write_atomically(folder / name, text)
    return {key: folder / name for key, (name, _) in texts.items()}


def read_report(path: Path) -> Report:
    """Read a ``report.json``, or the one in a folder.

    Raises:
        UsageError: there is none, it is not JSON, a newer mcompress wrote it, or it is not a report.
    """
    file = path
    try:
        file = local_path(str(path))
        file = file / JSON_NAME if file.is_dir() else file
        text = read_text(file, LARGEST_JSON)
    except Unreadable as error:
        raise UsageError("The report cannot be read.", value=f"{file}: {error}", fix=_PRODUCE) from error
    try:
        record = parse_json(text)
    except Unreadable as error:
        raise UsageError("The report is not valid JSON.", value=f"{file}: {error}", fix=_PRODUCE) from error
    found = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(found, int) and not 1 <= found <= SCHEMA:
        raise UsageError(
            f"The report has schema version {found}; this mcompress reads versions 1 to {SCHEMA}.",
            value=file,
            fix="A newer mcompress wrote it: read it with that one (its version stands in the file), or update.",
        )
    try:
        return Report.model_validate(migrate(record) if isinstance(record, dict) else record)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise UsageError("This is not a report.", value=f"{file}: {place}: {first['msg']}", fix=_PRODUCE) from error
