"""What must never be half done on a disk: files and folders appear whole, and are on the disk before they do.

A new file or folder is written beside its place under the name ``.<name>.<process>.partial``, synced, and renamed.
Whatever a killed process left under such a name is rubbish.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from compress.errors import UsageError

_PARTIAL = ".partial"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it, also after a power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder that is there whole or not at all; one that stands in its place is replaced.

    Args:
        path: the folder.
        fill: makes the folder whose path it is given, and what is in it.

    Raises:
        UsageError: the path does not end in the name of a folder.
    """
    if path.name in ("", ".."):
        raise UsageError("The path does not end in the name of a folder.", value=path, fix="Name the folder itself.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    remove(partial)
    try:
        fill(partial)
        sync_tree(partial)
        remove(path)
        partial.rename(path)
    except BaseException:
        remove(partial)
        raise
    sync_folder(path.parent)


def partial_of(path: Path) -> Path:
    """Return the name under which something is made before it is renamed to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-made anywhere in a folder; nobody else may be writing there."""
    for path in sorted(folder.rglob(f".*{_PARTIAL}")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Wait until every file in a folder, and the folder itself, are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder itself until the returned descriptor is closed, or its process has ended, however it ended.

    Returns:
        The descriptor; None if somebody else holds the lock.

    Raises:
        OSError: the folder is not there, or its file system has no such locks (some network ones).
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        raise
    return handle


def hash_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder, by its place in it."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            out[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder; what vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
