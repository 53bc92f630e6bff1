"""Runs recipes again and again in forked processes, each of which meets one fault at its n-th file operation.

Reads one JSON job per line on standard input, ``{"recipe", "home", "out", "at", "how"}``, and answers each with
``{"code", "operations", "said"}``. ``at`` 0 means that nothing happens. Its working folder is its own.

What counts as an operation: whatever changes a file or a folder below ``home`` or ``out`` (opened for writing,
renamed, removed, made), and every fsync. ``how`` is one of

- ``kill``: the process is gone, as by ``kill -9``;
- ``power``: the same, and every byte that was not synced by then is lost: such files are cut in half;
- ``full``: from then on nothing can be written, as on a full disk; removing and renaming go on;
- ``memory``, ``interrupt``: a MemoryError, a KeyboardInterrupt out of that very operation, unless it removes
  something: whoever is interrupted while cleaning up may leave the rest to the next run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_GROWING = {"open", "os.mkdir", "os.fsync"}
_CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.mkdir"}


class Faults:
    """The fault of one process."""

    def __init__(self, roots: list[Path], at: int, how: str, count_file: Path) -> None:
        self.roots = [str(root) for root in roots]
        self.at, self.how, self.count = at, how, 0
        self.count_file = count_file
        self.quiet = False
        self.durable = {inode(path): digest(path) for path in self.files()} if how == "power" else {}

    def install(self) -> None:
        sync = os.fsync

        def fsync(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            self.hook("os.fsync", (path,))
            sync(handle)
            if self.how == "power" and path.is_file():
                self.durable[inode(path)] = digest(path)

        os.fsync = fsync
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.quiet or not self.counts(event, arguments):
            return
        if self.how in ("memory", "interrupt") and event in ("os.remove", "os.rmdir"):
            return
        self.count += 1
        if self.at and self.count == self.at:
            self.strike()
        if self.at and self.count >= self.at and self.how == "full" and event in _GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITING:
                return False
        elif event in _CHANGING or event == "os.fsync":
            path = arguments[0]
        else:
            return False
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - resolve() would ask the disk
        return any(place.startswith(root) for root in self.roots)

    def strike(self) -> None:
        self.quiet = True
        if self.how == "power":
            for path in self.files():
                if self.durable.get(inode(path)) != digest(path):
                    os.truncate(path, path.stat().st_size // 2)
        if self.how in ("kill", "power"):
            os._exit(137)
        self.quiet = False
        if self.how == "memory":
            raise MemoryError
        if self.how == "interrupt":
            raise KeyboardInterrupt

    def files(self) -> list[Path]:
        self.quiet, before = True, self.quiet
        found = [path for root in self.roots for path in Path(root).rglob("*") if path.is_file()]
        self.quiet = before
        return found


def inode(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_dev, seen.st_ino


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(job: dict[str, Any], count_file: Path) -> int:
    """Do the work of one process; return the exit code that the command would have."""
    import compress
    from compress.errors import CompressError

    home, out = Path(job["home"]), Path(job["out"])
    faults = Faults([home, out], job["at"], job["how"], count_file)
    said = []
    faults.install()
    try:
        result = compress.run(
            job["recipe"], out, store=compress.Store(home), emit=lambda message, *_: said.append(message)
        )
        code = result.exit_code
    except CompressError as error:
        said.append(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except MemoryError:
        said.append("MemoryError")
        code = 4
    faults.quiet = True
    count_file.write_text(json.dumps({"operations": faults.count, "said": list(map(str, said))}))
    return code


def main() -> int:
    import onnx  # noqa: F401 - imported once, before the forks
    import onnxruntime  # noqa: F401
    import torch

    import compress.api
    import compress.distillation.training
    import compress.export.onnx_export  # noqa: F401
    from compress.passes.base import passes

    for name in passes:
        passes.get(name)
    torch.set_num_threads(1)
    count_file = Path("count.json").absolute()
    for line in sys.stdin:
        count_file.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            code = 99
            os.dup2(2, 1)
            try:
                code = run(json.loads(line), count_file)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        known = json.loads(count_file.read_text()) if count_file.is_file() else {"operations": 0, "said": []}
        print(json.dumps({"code": code} | known), flush=True)
    count_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
