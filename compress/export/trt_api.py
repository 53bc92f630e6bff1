"""Which TensorRT is here, and what it says: the one module that imports it.

``tensorrt`` (the full library) is taken where it is installed, else ``tensorrt_rtx``, which has the same
interface and builds engines on a machine without a GPU or a driver.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from compress.errors import MissingCapabilityError
from compress.runtimes.tensorrt import MODULES

INSTALL = 'pip install "mcompress[tensorrt-rtx]"'
_SEVERITIES = ("internal error", "error", "warning")


class Trt(NamedTuple):
    """An imported TensorRT: its module, library name and version."""

    module: Any
    library: str
    version: str


def missing_trt() -> str:
    """Return why no engine can be built here, with the command that helps; empty if one can. Imports nothing."""
    if any(importlib.util.find_spec(name) for name in MODULES):
        return ""
    return f"Neither tensorrt nor tensorrt-rtx is installed: {INSTALL}"


def load_trt() -> Trt:
    """Import the preferred TensorRT.

    Raises:
        MissingCapabilityError: none is installed, or its libraries cannot be loaded.
    """
    failures = []
    for name, library in MODULES.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # bindings without their shared libraries
            failures.append(f"{name}: {error}")
            continue
        return Trt(module, library, module.__version__)
    raise MissingCapabilityError(
        "No TensorRT can be loaded.",
        value="; ".join(failures) or "neither tensorrt nor tensorrt-rtx is installed",
        fix=f"Install one: {INSTALL} (builds without a GPU), or the full tensorrt from NVIDIA.",
    )


@contextmanager
def logged(trt: Trt) -> Iterator[tuple[Any, list[str]]]:
    """Give TensorRT's logger and the list that its warnings and errors go to while the context is open."""
    logger = _logger(trt.module)
    before, logger.messages = logger.messages, []
    try:
        yield logger, logger.messages
    finally:
        logger.messages = before


@cache
def _logger(module: Any) -> Any:
    """Return the logger of this process: TensorRT keeps the first one that it is given and ignores others."""

    class Messages(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            level = str(severity).rpartition(".")[2].lower().replace("_", " ")
            if level in _SEVERITIES:
                self.messages.append(f"{level}: {text.strip()}")

    return Messages()
