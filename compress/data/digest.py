"""One digest for the rows of a split: equal on every machine, blind to Unicode form and outer white space."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

from compress.data.pictures import Picture
from compress.data.splits import Row


def rows_digest(rows: Iterable[Row]) -> str:
    """Return the sha256 over the rows in order.

    Each row is one line of JSON: columns sorted, absent values left out, strings in NFC and stripped, images
    by their own digest.
    """
    digest = hashlib.sha256()
    for row in rows:
        cells = {name: _normalise(value) for name, value in row.items() if value is not None}
        digest.update(json.dumps(cells, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, Picture):
        return value.digest
    if isinstance(value, list | tuple):
        return [_normalise(item) for item in value]
    return value
