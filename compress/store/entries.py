"""One entry of the store: its record, and whether its files are those of the record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from compress.disk import hash_files

RECORD = "entry.json"
PAYLOAD = "payload"
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """``entry.json``.

    Attributes:
        key: 64 hex digits.
        label: for people.
        files: sha256 by place in the payload.
        made_from: keys of the entries that were read while this one was made.
        seconds: wall time of the build; None if unknown.
        format: of this record.
    """

    key: str
    label: str
    files: dict[str, str]
    made_from: tuple[str, ...] = ()
    seconds: float | None = None
    format: int = FORMAT

    def dumps(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_entry(folder: Path) -> Entry | None:
    """Read the record of an entry's folder; None if it is missing, damaged, or another version's."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if found.get("format", FORMAT) != FORMAT:
            return None
        seconds = found.get("seconds")
        return Entry(
            key=str(found["key"]),
            label=str(found["label"]),
            files={str(name): str(digest) for name, digest in found["files"].items()},
            made_from=tuple(map(str, found.get("made_from", ()))),
            seconds=None if seconds is None else float(seconds),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(folder: Path) -> str | None:
    """Say in words what is wrong with an entry; None if every byte is as recorded."""
    entry = read_entry(folder)
    if entry is None:
        return f"its {RECORD} cannot be read"
    try:
        found = hash_files(folder / PAYLOAD)
    except OSError as error:
        return f"a file cannot be read: {error.strerror}"
    wrong = [
        *(f"{name} is missing" for name in entry.files if name not in found),
        *(f"{name} has changed" for name, digest in entry.files.items() if found.get(name, digest) != digest),
        *(f"{name} was added" for name in found if name not in entry.files),
    ]
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "") if wrong else None
