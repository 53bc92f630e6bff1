"""The shapes that an engine is built for, from the lengths that the data has, or the fixed size of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compress.errors import RecipeError

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input name -> (smallest, most frequent, largest) shape: (batch, sequence) or (batch, channels, height, width)."""
_STEP = 8


def profile_from_lengths(
    inputs: Iterable[str],
    lengths: Sequence[int] | np.ndarray,
    max_length: int,
    *,
    opt_batch: int = 1,
    max_batch: int = 8,
) -> Profile:
    """Return one optimization profile for every input of an encoder.

    Kernels are chosen for the middle shape: ``opt_batch`` inputs of the median length, rounded up to a
    multiple of 8. Any shape from (1, 1) to (``max_batch``, ``max_length``) runs.

    Args:
        inputs: names of the graph's inputs.
        lengths: tokens of each example of a sample of the data.
        max_length: longest input in tokens.
        opt_batch: batch size to optimize for.
        max_batch: largest batch size.

    Raises:
        RecipeError: ``opt_batch`` exceeds ``max_batch``.
    """
    if opt_batch > max_batch:
        raise RecipeError(
            "`opt_batch` is larger than `max_batch`.", value=f"{opt_batch} > {max_batch}", fix="Raise `max_batch`."
        )
    median = float(np.median(lengths)) if len(lengths) else float(max_length)
    typical = min(max_length, max(1, int(np.ceil(median / _STEP)) * _STEP))
    return {name: ((1, 1), (opt_batch, typical), (max_batch, max_length)) for name in inputs}


def profile_of_shapes(shapes: Mapping[str, Shape], *, opt_batch: int = 1, max_batch: int = 8) -> Profile:
    """Return one optimization profile for inputs of which only the batch varies.

    Args:
        shapes: input name -> its sizes without the batch.
        opt_batch: batch size to optimize for.
        max_batch: largest batch size.
    """
    return {name: ((1, *rest), (opt_batch, *rest), (max_batch, *rest)) for name, rest in shapes.items()}
