"""The exceptions that mcompress raises, and the exit code of each.

::

    CompressError                      4  something that the user can act on went wrong
    ├── UsageError                     2  the request cannot be carried out as it stands
    │   ├── RecipeError                2  a recipe, an override or an order of steps
    │   ├── DataError                  2  a data file, a column, a label, a split
    │   └── ModelError                 2  a model folder or file that cannot be taken in
    ├── MissingCapabilityError         3  a package, a device or a kernel is not here
    └── RunError                       4  a step failed
        ├── ParityError                4  a step changed outputs that it must preserve
        ├── IntegrityError             4  bytes on disk are not the bytes that were written
        └── StorageError               4  a disk is full, or a folder cannot be written to

Every error has three parts: what happened, with which value, and what to do about it.
A failed gate is a result, not an exception: ``mcompress run`` reports it and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CompressError",
    "DataError",
    "IntegrityError",
    "MissingCapabilityError",
    "ModelError",
    "ParityError",
    "RecipeError",
    "RunError",
    "StorageError",
    "UsageError",
    "did_you_mean",
]


_LONGEST = 2000
"""Characters of one part that are shown."""
_HANGING = "\n         "


class CompressError(Exception):
    """Root of every error that mcompress raises on purpose.

    Args:
        what: one sentence, what happened.
        value: the offending value or the place where it stands; may be empty.
        fix: what the user can do.
    """

    exit_code = 4

    def __init__(self, what: str, *, value: object = "", fix: str) -> None:
        self.what = what
        self.value = str(value)
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [_hung(self.what)]
        if self.value:
            lines.append(f"  value: {_hung(self.value)}")
        lines.append(f"  fix:   {_hung(self.fix)}")
        return "\n".join(lines)


def _hung(text: str) -> str:
    """Shorten a part, and let its further lines hang: a value out of a file must not look like another part."""
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    lines = text.splitlines()
    return text if len(lines) < 2 else _HANGING.join(line.strip() for line in lines)


class UsageError(CompressError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class MissingCapabilityError(CompressError):
    exit_code = 3


class RunError(CompressError):
    pass


class ParityError(RunError):
    pass


class IntegrityError(RunError):
    pass


class StorageError(RunError):
    """Never the fault of a step: an optional step does not fail of it, the run stops."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a fix sentence for an unknown name: the closest known names, then all of them."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
