"""The built-in data set "support-tickets": generated, synthetic, the same on every machine."""

from __future__ import annotations

from compress.data.builtin.generator import MAX_ROWS, MIN_ROWS, NAME, generate
from compress.data.builtin.grammar import INTENTS

__all__ = ["INTENTS", "MAX_ROWS", "MIN_ROWS", "NAME", "generate"]
