"""The measuring child: ``python -m compress.bench.worker``.

Reads one JSON job per line on standard input and answers each with one JSON line, ``{"ok": {...}}`` or
``{"error": "...", "oom": false}``, until its input ends. The first job opens an artifact. Library chatter
goes to standard error: the real standard output is kept for answers. Nothing but the standard library is
imported before the process is pinned to its cores.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from compress.children import die_with_parent


def main() -> int:
    answers = _take_stdout()
    die_with_parent()
    handle: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if handle is None:
                handle = _start(job.pop("cores"))
            answer: dict[str, Any] = {"ok": handle(job)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _one_line(error), "oom": isinstance(error, MemoryError)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _take_stdout() -> TextIO:
    """Return a private handle of standard output and point the descriptor itself at standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return answers


def _start(cores: list[int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if cores:
        os.sched_setaffinity(0, cores)
    from compress.bench.commands import Commands

    return Commands().handle


def _one_line(error: Exception) -> str:
    what = getattr(error, "what", None)
    if what is not None:
        return " ".join(f"{what} {getattr(error, 'value', '')}".split())
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    sys.exit(main())
