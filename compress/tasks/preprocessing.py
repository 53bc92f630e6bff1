"""From pixels to what an image model takes, as a folder's ``preprocessor_config.json`` says; numpy alone.

Follows the image processors of Transformers on Pillow: resize (rounded to whole levels after each axis), crop
the centre, rescale, normalise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ModelError
from compress.reading import read_json

PREPROCESSOR = "preprocessor_config.json"
_LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R 601: what Pillow weighs red, green and blue with."""
_NEAREST, _BILINEAR, _BICUBIC = 0, 2, 3
"""Pillow's numbers of the filters, as ``resample`` names them."""
_LARGEST = 8192
"""Pixels of a side."""
_NO_CROP = 384
"""From this side on, processors with a ``crop_pct`` resize without a crop."""


@dataclass(frozen=True)
class Preprocessor:
    """How an image becomes ``pixel_values``.

    Attributes:
        channels: 1 (grey) or 3 (red, green, blue).
        height, width: of the result, pixels.
        shortest: resize so that the shorter side has this many pixels, then crop; None: resize to height x width.
        resample: Pillow's number of the filter: 0 nearest, 2 bilinear, 3 bicubic.
        scale: factor of the 0 to 255 levels.
        mean, std: one for each channel, applied after ``scale``.
    """

    channels: int
    height: int
    width: int
    shortest: int | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one example's ``pixel_values``."""
        return self.channels, self.height, self.width

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Turn (height, width, 1 or 3) uint8 into (channels, height, width) float32."""
        pixels = _convert(pixels, self.channels)
        if self.shortest is not None:
            factor = self.shortest / min(pixels.shape[:2])
            size = [max(self.shortest, int(side * factor)) for side in pixels.shape[:2]]
            pixels = _crop(resize(pixels, size[0], size[1], self.resample), self.height, self.width)
        else:
            pixels = resize(pixels, self.height, self.width, self.resample)
        values = (pixels * self.scale - np.array(self.mean)) / np.array(self.std)
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def read_preprocessor(folder: Path, channels: int) -> Preprocessor:
    """Read ``preprocessor_config.json`` of a model folder.

    Args:
        folder: holds the file.
        channels: what the model's config calls ``num_channels``.

    Raises:
        ModelError: the file is missing, or asks for something that is not supported.
    """
    source = folder / PREPROCESSOR
    if not source.is_file():
        raise ModelError(
            f"The model folder has no {PREPROCESSOR}.",
            value=folder.name,
            fix="Save the image processor there: AutoImageProcessor.from_pretrained(...).save_pretrained(folder).",
        )
    try:
        return _parse(dict(read_json(source)), folder, channels)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{PREPROCESSOR} cannot be read.",
            value=f"{folder.name}: {error}",
            fix="Save it again: AutoImageProcessor.from_pretrained(...).save_pretrained(folder).",
        ) from error


def _parse(config: Mapping[str, Any], folder: Path, channels: int) -> Preprocessor:
    height, width, shortest = _sizes(config, folder)
    if not (0 < height <= _LARGEST and 0 < width <= _LARGEST and 0 < (shortest or 1) <= _LARGEST):
        raise ModelError(
            "The image processor makes images of an absurd size.",
            value=f"{folder.name}: {height} x {width}",
            fix=f"Give every image from 1 to {_LARGEST} pixels on each side.",
        )
    normalise = config.get("do_normalize", True)
    resample = int(config.get("resample", _BILINEAR))
    if resample not in (_NEAREST, _BILINEAR, _BICUBIC):
        raise ModelError(
            "The image processor resizes with a filter that is not supported.",
            value=f"{folder.name}: resample {resample}",
            fix="Use 0 (nearest), 2 (bilinear) or 3 (bicubic).",
        )
    mean = _per_channel(config.get("image_mean") if normalise else None, 0.0, channels)
    std = _per_channel(config.get("image_std") if normalise else None, 1.0, channels)
    if not (len(mean) == len(std) == channels and np.isfinite([*mean, *std]).all() and all(std)):
        raise ModelError(
            "The image processor does not have one mean and one deviation for each channel.",
            value=f"{folder.name}: {channels} channels, image_mean {mean}, image_std {std}",
            fix="Put the model's own preprocessor beside it.",
        )
    return Preprocessor(
        channels,
        height,
        width,
        shortest,
        resample,
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=mean,
        std=std,
    )


def resize(pixels: np.ndarray, height: int, width: int, resample: int = _BILINEAR) -> np.ndarray:
    """Resize (height, width, channels) uint8 as Pillow does: the filter widens when it shrinks, so nothing aliases.

    Columns first, then rows, rounded in between: the order of PyTorch and of Pillow before 13.
    """
    if pixels.shape[1] != width:
        pixels = _rounded(np.einsum("ow,hwc->hoc", _weights(pixels.shape[1], width, resample), pixels))
    if pixels.shape[0] != height:
        pixels = _rounded(np.einsum("oh,hwc->owc", _weights(pixels.shape[0], height, resample), pixels))
    return pixels


@lru_cache(maxsize=64)
def _weights(before: int, after: int, resample: int) -> np.ndarray:
    """Return (after, before) float64: how much each old pixel counts for each new one; rows sum to 1."""
    scale = before / after
    if resample == _NEAREST:  # added up, not multiplied, since a tie falls as Pillow's sum of doubles does
        places = np.cumsum([0.5 * scale, *[scale] * (after - 1)]).astype(int)
        return np.asarray(np.eye(before)[np.minimum(places, before - 1)])
    centres = (np.arange(after) + 0.5) * scale
    stretch = max(scale, 1.0)
    distance = np.abs((np.arange(before) + 0.5)[None, :] - centres[:, None]) / stretch
    weights = np.maximum(0.0, 1.0 - distance) if resample == _BILINEAR else _cubic(distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5, which is Pillow's."""
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8))


def _convert(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[2] == channels:
        return pixels
    return _rounded(pixels @ _LUMA)[..., None] if channels == 1 else np.repeat(pixels, channels, axis=2)


def _crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _sizes(config: Mapping[str, Any], folder: Path) -> tuple[int, int, int | None]:
    """Return height and width of the result, and the shorter side before a crop."""
    size, crop, share = config.get("size"), config.get("crop_size"), config.get("crop_pct")
    cuts = bool(config.get("do_center_crop"))
    if isinstance(size, int):
        size = {"shortest_edge": size} if cuts or share else {"height": size, "width": size}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    shortest = (size or {}).get("shortest_edge")
    if config.get("do_resize", True) and size:
        if shortest is None and {"height", "width"} <= set(size) and not cuts:
            return int(size["height"]), int(size["width"]), None
        if shortest is not None and cuts and crop and shortest >= max(crop["height"], crop["width"]):
            return int(crop["height"]), int(crop["width"]), int(shortest)
        if shortest is not None and not cuts and share:
            return int(shortest), int(shortest), int(shortest / share) if shortest < _NO_CROP else None
    raise ModelError(
        "The image processor does not give every image the same size in a way that is supported.",
        value=f"{folder.name}: size {config.get('size')}, crop_size {config.get('crop_size')}",
        fix="Resize to a height and a width, or to a shortest_edge followed by a centre crop no larger than it.",
    )


def _per_channel(values: float | Sequence[float] | None, default: float, channels: int) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    return (float(values),) * channels if isinstance(values, int | float) else tuple(map(float, values))
