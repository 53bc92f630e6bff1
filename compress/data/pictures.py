"""An image as a row holds it: pixels in memory, or a file that is opened when its pixels are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import DataError, MissingCapabilityError
from compress.reading import Unreadable, local_path

IMAGE = "image"
"""Name of the task column that holds an image."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded. Pillow also opens formats that it hands to other programs (EPS)."""
LARGEST_FILE = 256 * 2**20
"""Bytes of one image file."""
INSTALL = 'pip install "mcompress[vision]"'


@dataclass(frozen=True)
class Picture:
    """One image. Two are equal when their content is, wherever it lies.

    Attributes:
        digest: sha256 of the file, or of the pixels and their shape; this is what digests of rows see.
    """

    digest: str
    _source: Path | np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of_pixels(cls, pixels: np.ndarray) -> Picture:
        """Make a picture of (height, width), (height, width, 1) or (height, width, 3) uint8 pixels.

        Raises:
            DataError: another type or shape.
        """
        pixels = _checked(pixels, "pixels in memory")
        return cls(hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(), pixels)

    @classmethod
    def of_file(cls, path: Path) -> Picture:
        """Make a picture of a file: ``.npy`` (uint8 pixels), or one of ``FORMATS``.

        Raises:
            DataError: the file does not exist.
        """
        try:
            size = path.stat().st_size if path.is_file() else 0
            if size > LARGEST_FILE:
                raise DataError(
                    "An image file is too large.",
                    value=f"{path}: {size:,} bytes, at most {LARGEST_FILE:,}",
                    fix="Store the image smaller: the model sees a few hundred pixels of each side.",
                )
            return cls(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a name
            raise DataError(
                "An image file cannot be read.",
                value=f"{path}: {type(error).__name__}",
                fix="Check the path; relative ones start at the folder of the table that names them.",
            ) from error

    def pixels(self) -> np.ndarray:
        """Return the pixels: (height, width, 1 or 3) uint8.

        Raises:
            DataError: the file is not an image.
            MissingCapabilityError: the file needs Pillow, which is not installed.
        """
        if isinstance(self._source, np.ndarray):
            return self._source
        if self._source.suffix.lower() == ".npy":
            return _checked(_load_array(self._source), self._source.name)
        return _decode(self._source)


def read_picture(value: Any, folder: Path | None, place: str) -> Picture | None:
    """Read one cell of an image column; None for an empty one.

    Args:
        value: a path, pixels as an array or nested lists, an image object that numpy can read, or a picture.
        folder: where relative paths start; None: the working directory.
        place: where the cell stands, for an error.

    Raises:
        DataError: the cell holds something else, or names a file that cannot be read.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, Picture):
        return value
    if isinstance(value, str | Path):
        try:
            path = local_path(str(value))
        except Unreadable as error:
            raise DataError(
                "An image file cannot be read.", value=f"{place}: {error}", fix="Write the path of an image file."
            ) from error
        return Picture.of_file(path if folder is None else folder / path)
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        return Picture.of_pixels(_as_bytes(value, place))
    raise DataError(
        "A cell of an image column is neither a path nor pixels.",
        value=f"{place}: {type(value).__name__}",
        fix="Write the path of an image file, or its pixels as nested lists of whole numbers from 0 to 255.",
    )


def _as_bytes(value: Any, place: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        fits = array.dtype.kind in "iub" and array.size > 0 and array.min() >= 0 and array.max() <= 255
    except ValueError:
        fits = False
    if not fits:
        raise DataError(
            "The pixels of an image are not whole numbers from 0 to 255.",
            value=place,
            fix="Store uint8 pixels: (height, width) or (height, width, channels).",
        )
    return array.astype(np.uint8)


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return (height, width, 1 or 3) uint8; an alpha channel is dropped."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise DataError(
            "An image is not (height, width), (height, width, 1) or (height, width, 3) uint8.",
            value=f"{name}: {pixels.dtype} {pixels.shape}",
            fix="Store pixels from 0 to 255 with the channels last.",
        )
    return np.ascontiguousarray(pixels)


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.array(np.load(path, allow_pickle=False, mmap_mode="r"))  # mapped, so a false shape takes no memory
    except Exception as error:  # numpy parses the header, and opens archives
        raise _unreadable(path, error) from error


def _decode(path: Path) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingCapabilityError(
            "Image files are read with Pillow, which is not installed.",
            value=path.name,
            fix=f"Install it: {INSTALL}. Pixels in .npy files need nothing.",
        ) from error
    try:
        with Image.open(path, formats=FORMATS) as image:
            plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
            return _checked(np.asarray(plain, dtype=np.uint8), path.name)
    except DataError:
        raise
    except Exception as error:  # decoders raise types of their own, and so does one that refuses a bomb
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    lines = str(error).splitlines() or [type(error).__name__]
    return DataError(
        "A file is not an image that can be read.", value=f"{path.name}: {lines[0]}", fix="Repair or remove it."
    )
