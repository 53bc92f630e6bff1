"""The files of a model folder that decide what the model is."""

from __future__ import annotations

import hashlib
from pathlib import Path

READ = frozenset({".json", ".txt", ".model", ".safetensors"})
"""Suffixes of the files that can influence what is taken in."""


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that are read, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in READ)


def hash_files(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of every file of a model folder that is read."""
    out = {}
    for path in model_files(folder):
        with path.open("rb") as file:
            out[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return out
