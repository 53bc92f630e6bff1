"""Which CPU cores and how many threads a target gets on this machine."""

from __future__ import annotations

import os

from compress.runtimes.target import Target


def usable_cores() -> list[int]:
    """Return the ids of the cores that this process may use, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def thread_count(target: Target) -> int:
    """Return the intra-op threads of a target: its own number, or one for each usable core."""
    return target.threads or len(usable_cores())


def pinned_cores(target: Target) -> list[int]:
    """Return the cores a measuring child is pinned to: the highest ones, as many as it has threads.

    The choice depends on nothing else, so every variant of a comparison runs on the same cores; the lowest
    ones are left to the parent and to interrupts. Empty where the system cannot pin (macOS, Windows), and for an
    emulated CPU: it is not timed, and several of them run at once.
    """
    if target.emulate is not None or not hasattr(os, "sched_setaffinity"):
        return []
    return usable_cores()[-thread_count(target) :]
