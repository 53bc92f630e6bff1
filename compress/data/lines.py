"""The lines of a text file of data, one at a time: UTF-8, none longer than can be taken in, none with a NUL byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from compress.errors import DataError

LONGEST_LINE = 16 * 2**20
"""Bytes. A text is a few thousand; an image as nested lists a few million."""
LARGEST_FILE = 4 * 2**30
"""Bytes. All rows are held in memory."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""Its byte-order marks."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their line breaks (LF, CR or CRLF); a byte-order mark is no part of the first.

    No more than one line is in memory.

    Raises:
        DataError: the file cannot be read or is too large; or a line is too long, is not UTF-8 or holds a NUL byte.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            _refuse("The data file is too large.", f"{path.name}: {size:,} bytes, at most {LARGEST_FILE:,}", _FEWER)
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                yield from _decoded(line, path, number)
    except OSError as error:
        raise DataError(
            "The data file cannot be read.",
            value=f"{path.name}: {error.strerror or type(error).__name__}",
            fix="Make the file readable.",
        ) from error


_FEWER = "Keep the rows that matter in a smaller file: training reads all of them into memory."


def _decoded(line: bytes, path: Path, number: int) -> Iterator[str]:
    """Yield the one line, or those that a CR ends."""
    place = f"{path.name}, line {number}"
    if len(line) > LONGEST_LINE:
        _refuse(
            "A line of the data file is too long.",
            f"{place}: more than {LONGEST_LINE:,} bytes",
            "Check that the file has line breaks, and that every quote in it is closed.",
        )
    if number == 1 and line[:2] in _UTF_16:
        _refuse("The file is not UTF-8.", f"{place}: it begins as UTF-16 does", _converted(path, "UTF-16"))
    if b"\0" in line:
        encoding = "UTF-16BE" if line[0] == 0 else "UTF-16LE"
        _refuse("The file is not text: it holds a NUL byte.", place, f"If it is UTF-16: {_converted(path, encoding)}")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "The file is not UTF-8.",
            value=f"{place}: byte 0x{line[error.start]:02x}",
            fix=_converted(path, "WINDOWS-1252"),
        ) from error
    if "\r" in text.removesuffix("\n").removesuffix("\r"):
        yield from io.StringIO(text, newline="")
    elif text:
        yield text


def _converted(path: Path, encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8{path.suffix}"


def _refuse(what: str, value: str, fix: str) -> NoReturn:
    raise DataError(what, value=value, fix=fix)
