"""Who needs which keys: a file for each run folder, and for each process that reads the store outside a run.

The first line names the run's folder (null: none), every other line is a key. The process that needs the keys holds
a lock on the file while it lives. Afterwards the claim of a run still counts for as long as its folder holds a run;
any other claim counts no more. All of this happens under one lock (the gate), so that a key is either claimed before
``gc`` looks, or looked for after ``gc`` has taken it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from compress.disk import write_atomically

_KEY = re.compile(r"[0-9a-f]{64}")
_RUN_FILE = "run.json"
"""What makes a folder a run's (``compress.pipeline.folder``)."""


def gate(root: Path) -> FileLock:
    """Return the lock under which claims are made and entries are collected."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    return FileLock(root / "locks" / "gate.lock")


class Claim:
    """The keys that this process needs, on record until it is closed.

    Args:
        root: the store.
        run: the folder of the run that needs them; None for a process without a run.

    Raises:
        OSError: the store cannot be written to.
    """

    def __init__(self, root: Path, run: Path | None = None) -> None:
        self.root = root
        self.run = None if run is None else run.absolute()
        self._owner = os.getpid()
        self._keys: set[str] = set()
        (root / "claims").mkdir(parents=True, exist_ok=True)
        with gate(root):
            self._path, self._handle = self._open()

    def add(self, key: str) -> None:
        """Put a key on record."""
        if key in self._keys:
            return
        with gate(self.root):
            os.write(self._handle, f"{key}\n".encode())
            os.fsync(self._handle)
        self._keys.add(key)

    def close(self, *, finished: bool = False) -> None:
        """Let go.

        Args:
            finished: whether a run has come to its end: then what an earlier run of the same folder needed and this
                one did not is needed no more. Otherwise it may be resumed with all of it.
        """
        if self._owner != os.getpid():  # a forked copy: the claim is its parent's
            return
        with contextlib.suppress(OSError), gate(self.root):
            if self.run is None or not (self.run / _RUN_FILE).is_file():
                self._path.unlink(missing_ok=True)
            elif finished:
                write_atomically(self._path, "".join(f"{line}\n" for line in [self._head(), *sorted(self._keys)]))
        with contextlib.suppress(OSError):
            os.close(self._handle)

    def _open(self) -> tuple[Path, int]:
        """Open and lock the file; another one if a run of the same folder is alive."""
        unique = f"{os.getpid()}-{os.urandom(4).hex()}"
        names = [f"process-{unique}"]
        if self.run is not None:
            digest = hashlib.sha256(str(self.run).encode()).hexdigest()[:16]
            names = [digest, f"{digest}-{unique}"]
        for path in (self.root / "claims" / name for name in names):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            except OSError:  # no locks on this file system: the record alone must do
                pass
            size = os.fstat(handle).st_size
            if not size:
                os.write(handle, f"{self._head()}\n".encode())
            elif os.pread(handle, 1, size - 1) != b"\n":  # an owner that died while it wrote
                os.write(handle, b"\n")
            return path, handle
        raise FileExistsError(names[-1])

    def _head(self) -> str:
        return json.dumps({"run": None if self.run is None else str(self.run)})


@dataclass
class Claimed:
    """What is needed, by key.

    Attributes:
        live: key -> claims of living processes that name it, as their run's folder or "a process".
        runs: key -> folders of runs that exist and named it.
    """

    live: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)


def read_claims(root: Path, *, tidy: bool = False) -> Claimed:
    """Read every claim.

    Args:
        root: the store.
        tidy: remove claims that count no more; the caller holds the gate.
    """
    found = Claimed()
    for path in sorted((root / "claims").glob("*")):
        if path.name.startswith("."):
            continue
        try:
            run, keys = _read(path)
        except OSError:
            continue
        alive = _is_locked(path)
        exists = run is not None and (Path(run) / _RUN_FILE).is_file()
        for key in keys:
            if alive:
                found.live.setdefault(key, []).append(run or "a process")
            if exists and run not in found.runs.get(key, []):
                found.runs.setdefault(key, []).append(str(run))
        if tidy and not alive and not exists:
            path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> tuple[str | None, Iterator[str]]:
    """Return folder and keys; a line that its writer's death cut short is no key."""
    head, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        run = json.loads(head)["run"]
    except (ValueError, KeyError, TypeError):
        run = None
    return run, (line for line in dict.fromkeys(lines) if _KEY.fullmatch(line))


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True  # it cannot be known here
    finally:
        os.close(handle)
    return False
