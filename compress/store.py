"""The content-addressed store: finished work by key, published with one rename, verified on read.

Layout under ``MCOMPRESS_HOME`` (default ``~/.cache/mcompress``)::

    entries/<key>/payload/...     what a step made
    entries/<key>/entry.json      label, files with sha256, seconds that it took
    partial/<key>/                training checkpoints of an unfinished step
    work/<random>/                work in flight; removed when it fails
    locks/<key>.lock
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

ENTRY = "entry.json"


class Store:
    """A folder of finished work.

    Args:
        root: the folder; made when first written to.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser()

    @classmethod
    def default(cls) -> Store:
        """The store that ``MCOMPRESS_HOME`` names, else ``~/.cache/mcompress``."""
        return cls(os.environ.get("MCOMPRESS_HOME") or "~/.cache/mcompress")

    def find(self, key: str) -> Path | None:
        """Return the payload folder of a finished entry, or None.

        An entry whose files do not match their record is removed, so that it is made again.
        """
        entry = self._entry(key)
        record = entry / ENTRY
        if not record.is_file():
            return None
        try:
            files = json.loads(record.read_text(encoding="utf-8"))["files"]
            whole = files == _hash_files(entry / "payload")
        except (ValueError, KeyError, OSError):
            whole = False
        if not whole:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        return entry / "payload"

    def get_or_build(self, key: str, label: str, build: Callable[[Path], object]) -> tuple[Path, bool]:
        """Return (payload folder, whether it was already there); build and publish it if missing.

        Args:
            key: 64 hex digits that name everything the payload depends on.
            label: for people, in listings.
            build: called with an empty folder that it fills.
        """
        with self._lock(key):
            found = self.find(key)
            if found is not None:
                return found, True
            with self.workspace() as work:
                payload = work / "payload"
                payload.mkdir()
                begun = time.monotonic()
                build(payload)
                seconds = round(time.monotonic() - begun, 3)
                record = {"key": key, "label": label, "files": _hash_files(payload), "seconds": seconds}
                (work / ENTRY).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                _sync(work)
                entry = self._entry(key)
                entry.parent.mkdir(parents=True, exist_ok=True)
                if entry.exists():
                    shutil.rmtree(entry)
                work.rename(entry)
                _sync_folder(entry.parent)
            shutil.rmtree(self.root / "partial" / key, ignore_errors=True)
            return self._entry(key) / "payload", False

    def seconds(self, key: str) -> float | None:
        """Return the wall time of the build that finished an entry; None if there is no record of it."""
        try:
            found = json.loads((self._entry(key) / ENTRY).read_text(encoding="utf-8")).get("seconds")
        except (OSError, ValueError):
            return None
        return None if found is None else float(found)

    def partial(self, key: str) -> Path:
        """A folder for checkpoints of an unfinished entry; removed once the entry is published."""
        folder = self.root / "partial" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder on the store's file system, removed at the end if it is still there."""
        parent = self.root / "work"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _entry(self, key: str) -> Path:
        return self.root / "entries" / key

    def _lock(self, key: str) -> FileLock:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")


def _hash_files(folder: Path) -> dict[str, str]:
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            out[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
