"""Find finished work by its key, or make it once, whoever else is at work."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from compress.disk import hash_files, lock_folder, remove, sync_folder, sync_tree
from compress.errors import StorageError
from compress.resources import require_space, space_explained
from compress.store.claims import Claim
from compress.store.entries import PAYLOAD, RECORD, Entry, damage, read_entry

_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass
class _Serving:
    """A run that this process is making; its claim is opened when it first needs a key."""

    root: Path
    run: Path
    claim: Claim | None = None

    def add(self, key: str) -> None:
        if self.claim is None:
            self.claim = Claim(self.root, self.run)
        self.claim.add(key)


_SERVING: list[_Serving] = []


class Store:
    """A folder of finished work.

    Args:
        root: the folder; made when first written to.

    Attributes:
        tell: called with a sentence when something is worth telling: a damaged entry, a wait for another run.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser()
        self.tell: Callable[[str], object] = logging.getLogger("mcompress").warning
        self._claim: Claim | None = None
        self._swept = False
        self._builds = threading.local()

    @classmethod
    def default(cls) -> Store:
        """The store that ``MCOMPRESS_HOME`` names, else ``~/.cache/mcompress``."""
        return cls(os.environ.get("MCOMPRESS_HOME") or "~/.cache/mcompress")

    @contextmanager
    def serving(self, run: Path, tell: Callable[[str], object]) -> Iterator[None]:
        """Put every key that this process uses inside the block on record as needed by a run.

        Args:
            run: its folder. While that exists, ``gc`` keeps what the run used.
            tell: takes what is worth telling.
        """
        before, self.tell = self.tell, tell
        serving, finished = _Serving(self.root.absolute(), run.absolute()), False
        _SERVING.append(serving)
        try:
            yield
            finished = True
        finally:
            self.tell = before
            _SERVING[:] = [other for other in _SERVING if other is not serving]
            if serving.claim is not None:
                serving.claim.close(finished=finished)

    def find(self, key: str) -> Path | None:
        """Return the payload folder of a finished entry, or None.

        An entry whose files do not match their record is removed, so that it is made again, and that is told.
        """
        self._use(key)
        if not self._entry(key).exists():
            return None
        if damage(self._entry(key)) is None:
            return self._found(key)
        try:
            lock = self._lock(key)
            lock.acquire(timeout=0)
        except Timeout:  # it is being made again
            return None
        except OSError:
            self._tell_damage(key, "and this store cannot be written to")
            return None
        try:
            return self._whole(key)
        finally:
            lock.release()

    def get_or_build(
        self,
        key: str,
        label: str,
        build: Callable[[Path], object],
        *,
        made_from: Iterable[Path] = (),
        space: int = 0,
    ) -> tuple[Path, bool]:
        """Return (payload folder, whether it was already there); build and publish it if missing.

        Args:
            key: 64 hex digits that name everything the payload depends on.
            label: for people, in listings.
            build: called with an empty folder that it fills.
            made_from: payload folders that ``build`` reads. Entries that it looks up itself are noticed.
            space: bytes that ``build`` will need in the store at most, as far as is known.

        Raises:
            StorageError: there is not enough space, or the store cannot be written to and has no such entry.
        """
        self._use(key)
        try:
            lock = self._acquire(key, label)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            if self._entry(key).exists() and damage(self._entry(key)) is None:
                return self._entry(key) / PAYLOAD, True
            raise self._unwritable(error) from error
        try:
            found = self._whole(key)
            if found is None:
                require_space(self.root, space, repr(label))
                with space_explained(self.root, needed=space), self._noticing(made_from) as used:
                    self._build(key, label, build, used)
            remove(self.root / "partial" / key)
            return self._entry(key) / PAYLOAD, found is not None
        finally:
            lock.release()

    def seconds(self, key: str) -> float | None:
        """Return the wall time of the build that finished an entry; None if there is no record of it."""
        entry = read_entry(self._entry(key))
        return None if entry is None else entry.seconds

    def partial(self, key: str) -> Path:
        """A folder for checkpoints of an unfinished entry; removed once the entry is published."""
        folder = self.root / "partial" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder on the store's file system, removed at the end if it is still there.

        It is locked by this process. What a killed process left is removed when the next one takes a workspace.

        Raises:
            StorageError: the store cannot be written to.
        """
        try:
            folder, handle = self._new_work()
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise self._unwritable(error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if handle is not None:
                os.close(handle)

    @contextmanager
    def temporary_files(self) -> Iterator[Path]:
        """Let every library's temporary files, also those of child processes, lie in a workspace of this store."""
        with self.workspace() as work:
            before, tempfile.tempdir = tempfile.tempdir, str(work)
            variable = os.environ.get("TMPDIR")
            os.environ["TMPDIR"] = str(work)
            try:
                yield work
            finally:
                tempfile.tempdir = before
                if variable is None:
                    del os.environ["TMPDIR"]
                else:
                    os.environ["TMPDIR"] = variable

    def sweep(self) -> None:
        """Remove work folders whose process has ended."""
        for folder in (self.root / "work").glob("*"):
            try:
                handle = lock_folder(folder)
            except OSError:  # gone already, or not to be known on this file system
                continue
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)

    def _build(self, key: str, label: str, build: Callable[[Path], object], used: set[str]) -> None:
        with self.workspace() as work:
            payload = work / PAYLOAD
            payload.mkdir()
            begun = time.monotonic()
            build(payload)
            seconds = round(time.monotonic() - begun, 3)
            entry = Entry(key, label, hash_files(payload), tuple(sorted(used - {key})), seconds)
            (work / RECORD).write_text(entry.dumps(), encoding="utf-8")
            sync_tree(work)
            self._entry(key).parent.mkdir(parents=True, exist_ok=True)
            work.rename(self._entry(key))
            sync_folder(self._entry(key).parent)

    def _whole(self, key: str) -> Path | None:
        """Return the payload of an entry; one that is damaged is taken away. The caller holds the key's lock."""
        entry = self._entry(key)
        if not entry.exists():
            return None
        if damage(entry) is None:
            return self._found(key)
        self._tell_damage(key, "so it is made again")
        with self.workspace() as work:
            entry.rename(work / "damaged")
        return None

    def _found(self, key: str) -> Path:
        with contextlib.suppress(OSError):
            os.utime(self._entry(key) / RECORD)  # the last use, which only ``gc --older-than`` and listings read
        return self._entry(key) / PAYLOAD

    def _use(self, key: str) -> None:
        """Claim a key before it is looked for, and notice it as an input of what is being built."""
        for used in getattr(self._builds, "stack", ()):
            used.add(key)
        root = self.root.absolute()
        with contextlib.suppress(OSError):  # a store that cannot be written to is not collected either
            serving = [it for it in _SERVING if it.root == root]
            for it in serving:
                it.add(key)
            if not serving and root.exists():
                self._own_claim().add(key)

    def _own_claim(self) -> Claim:
        """Return the claim of a process that reads the store outside a run; it ends with this object."""
        if self._claim is None:
            self._claim = Claim(self.root)
            weakref.finalize(self, self._claim.close)
        return self._claim

    @contextmanager
    def _noticing(self, made_from: Iterable[Path]) -> Iterator[set[str]]:
        """Collect the keys that are used inside the block, besides those of payloads."""
        entries = self.root / "entries"
        used = {path.parent.name for path in made_from if path.parent.parent == entries}
        stack = self._builds.__dict__.setdefault("stack", [])
        stack.append(used)
        try:
            yield used
        finally:
            stack.pop()

    def _new_work(self) -> tuple[Path, int | None]:
        parent = self.root / "work"
        parent.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self._swept = True
            self.sweep()
        while True:
            folder = Path(tempfile.mkdtemp(dir=parent))
            try:
                handle = lock_folder(folder)
            except FileNotFoundError:  # swept by another process in between
                continue
            except OSError:
                return folder, None
            if handle is not None and folder.exists():
                return folder, handle
            if handle is not None:
                os.close(handle)

    def _acquire(self, key: str, label: str) -> FileLock:
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell(f"      waiting for another run, which is making {label!r}")
            lock.acquire()
        return lock

    def _lock(self, key: str) -> FileLock:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def _entry(self, key: str) -> Path:
        return self.root / "entries" / key

    def _tell_damage(self, key: str, consequence: str) -> None:
        entry = read_entry(self._entry(key))
        what = repr(entry.label) if entry else f"entry {key[:12]}"
        self.tell(f"      the stored {what} is damaged ({damage(self._entry(key))}), {consequence}")

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            "The store cannot be written to.",
            value=f"{self.root}: {error.strerror}",
            fix="Set MCOMPRESS_HOME to a folder of yours; finished entries of this one can still be read.",
        )
