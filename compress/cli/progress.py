"""Progress on standard error: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from compress.progress import Observed, StepStarted
from compress.report.visible import visible

QUIET_SECONDS = 10.0
"""Where no line can be redrawn, an activity is told at most this often."""
_REDRAW_SECONDS = 0.1
_CERTAIN_SECONDS = 2.0
"""The time left is not guessed from less than this."""


class ProgressPrinter:
    """A progress sink: which step of how many, what it does, the last metric, and the time left of that activity.

    What has begun or ended is a line that stays. An activity with a count is redrawn in place on a terminal, without
    colour or escape sequences; where standard error is no terminal, or ``TERM=dumb``, it is told once in ten seconds.

    Args:
        stream: where to; standard error if left out.
        clock: seconds that never run backwards.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._step = ""
        self._activity = ""
        self._begun = self._told = clock()
        self._first = 0
        self._drawn = 0

    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        now = self._clock()
        if isinstance(message, StepStarted):
            self._step, self._activity = message.label, ""
        if done is None:
            self._line(message, now)
            return
        if message != self._activity:
            self._activity, self._begun, self._first = str(message), now, done
            fresh = True
        else:
            fresh = False
        finished = total is not None and done >= total
        if self._live:
            if fresh or finished or now - self._told >= _REDRAW_SECONDS:
                self._draw(self._words(message, done, total, now), now)
        elif now - self._told >= QUIET_SECONDS:
            self._line(self._words(message, done, total, now), now)

    def close(self) -> None:
        """Take the live line away; whatever is printed next begins a line."""
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0

    def _words(self, message: str, done: int, total: int | None, now: float) -> str:
        doing = f"{self._step}: {message}" if self._step else str(message)
        note = message.note if isinstance(message, Observed) else ""
        parts = [doing + (f", {note}" if note else ""), f"{done}/{total}" if total else f"{done}"]
        if total and self._first < done < total and now - self._begun >= _CERTAIN_SECONDS:
            left = (now - self._begun) * (total - done) / (done - self._first)
            parts.append(f"{duration(left)} left")
        return " | ".join(parts)

    def _draw(self, text: str, now: float) -> None:
        from rich.cells import cell_len, set_cell_size

        text = visible(text, breaks=True)
        width = max(shutil.get_terminal_size().columns - 1, 20)
        shown = text if cell_len(text) <= width else _squeezed(text, width)
        size = cell_len(shown)
        self._stream.write("\r" + set_cell_size(shown, max(size, min(self._drawn, width))))
        self._stream.flush()
        self._drawn, self._told = max(size, 1), now

    def _line(self, text: str, now: float) -> None:
        self.close()
        self._stream.write(f"{visible(text)}\n")
        self._stream.flush()
        self._told = now


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _squeezed(text: str, width: int) -> str:
    """Shorten the activity, so that the count and the time left stay in sight."""
    from rich.cells import cell_len, set_cell_size

    head, bar, tail = text.partition(" | ")
    room = width - cell_len(bar + tail) - 1
    if room < 10:
        return set_cell_size(text, width)
    return set_cell_size(head, room) + "…" + bar + tail
