"""What a progress sink is told besides words: which step has begun, and what was observed last.

A sink is called as ``emit(message, done, total)``. Both classes are text, so a sink that only prints needs to know
neither of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class StepStarted(str):
    """A step of the run has begun: ``[3/7] distil: ...``."""

    __slots__ = ("label",)
    label: str

    def __new__(cls, step: str, words: str, number: int | None = None, count: int | None = None) -> Self:
        """Make the message of step ``number`` of ``count``; without a number, of what follows the steps."""
        label = step if number is None else f"[{number}/{count}] {step}"
        made = super().__new__(cls, f"{label}: {words}")
        made.label = label
        return made


class Observed(str):
    """An activity that goes on, with what was measured in it.

    Attributes:
        note: the last metrics for a person: ``epoch 2/3, loss 0.41, accuracy 88.9 %``.
        values: the same by name, for a tracker; fractions stay fractions.
    """

    __slots__ = ("note", "values")
    note: str
    values: Mapping[str, float]

    def __new__(cls, activity: str, note: str = "", values: Mapping[str, float] | None = None) -> Self:
        made = super().__new__(cls, activity)
        made.note, made.values = note, dict(values or {})
        return made


def prefixed(prefix: str, message: str) -> str:
    """Put words before a message; what was observed stays with it."""
    if isinstance(message, Observed):
        return Observed(f"{prefix}{message}", message.note, message.values)
    return f"{prefix}{message}"
