"""Memory limits for a child process, by Linux control groups (version 2 or 1)."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path("/sys/fs/cgroup")
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.02


@dataclass(frozen=True)
class MemoryGroup:
    """A control group made for one child: memory is limited, swap is off, and kills are counted."""

    folder: Path
    version: Literal[1, 2]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` so that it joins the group before its own program starts: every page counts."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel killed for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        for line in (self.folder / name).read_text(encoding="ascii").splitlines():
            field, _, value = line.partition(" ")
            if field == "oom_kill":
                return int(value)
        return 0

    def close(self) -> None:
        """Remove the group. Its processes must have ended; the kernel may need a moment to let go of them."""
        for _ in range(_REMOVE_TRIES):
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(_REMOVE_PAUSE_S)
            else:
                return


def create_group(limit_bytes: int, root: Path = ROOT) -> MemoryGroup | None:
    """Make a group limited to ``limit_bytes`` of memory and no swap; None where that is not permitted.

    Whether a process can join is tried out, since a group that can be made cannot always be entered.
    """
    for version, parent in _parents(root):
        group = MemoryGroup(parent / f"mcompress-{os.getpid()}-{uuid.uuid4().hex[:8]}", version)
        try:
            group.folder.mkdir()
        except OSError:
            continue
        if _limit(group, limit_bytes) and subprocess.run(group.wrap(["true"]), capture_output=True).returncode == 0:
            return group
        group.close()
    return None


def _parents(root: Path) -> Iterator[tuple[Literal[1, 2], Path]]:
    """Yield folders in which a memory group may be made, the nearest to this process first."""
    if (root / "cgroup.controllers").is_file():
        own = root / _own_path()
        for folder in (own, *own.parents):
            control = folder / "cgroup.subtree_control"
            if control.is_file() and "memory" in control.read_text(encoding="ascii").split():
                yield 2, folder
            if folder == root:
                break
    if (root / "memory" / "memory.limit_in_bytes").is_file():
        yield 1, root / "memory"


def _own_path() -> str:
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").strip("/")
    return ""


def _limit(group: MemoryGroup, limit_bytes: int) -> bool:
    """Write the limit, then turn swap off; without a swap controller there is no swap to turn off."""
    limit, swap, no_swap = {
        1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit_bytes),
        2: ("memory.max", "memory.swap.max", 0),
    }[group.version]
    try:
        (group.folder / limit).write_text(str(limit_bytes), encoding="ascii")
        if (group.folder / swap).is_file():
            (group.folder / swap).write_text(str(no_swap), encoding="ascii")
    except OSError:
        return False
    return True
