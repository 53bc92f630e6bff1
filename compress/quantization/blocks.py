"""Block-wise quantization of a matrix: every block of a row has a scale and a zero point of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

Bits = Literal[4, 8]
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Numbers per block for which ONNX Runtime has kernels."""
CLIPS = (1.1, 1.0, 0.9, 0.8)
"""Shares of a block's minimum and of its maximum that are tried as ends of the range; what lies outside is clipped."""
_REFITS = 3
"""Rounds of: round under the best scale, fit the scale to what was rounded."""
_CHUNK = 1 << 20
"""Numbers that the search looks at together, which bounds its memory."""


@dataclass(frozen=True)
class Blocks:
    """A quantized (rows, columns) matrix: ``value = (integer - zero_point) * scale``.

    Attributes:
        integers: (rows, blocks * block_size) uint8; what pads a row equals the zero point of its last block.
        scales: (rows, blocks) float32.
        zero_points: (rows, blocks) uint8.
        columns: numbers of a row that are not padding.
        squared_error: sum of the squared differences from the matrix.
    """

    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    columns: int
    squared_error: float

    def dequantize(self) -> np.ndarray:
        """Return what the integers stand for, (rows, columns) float32."""
        rows, blocks = self.scales.shape
        integers = self.integers.reshape(rows, blocks, -1).astype(np.float32)
        values = (integers - self.zero_points[..., None].astype(np.float32)) * self.scales[..., None]
        return np.asarray(values.reshape(rows, -1)[:, : self.columns])


def quantize_blocks(matrix: np.ndarray, bits: Bits, block_size: int, *, symmetric: bool = False) -> Blocks:
    """Quantize a matrix by blocks of its rows so that the squared error is small.

    Per block, ranges around the extremes are tried, wider and narrower ones; for each the scale is the
    least-squares fit to the rounded integers, ``s = <w, q - z> / <q - z, q - z>``, which is never worse than the
    range's own. The best one is refined by rounding and fitting in turn.

    Args:
        matrix: (rows, columns) float32, finite.
        bits: of an integer.
        block_size: numbers that share a scale; the last block of a row may be shorter.
        symmetric: let every zero point be the middle, ``2 ** (bits - 1)``.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    integers = np.empty((rows, blocks, block_size), dtype=np.uint8)
    scales = np.empty((rows, blocks), dtype=np.float32)
    zero_points = np.empty((rows, blocks), dtype=np.uint8)
    total = 0.0
    for part in _parts(rows, blocks * block_size):
        padded = np.pad(matrix[part], ((0, 0), (0, blocks * block_size - columns))).astype(np.float32)
        found = _search(padded.reshape(-1, block_size), bits, symmetric)
        integers[part] = found[0].reshape(-1, blocks, block_size)
        scales[part], zero_points[part] = (array.reshape(-1, blocks) for array in found[1:3])
        total += float(found[3].sum(dtype=np.float64))
    return Blocks(integers.reshape(rows, -1), scales, zero_points, columns, total)


def pack(integers: np.ndarray, bits: Bits) -> np.ndarray:
    """Pack (rows, n) integers of 4 bits two to a byte, the first in the low half; those of 8 bits stay as they are.

    Returns:
        (rows, n) uint8 or, of 4 bits, (rows, ceil(n / 2)); an odd row ends in a half of zeros.
    """
    if bits == 8:
        return integers
    even = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    return np.asarray(even[:, ::2] | (even[:, 1::2] << 4))


def stored_bytes(columns: int, bits: Bits, block_size: int) -> float:
    """Return the bytes of one padded row with its scales and zero points."""
    return -(-columns // block_size) * (block_size * bits / 8 + 4 + bits / 8)


def fitting_block_size(columns: int, bits: Bits, largest: int) -> int:
    """Return the block size up to ``largest`` that stores a row in the fewest bytes: padding counts."""
    sizes = [size for size in BLOCK_SIZES if size <= largest]
    return min(reversed(sizes), key=lambda size: stored_bytes(columns, bits, size))


def dividing_block_size(columns: int, largest: int) -> int:
    """Return the largest block size up to ``largest`` that fills a row evenly, or ``largest`` if none does.

    OpenVINO reads no table whose rows end in a shorter block.
    """
    return max((size for size in BLOCK_SIZES if size <= largest and columns % size == 0), default=largest)


def _parts(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _search(values: np.ndarray, bits: Bits, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return integers (n, block_size), scales, zero points and squared errors (n, 1) of (n, block_size) values."""
    best = reduce(_better, (_fit(values, scale, zero, bits) for scale, zero in _candidates(values, bits, symmetric)))
    for _ in range(_REFITS):
        best = _better(best, _fit(values, best[1], best[2], bits))
    integers, scales, zeros, errors = best
    return integers.astype(np.uint8), scales, zeros.astype(np.uint8), errors


def _candidates(values: np.ndarray, bits: Bits, symmetric: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (scales, zero points), each (n, 1) float32, of ranges that hold zero."""
    low = np.minimum(values.min(axis=1, keepdims=True), 0)
    high = np.maximum(values.max(axis=1, keepdims=True), 0)
    top = np.float32(2**bits - 1)
    middle = np.float32(2 ** (bits - 1))
    clips = [np.float32(clip) for clip in CLIPS]
    if symmetric:
        extreme = np.where(high > -low, high, low)
        for clip in clips:
            yield _nonzero(extreme * (-clip / middle)), np.full_like(low, middle)
        return
    for below in clips:
        for above in clips:
            scale = _nonzero((high * above - low * below) / top)
            yield scale, np.clip(np.rint(-low * below / scale), 0, top)


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(1), scale)


def _fit(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: Bits) -> tuple[np.ndarray, ...]:
    """Round under a scale, then fit the scale; return (integers, scales, zero points, squared errors), float32."""
    integers = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
    centred = integers - zero
    norm = np.einsum("nb,nb->n", centred, centred)[:, None]
    fitted = np.einsum("nb,nb->n", centred, values)[:, None] / np.maximum(norm, 1)
    scale = np.where(np.abs(fitted) < np.finfo(np.float32).tiny, scale, fitted)
    rest = values - centred * scale
    return integers, scale, zero, np.einsum("nb,nb->n", rest, rest)[:, None]


def _better(best: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    gains = other[3] < best[3]
    return tuple(np.where(gains, new, old) for new, old in zip(other, best, strict=True))
