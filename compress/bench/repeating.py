"""The child's part of a throughput sweep: hold the batches of one point and time passes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from compress.data.encoded import Encoded
from compress.runtimes.base import Session


class Repeater:
    """Times passes over whole batches.

    Args:
        clock: monotonic time in nanoseconds.
    """

    def __init__(self, session: Session, encoded: Encoded, clock: Callable[[], int]) -> None:
        self._session, self._encoded, self._clock = session, encoded, clock
        self._run: Callable[[Iterator[Mapping[str, np.ndarray]]], None] = lambda feeds: None

    def prepare(self, groups: Sequence[Sequence[int]], streams: int) -> None:
        """Build one batch of each group of examples, open the streams and run every batch once, untimed.

        Raises:
            MissingCapabilityError: the runtime cannot have so many batches in flight.
        """
        self._run = lambda feeds: None
        self._run = self._session.stream(streams)
        self._feeds = [self._encoded.batch(group) for group in groups]
        self._inputs = sum(len(group) for group in groups)
        self._run(iter(self._feeds))

    def repeat(self, seconds: float) -> dict[str, float]:
        """Run whole passes until ``seconds`` are used up; return inputs per second, and the seconds that it took."""
        start, passes = self._clock(), 0

        def feeds() -> Iterator[Mapping[str, np.ndarray]]:
            nonlocal passes
            while not passes or (self._clock() - start) / 1e9 < seconds:
                yield from self._feeds
                passes += 1

        self._run(feeds())
        passed = (self._clock() - start) / 1e9
        return {"per_s": passes * self._inputs / passed, "seconds": passed}
