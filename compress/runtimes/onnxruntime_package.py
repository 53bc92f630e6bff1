"""Which ONNX Runtime is installed. Several distributions share one folder: with two of them neither can be trusted."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from compress.errors import MissingCapabilityError

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")
"""Wheels that all unpack into the folder ``onnxruntime``: the last one installed wins, file by file."""


def installed_distributions() -> list[str]:
    """Return the installed distributions that provide the package ``onnxruntime``."""
    return [name for name in DISTRIBUTIONS if is_installed(name)]


def conflict() -> str:
    """Name the distributions if there are several; empty otherwise."""
    found = installed_distributions()
    if len(found) < 2:
        return ""
    return (
        f"{' and '.join(found)} are both installed and overwrite each other's files: "
        f"pip uninstall {' '.join(found)}, then install only one"
    )


def why_no_onnxruntime() -> str:
    """Return why the package cannot be used, or an empty string. Does not import it."""
    absent = find_spec("onnxruntime") is None
    return conflict() or ("onnxruntime is not installed: pip install 'mcompress[cpu]'" if absent else "")


def import_onnxruntime(module: str = "onnxruntime") -> Any:
    """Import ONNX Runtime, or a module of it, which then reports nothing to its makers unless the user lets it.

    Raises:
        MissingCapabilityError: it is not installed, or two distributions of it are.
    """
    reason = why_no_onnxruntime()
    if reason:
        raise MissingCapabilityError(
            "ONNX Runtime cannot be used here.",
            value=reason,
            fix="Install one of the extras, never both: mcompress[cpu] or mcompress[gpu].",
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_module(module)


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
