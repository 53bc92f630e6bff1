"""What TensorRT says: it reports a failure by returning None, and logs the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_SEVERITIES = ("internal error", "error", "warning")
LISTING = ("Layers:", "Total Weights Memory:", "Total Activation Memory:")
"""What messages about the finished engine begin with; they are verbose ones."""
_SPARSITY = "(Sparsity)"
"""Stands in the messages that name the layers with sparse kernels."""


@contextmanager
def logged(trt: Any) -> Iterator[tuple[Any, list[str]]]:
    """Give the logger of a TensorRT module, and the list that its warnings and errors go to while this is open.

    Which layers get sparse kernels goes there too. What the builder tells of the finished engine goes to
    ``logger.listing``.
    """
    logger = _logger(trt)
    before, logger.messages, logger.listing = logger.messages, [], []
    try:
        yield logger, logger.messages
    finally:
        logger.messages = before


@cache
def _logger(trt: Any) -> Any:
    """Return the logger of this process: TensorRT keeps the first one that it is given and ignores others."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []
            self.listing: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            level = str(severity).rpartition(".")[2].lower().replace("_", " ")
            if level in _SEVERITIES or _SPARSITY in text:
                self.messages.append(f"{level}: {text.strip()}")
            elif text.startswith(LISTING):
                self.listing.append(text)

    return Messages()
