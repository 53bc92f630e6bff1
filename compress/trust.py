"""Whose code may run: that of no model's author, unless the user named the model.

The Python files of a model are known by their digest. A digest is trusted for as long as a block lasts; a measuring
child is told the digests on its standard input. Nothing that lies on the disk and no environment variable gives trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def trusted() -> frozenset[str]:
    """Return the digests of the code that may run now; a new thread begins with none."""
    return _trusted.get()


@contextmanager
def trusting(digests: Iterable[str]) -> Iterator[None]:
    """Let code of these digests run inside this context."""
    token = _trusted.set(_trusted.get() | frozenset(digests))
    try:
        yield
    finally:
        _trusted.reset(token)
