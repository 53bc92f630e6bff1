"""The built-in data sets: "support-tickets" (generated, synthetic) and "digits" (scanned)."""

from __future__ import annotations

from compress.data.builtin.digits import digits
from compress.data.builtin.generator import MAX_ROWS, MIN_ROWS, NAME, generate
from compress.data.builtin.grammar import INTENTS

__all__ = ["INTENTS", "MAX_ROWS", "MIN_ROWS", "NAME", "digits", "generate"]
