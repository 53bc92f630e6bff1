"""The shapes that an engine is built for, from the lengths that the data has, or the fixed size of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from compress.artifact import Graph, TensorSpec
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


def fixed_graph(graph: Graph, file: str, shape: Sequence[int], max_length: int | None = None) -> Graph:
    """Return the signature of a graph for one shape alone.

    Args:
        graph: with names for the sizes that vary.
        file: the file that the new graph is in.
        shape: the sizes that vary, in the order of each input: (batch, tokens), or (batch,) for images.
        max_length: longest input in tokens, for inputs of two varying sizes.

    Raises:
        RecipeError: the inputs vary in another number of sizes, or the length exceeds ``max_length``.
    """
    names = [size for size in graph.inputs[0].shape if isinstance(size, str)]
    if len(shape) != len(names):
        raise RecipeError(
            f"Each of `shapes` has {len(names)} size{'s' if len(names) > 1 else ''} here: {', '.join(names)}.",
            value=list(shape),
            fix="Write [batch, tokens] for texts, [batch] for images.",
        )
    if len(shape) > 1 and max_length is not None and shape[1] > max_length:
        raise RecipeError(
            "One of `shapes` is longer than the task's longest input.",
            value=f"{shape[1]} tokens > {max_length}",
            fix="Shorten it, or raise `max_length` of the task.",
        )
    sizes = dict(zip(names, shape, strict=True))
    inputs = tuple(_filled(value, iter(shape)) for value in graph.inputs)
    outputs = tuple(
        value.model_copy(update={"shape": tuple(sizes.get(n, n) if isinstance(n, str) else n for n in value.shape)})
        for value in graph.outputs
    )
    return Graph(file=file, inputs=inputs, outputs=outputs)


def fixed_profile(graph: Graph) -> Profile:
    """Return the profile of a graph whose sizes are all fixed."""
    shapes = {value.name: tuple(int(size) for size in value.shape) for value in graph.inputs}
    return {name: (shape, shape, shape) for name, shape in shapes.items()}


def _filled(value: TensorSpec, sizes: Iterator[int]) -> TensorSpec:
    return value.model_copy(update={"shape": tuple(n if isinstance(n, int) else next(sizes) for n in value.shape)})
