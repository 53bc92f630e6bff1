"""Look after a store: list what it holds and who needs it, collect what nobody needs, verify every byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from compress.disk import size_of
from compress.store.claims import Claimed, gate, read_claims
from compress.store.entries import PAYLOAD, RECORD, damage, read_entry
from compress.store.keeping import Store


@dataclass(frozen=True)
class Listed:
    """An entry, or the checkpoints of an unfinished step, as listings show it.

    Attributes:
        key: 64 hex digits.
        label: what it is; empty if its record cannot be read.
        bytes: on the disk.
        age_s: since its last use, by the clock of this machine; never negative.
        made_from: keys of the entries that it was made from.
        in_use: what is using it right now: folders of runs, or "a process".
        runs: folders of runs that exist and used it.
        finished: whether it is an entry.
    """

    key: str
    label: str
    bytes: int
    age_s: float
    made_from: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    finished: bool = True

    @property
    def needed(self) -> bool:
        return bool(self.in_use or self.runs)


@dataclass
class Collected:
    """What ``collect`` removed, or would remove.

    Attributes:
        removed: entries and checkpoints.
        kept: how many stay, by the reason.
        bytes: of what was removed.
    """

    removed: list[Listed] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(it.bytes for it in self.removed)


def list_store(store: Store, *, now: float | None = None) -> list[Listed]:
    """Return everything that the store keeps, the largest first.

    Args:
        store: need not exist.
        now: seconds since 1970; the clock's if left out.
    """
    claimed, moment = read_claims(store.root), time.time() if now is None else now
    found = [_listed(folder, claimed, moment, finished=True) for folder in _folders(store, "entries")]
    found += [_listed(folder, claimed, moment, finished=False) for folder in _folders(store, "partial")]
    return sorted((it for it in found if it is not None), key=lambda it: (-it.bytes, it.key))


def collect(
    store: Store, *, older_than_s: float, keep_runs: bool = True, dry_run: bool = False, now: float | None = None
) -> Collected:
    """Remove entries and checkpoints that nobody needs, and what dead processes left behind.

    What a living process uses, or is making, is never touched, whatever the arguments are.

    Args:
        store: the store.
        older_than_s: what was used since is kept.
        keep_runs: whether what a run used is kept for as long as its folder exists.
        dry_run: remove nothing.
        now: seconds since 1970; the clock's if left out.
    """
    found, listed = Collected(), list_store(store, now=now)
    if not listed and not store.root.exists():
        return found
    with store.workspace() as trash, gate(store.root):
        claimed = read_claims(store.root, tidy=not dry_run)
        for it in listed:
            reason = _why_kept(it, claimed, older_than_s, keep_runs=keep_runs)
            with _unless_busy(store, it.key) as free:
                if reason is None and not free:
                    reason = "in use"
                if reason is None:
                    found.removed.append(it)
                    if not dry_run:
                        part = "entries" if it.finished else "partial"
                        (store.root / part / it.key).rename(trash / f"{part}-{it.key}")
                else:
                    found.kept[reason] = found.kept.get(reason, 0) + 1
    if not dry_run:
        store.sweep()
    return found


def verify_store(store: Store, emit: Callable[[int, int], object]) -> list[tuple[Listed, str | None]]:
    """Hash every file of every entry.

    Args:
        store: the store.
        emit: progress, called with (done, total).

    Returns:
        Each entry with what is wrong with it, or None. One that was removed meanwhile is left out.
    """
    listed, out = [it for it in list_store(store) if it.finished], []
    for done, it in enumerate(listed, 1):
        wrong = damage(store.root / "entries" / it.key)
        if (store.root / "entries" / it.key).exists():
            out.append((it, wrong))
        emit(done, len(listed))
    return out


def _folders(store: Store, part: str) -> list[Path]:
    return sorted(path for path in (store.root / part).glob("*") if path.is_dir())


def _listed(folder: Path, claimed: Claimed, now: float, *, finished: bool) -> Listed | None:
    """Return None for what vanished meanwhile."""
    key, entry = folder.name, read_entry(folder) if finished else None
    try:
        used = (folder / RECORD if finished and entry else folder).stat().st_mtime
    except OSError:
        return None
    if not finished:
        used = max([used, *(path.lstat().st_mtime for path in folder.rglob("*") if path.exists())])
    return Listed(
        key=key,
        label=entry.label if entry else "" if finished else "checkpoints of an unfinished step",
        bytes=size_of(folder / PAYLOAD if entry else folder),
        age_s=max(now - used, 0.0),
        made_from=entry.made_from if entry else (),
        in_use=tuple(claimed.live.get(key, ())),
        runs=tuple(claimed.runs.get(key, ())),
        finished=finished,
    )


def _why_kept(it: Listed, claimed: Claimed, older_than_s: float, *, keep_runs: bool) -> str | None:
    if it.key in claimed.live:
        return "in use"
    if keep_runs and it.key in claimed.runs:
        return "used by a run that exists"
    return "used recently" if it.age_s < older_than_s else None


@contextmanager
def _unless_busy(store: Store, key: str) -> Iterator[bool]:
    """Hold the lock of a key; False if somebody else does."""
    lock = FileLock(store.root / "locks" / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
