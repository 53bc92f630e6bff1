"""Space and memory: what is checked before work begins, and how a lack of either is told."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import StorageError

RESERVE_BYTES = 32 * 10**6
"""Room that is kept beside what a step needs: for records, reports and what other programs write."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|\(os error (28|122)\)")
_MEMORY_TEXT = re.compile(r"(?i)out of memory|can(?:'|no)t allocate memory|bad_alloc|Failed to allocate memory")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a file system has room before work begins.

    Args:
        folder: where it will be written; it need not exist yet.
        needed: bytes, an upper estimate.
        what: the work, for the message.

    Raises:
        StorageError: there is less room than that.
    """
    wanted = needed + RESERVE_BYTES
    if free_bytes(folder) < wanted:
        raise _full(f"There is not enough space for {what}.", (folder,), wanted)


@contextmanager
def space_explained(*folders: Path, needed: int = 0) -> Iterator[None]:
    """Turn whatever error a full disk causes inside into a StorageError that names the folder.

    Args:
        *folders: where the work inside writes.
        needed: bytes, if there is an estimate.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # of the standard library, or any native library's own
        if not is_full(error):
            raise
        raise _full("The disk is full.", folders, needed) from error


def is_full(error: BaseException) -> bool:
    """Say whether an error, or one that caused it, comes from a full disk or a used up quota."""
    return any(
        (isinstance(e, OSError) and e.errno in _FULL) or _FULL_TEXT.search(str(e)) is not None for e in _chain(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error, or one that caused it, means that memory did not suffice."""
    return any(
        isinstance(e, MemoryError)
        or (isinstance(e, OSError) and e.errno == errno.ENOMEM)
        or _MEMORY_TEXT.search(str(e)) is not None
        for e in _chain(error)
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system on which a folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def in_units(count: int) -> str:
    """Return a number of bytes for people: ``12.3 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _full(what: str, folders: tuple[Path, ...], needed: int) -> StorageError:
    folder = min(folders, key=free_bytes)
    wanted = f", about {in_units(needed)} needed" if needed else ""
    return StorageError(
        what,
        value=f"{folder}: {in_units(free_bytes(folder))} free{wanted}",
        fix="Make room (`mcompress store gc --dry-run` shows what may go) and run the same command again; "
        "finished steps are kept. MCOMPRESS_HOME moves the store to another disk.",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    it: BaseException | None = error
    while it is not None and id(it) not in seen:
        seen.add(id(it))
        yield it
        it = it.__cause__ or it.__context__
