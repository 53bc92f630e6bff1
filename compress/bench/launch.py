"""The parent's end of a measuring child: start it, ask it, and turn its death into a reason."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from compress.bench.limits import create_group
from compress.errors import CompressError
from compress.runtimes.cores import pinned_cores, thread_count
from compress.runtimes.isa_cap import capped_environment
from compress.runtimes.target import Target
from compress.trust import trusted

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CHECKED = "checked afterwards"
"""How a memory limit is held where no control group can be made."""
ENDED = "the measuring process had ended"
"""Why something that a row can do without was not measured, where the reason of the end is in the row already."""
_STDERR_LINES = 3
_EXIT_PATIENCE_S = 5.0
_FOLDERS = re.compile(r"""(?<![\w./])(?<!:/)/(?!/)(?:[^\s/:'"<>]+/)+""")


class ChildError(Exception):
    """A child could not do its job; ``status`` and ``reason`` go into the measurement's row."""

    def __init__(self, status: Literal["failed", "oom"], reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


class Child:
    """A fresh process for one artifact on one target. Use it as a context manager: it never outlives the block.

    Args:
        target: threads, cores and memory limit of the process.
        limited: whether the target's memory limit binds this process.

    Raises:
        ChildError: the target's cap on instructions could not be put in place.
    """

    def __init__(self, target: Target, *, limited: bool = True) -> None:
        capped = _capped(target)
        self.cores = pinned_cores(target)
        self._folders: tuple[str, ...] = ()
        self._limit = target.memory_bytes if limited else None
        self._group = create_group(self._limit) if self._limit is not None else None
        command = [sys.executable, "-P", "-m", "compress.bench.worker"]
        threads = dict.fromkeys(_THREAD_VARIABLES, str(thread_count(target)))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            self._group.wrap(command) if self._group else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | capped | threads | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            encoding="utf-8",
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def enforcement(self) -> str | None:
        """How the memory limit is held: by a control group, or by a look at the peak afterwards."""
        if self._limit is None:
            return None
        return f"cgroup v{self._group.version}" if self._group else CHECKED

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        """Send one job and wait for its answer.

        Raises:
            ChildError: the job failed in the child, or the child died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # pragma: no cover - Popen was given pipes
            raise ChildError("failed", "the measuring process has no pipes")
        try:
            stdin.write(json.dumps({"op": op} | job) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):  # nothing, or what a killed process had written by then
            raise self._death(op)
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(
                "oom" if answer["oom"] else "failed", f"{op}: {without_folders(answer['error'], self._folders)}"
            )
        result: dict[str, Any] = answer["ok"]
        return result

    def open(self, artifact: str, target: Target, encoded: str) -> dict[str, Any]:
        """Send the first job, which also pins the process."""
        self._folders = (artifact, str(Path(encoded).parent))
        place = target.model_dump(mode="json")
        trust = sorted(trusted())
        return self.ask("open", cores=self.cores, artifact=artifact, target=place, encoded=encoded, trust=trust)

    def close(self, *, kill: bool = False) -> None:
        """End the process, politely unless ``kill``, and remove its control group."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                kill = True
        if not kill:
            try:
                self._process.wait(_EXIT_PATIENCE_S)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            self._kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()
        if self._group:
            self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(kill=kind is not None)

    def _kill(self) -> None:
        """Kill the process and what it started: it leads a session of its own."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()

    def _death(self, op: str) -> ChildError:
        code = self._process.wait()
        if self._group and self._group.oom_kills():
            return ChildError("oom", f"{op}: killed at the memory limit of {(self._limit or 0) / 2**20:g} MiB")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        said = without_folders(" | ".join(line.strip() for line in lines[-_STDERR_LINES:]), self._folders)
        return ChildError("failed", f"{op}: the measuring process ended with {how}{': ' if said else ''}{said}")


def _capped(target: Target) -> dict[str, str]:
    try:
        return capped_environment(target)
    except CompressError as error:
        raise ChildError("failed", f"{error.what} {without_folders(str(error.value))}") from error


def without_folders(text: str, known: Sequence[str] = ()) -> str:
    """Return ``text`` with every absolute path cut down to its last name: reports hold no machine paths.

    Args:
        known: folders to cut out by name first, since a path with a space in it cannot be told from prose.
    """
    for folder in known:
        text = text.replace(f"{folder}/", "").replace(folder, Path(folder).name)
    return _FOLDERS.sub("", text)
