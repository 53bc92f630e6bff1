"""Several batches in flight in a runtime whose sessions may be called from several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

T = TypeVar("T")


def run_concurrently(run: Callable[[T], None], items: Iterable[T], workers: int) -> None:
    """Call ``run`` on every item from that many threads, each of which takes the next item when it is free.

    Raises:
        Exception: what ``run`` raised first; no further items are then taken.
    """
    source, lock = iter(items), Lock()
    failed = False

    def work() -> None:
        nonlocal failed
        while not failed:
            with lock:
                item = next(source, None)
            if item is None:
                return
            try:
                run(item)
            except BaseException:
                failed = True
                raise

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
