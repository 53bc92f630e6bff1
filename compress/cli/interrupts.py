"""Ctrl-C, a polite kill and a closed terminal: one clean line and exit code 130, whenever they come.

Standard library only: it is the first thing that the command imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = "interrupted: finished steps are kept; run the same command again to go on."
CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn each of these signals into a KeyboardInterrupt; while that is cleaned up after, no other disturbs.

    A signal that is ignored (a job in the background, ``nohup``) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heard = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in heard:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number in heard:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def leave_on_interrupt() -> None:
    """While nothing has begun that would have to be cleaned up after, end at once, in the same words."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(CODE)

    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, leave)


def end() -> NoReturn:
    """End an interrupted command, after all has been cleaned up, with its exit code.

    Left to itself, an interpreter that was started with ``-m`` kills itself with SIGINT if the interrupt came while a
    text was being executed, as libraries do, however well it was handled (CPython's ``unhandled_keyboard_interrupt``).
    """
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # whoever read it is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(CODE)
