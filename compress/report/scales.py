"""Axes for plots: round ticks and the map from values to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_SPREAD = 25.0
"""From this ratio of largest to smallest on, a latency axis is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """A range of values laid out on a range of pixels.

    Attributes:
        low, high: values at the two ends.
        start, end: pixels at the two ends.
        ticks: round values to mark.
        log: whether equal ratios take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def linear(low: float, high: float, start: float, end: float, want: int) -> Axis:
    """Return an axis that holds [low, high] and begins and ends at a round tick; about ``want`` ticks."""
    if high <= low:
        margin = abs(low) * 0.05 or 1.0
        low, high = low - margin, high + margin
    step = nice_step((high - low) / max(want - 1, 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def latency(values: list[float], start: float, end: float, want: int) -> Axis:
    """Return an axis for times: from zero to a little above the largest, logarithmic if they are far apart."""
    if min(values) > 0 and max(values) / min(values) >= _LOG_SPREAD:
        return _logarithmic(min(values), max(values), start, end)
    high = (max(values) or 1.0) * 1.08
    ticks = linear(0.0, high, start, end, want).ticks
    return Axis(0.0, high, start, end, tuple(tick for tick in ticks if tick <= high))


def nice_step(raw: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in _STEPS if step * power >= raw * (1 - 1e-9))


def tick_text(value: float, ticks: tuple[float, ...]) -> str:
    """Return a tick with as many decimals as the ticks need to differ."""
    decimals = next((d for d in range(6) if all(abs(round(t, d) - t) < 1e-9 * max(1, abs(t)) for t in ticks)), 6)
    return f"{value:.{decimals}f}"


def _logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    rounds = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    first = max(t for t in rounds if t <= low * 0.95)
    last = min(t for t in rounds if t >= high * 1.05)
    return Axis(first, last, start, end, tuple(t for t in rounds if first <= t <= last), log=True)
