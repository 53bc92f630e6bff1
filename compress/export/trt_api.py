"""Which TensorRT is here, and what it says: the one module that imports it.

``tensorrt`` (the full library) is taken where it is installed and finds a GPU, else ``tensorrt_rtx``, which has the
same interface and builds engines on a machine without a GPU or a driver.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from compress.errors import MissingCapabilityError
from compress.runtimes import trt_log
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.trt_loading import MODULES, installed
from compress.runtimes.trt_plan import RTX

INSTALL = 'pip install "mcompress[tensorrt-rtx]"'


class Trt(NamedTuple):
    """An imported TensorRT: its module, library name and version."""

    module: Any
    library: str
    version: str


def missing_trt() -> str:
    """Return why no engine can be built here, with the command that helps; empty if one can. Imports nothing."""
    if _candidates():
        return ""
    return f"Neither tensorrt nor tensorrt-rtx is installed: {INSTALL}"


def present_library() -> str:
    """Return the library that engines are built with here; empty without one. Imports nothing."""
    return next((MODULES[name] for name in _candidates()), "")


def load_trt() -> Trt:
    """Import the preferred TensorRT.

    Raises:
        MissingCapabilityError: none is installed, or its libraries cannot be loaded.
    """
    failures = []
    for name in _candidates():
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # bindings without their shared libraries
            failures.append(f"{name}: {error}")
            continue
        return Trt(module, MODULES[name], module.__version__)
    raise MissingCapabilityError(
        "No TensorRT can be loaded.",
        value="; ".join(failures) or "neither tensorrt nor tensorrt-rtx is installed",
        fix=f"Install one: {INSTALL} (builds without a GPU), or the full tensorrt from NVIDIA.",
    )


def _candidates() -> list[str]:
    """Return the installed modules, preferred first: the full library, but not where it lacks the GPU it needs."""
    found = installed()
    if why_no_cuda():
        found.sort(key=lambda name: MODULES[name] != RTX)
    return found


def logged(trt: Trt) -> AbstractContextManager[tuple[Any, list[str]]]:
    """Give TensorRT's logger and the list that its warnings and errors go to while the context is open."""
    return trt_log.logged(trt.module)
