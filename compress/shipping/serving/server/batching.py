"""Requests that wait at the same time run together, where that changes no answer.

Nothing waits for company: as soon as a stream is free it takes the oldest example and what else waits in its shape, up
to the best batch that was measured. Examples of different lengths never share a batch, so none is padded, and an
answer does not depend on who else asks. (Where it would even so, as in dynamic INT8, the batch is 1.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np

from compress.shipping.serving.server.encoding import Example

Run = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Input -> (n, ...), to (n, labels) float32."""
_Waiting = tuple[int, Example, "asyncio.Future[np.ndarray]"]


class Busy(Exception):
    """Too much waits already; ask again later (HTTP 503)."""


class Batcher:
    """A queue in front of a model. Lives in one event loop; the model runs in threads of its own."""

    def __init__(self, run: Run, *, batch: int, streams: int, queue: int, seen: Callable[[int], None]) -> None:
        """Start with an empty queue.

        Args:
            run: the model, called by up to ``streams`` threads at once.
            batch: examples that run together at most.
            streams: batches that run at once.
            queue: examples that wait at most.
            seen: told the size of each batch.
        """
        self._run, self._batch, self._seen = run, batch, seen
        self._free, self.queue, self.waiting = streams, queue, 0
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="model")
        self._shapes: dict[tuple[tuple[int, ...], ...], deque[_Waiting]] = {}
        self._numbers = count()

    async def ask(self, examples: Sequence[Example]) -> np.ndarray:
        """Return the logits of examples, (n, labels) float32.

        Raises:
            Busy: they do not fit into the queue.
        """
        if self.waiting + len(examples) > self.queue:
            raise Busy(f"{self.waiting:,} examples wait already, at most {self.queue:,} may; ask again later.")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in examples]
        for example, future in zip(examples, futures, strict=True):
            shape = tuple(array.shape for array in example.values())
            self._shapes.setdefault(shape, deque()).append((next(self._numbers), example, future))
        self.waiting += len(examples)
        self._start()
        return np.stack(await asyncio.gather(*futures))

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        while self._free and self._shapes:
            together = self._take()
            if together:
                self._free -= 1
                self._seen(len(together))
                arrays = {name: np.stack([each[1][name] for each in together]) for name in together[0][1]}
                task = loop.run_in_executor(self._threads, self._run, arrays)
                task.add_done_callback(lambda done, together=together: self._finish(done, together))  # type: ignore[misc]

    def _take(self) -> list[_Waiting]:
        """Take the oldest example and what waits in its shape; leave out whose asker has gone."""
        shape = min(self._shapes, key=lambda each: self._shapes[each][0][0])
        line = self._shapes[shape]
        together = [line.popleft() for _ in range(min(self._batch, len(line)))]
        if not line:
            del self._shapes[shape]
        self.waiting -= len(together)
        return [each for each in together if not each[2].done()]

    def _finish(self, done: asyncio.Future[np.ndarray], together: list[_Waiting]) -> None:
        self._free += 1
        error = done.exception()
        for i, (_, _, future) in enumerate(together):
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result()[i])
        self._start()
