"""The built-in data set "digits": 1,797 scanned digits of 8 x 8 pixels (UCI, CC BY 4.0; see DIGITS.md)."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

from compress.data.calibration import stratified_indices
from compress.data.pictures import Picture

NAME = "digits"
ROWS = 1797
LEVELS = 16
"""The brightest level of a stored pixel."""
_HELD_OUT = 6
"""Validation and test get a sixth of the rows each."""


def digits(rows: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return train, validation and test: ``image`` (8, 8, 1) uint8 and ``label`` "0" to "9".

    Args:
        rows: rows in all three splits together, at most 1,797; a smaller number is a stratified sample.
        seed: of the sample and of the split; both keep each digit's share.
    """
    place = resources.as_file(resources.files("compress.data.builtin") / "digits.npz")
    with place as path, np.load(path, allow_pickle=False) as file:
        levels, labels = file["levels"].astype(np.uint16), [str(label) for label in file["labels"]]
    pixels = ((levels * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)[..., None]
    chosen = stratified_indices(labels, rows, seed)
    held = _take(chosen, labels, 2 * (rows // _HELD_OUT), seed)
    parts = {"validation": _take(held, labels, rows // _HELD_OUT, seed)}
    parts["test"] = [i for i in held if i not in set(parts["validation"])]
    parts["train"] = [i for i in chosen if i not in set(held)]
    return {
        name: [{"image": Picture.of_pixels(pixels[i]), "label": labels[i]} for i in parts[name]]
        for name in ("train", "validation", "test")
    }


def _take(indices: list[int], labels: list[str], count: int, seed: int) -> list[int]:
    return [indices[i] for i in stratified_indices([labels[i] for i in indices], count, seed)]
