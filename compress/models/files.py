"""The files of a model folder that decide what the model is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from compress.errors import ModelError

READ = frozenset({".json", ".txt", ".model", ".safetensors"})
"""Suffixes of the files that can influence what is taken in."""


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that are read, by name.

    Raises:
        ModelError: one of them is not a file, cannot be read, or is a link that leads outside.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in READ)
        for path in files:
            refuse_way_out(path, folder)
            if not path.is_file():
                raise ModelError(
                    "Something in the model folder has the name of a file and is none.",
                    value=f"{folder.name}/{path.name}",
                    fix="Remove it, or save the model again with `save_pretrained`.",
                )
            with path.open("rb"):
                pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ModelError(
            "The model folder cannot be read.",
            value=f"{folder.name}: {getattr(error, 'strerror', None) or error}",
            fix="Make the folder and its files readable.",
        ) from error
    return files


def refuse_way_out(path: Path, folder: Path) -> None:
    """Refuse a path below ``folder`` that leads out of it, by ``..`` or by a link.

    The links of a hub cache are as they should be: from ``snapshots/<revision>`` to the ``blobs`` beside it.

    Raises:
        ModelError: it does.
        OSError, RuntimeError: it cannot be followed.
    """
    home = folder.resolve()
    homes = [home, *(place.parent / "blobs" for place in home.parents if place.name == "snapshots")]
    if not any(path.resolve().is_relative_to(place) for place in homes):
        raise ModelError(
            "A file of the model leads outside its folder.",
            value=f"{folder.name}/{path.name}",
            fix="Put a copy of the file in its place, or name the folder that holds the files themselves.",
        )


def hash_files(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of every file of a model folder that is read."""
    out = {}
    for path in model_files(folder):
        with path.open("rb") as file:
            out[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return out
