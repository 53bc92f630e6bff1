"""What an importance finds out about a model: removal orders, their costs, and the weights that make up for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.errors import DataError
from compress.pruning.ladder import Ladder, Ladders

FILE = "ranking.npz"


@dataclass(frozen=True)
class Projection:
    """The output projection of a sub-layer and the second moment of its inputs.

    Attributes:
        weight: (hidden, columns) float32.
        moment: (columns * (columns + 1) / 2,) float32, the upper triangle of the damped second moment, row by row.
        size: columns of one unit.
    """

    weight: np.ndarray
    moment: np.ndarray
    size: int

    def weights(self, kept: Sequence[int]) -> np.ndarray:
        """Return the weights of the kept units' columns that make up best for the others.

        The least squares solution on the damped moment, ``W H[:, K] (H[K, K])^-1``: for the units that stay at
        some width of the sub-layer's ladder, exactly what the steps of structured OBS arrive at.

        Args:
            kept: positions of units, ascending.

        Returns:
            (hidden, kept * size) float32.
        """
        import torch

        from compress.pruning.obs import compensated

        columns = torch.tensor([unit * self.size + i for unit in kept for i in range(self.size)], dtype=torch.int64)
        weight = torch.from_numpy(self.weight).double()
        hessian = torch.from_numpy(unpacked(self.moment, weight.shape[1])).double()
        return np.asarray(compensated(weight, hessian, columns).float())


@dataclass(frozen=True)
class Ranking:
    """The answer of an importance.

    Attributes:
        ladders: removal order and cost of every sub-layer.
        comparable: whether costs of different sub-layers may be added; otherwise they are shares of each
            sub-layer's own output.
        projections: of every sub-layer, attention 0, feed-forward 0, ...; empty when what stays is only cut out.
    """

    ladders: Ladders
    comparable: bool
    projections: tuple[Projection, ...] = ()

    def weights(self, sublayer: int, kept: Sequence[int]) -> np.ndarray | None:
        """Return new weights for the output projection of a sub-layer, or None to keep the old ones.

        Args:
            sublayer: 0 is the first layer's attention, 1 its feed-forward, and so on.
            kept: positions of the units that stay, ascending.

        Returns:
            (hidden, kept columns) float32.
        """
        return self.projections[sublayer].weights(kept) if self.projections else None

    def select(self, layers: Sequence[int]) -> Ranking:
        """Return the ranking of some layers, in that order."""
        pairs = [self.projections[2 * layer : 2 * layer + 2] for layer in layers]
        return Ranking(self.ladders.select(layers), self.comparable, tuple(one for pair in pairs for one in pair))

    def save(self, folder: Path) -> None:
        """Write one ``.npz`` of plain arrays into a folder; the same ranking gives the same bytes."""
        arrays = {"comparable": np.array(self.comparable)}
        for i, ladder in enumerate(self.ladders.sublayers):
            arrays |= {f"{i}/order": ladder.order, f"{i}/loss": ladder.loss}
        for i, projection in enumerate(self.projections):
            arrays |= {f"{i}/weight": projection.weight, f"{i}/moment": projection.moment}
            arrays[f"{i}/size"] = np.array(projection.size)
        np.savez(folder / FILE, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        """Read what ``save`` wrote.

        Raises:
            DataError: the folder holds no ranking.
        """
        try:
            with np.load(folder / FILE, allow_pickle=False) as file:
                arrays = dict(file)
                ladders = list(_ladders(arrays))
                projections = tuple(_projections(arrays))
                return cls(Ladders(tuple(ladders[::2]), tuple(ladders[1::2])), bool(arrays["comparable"]), projections)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                "The ranking cannot be read.", value=f"{FILE}: {error}", fix="Remove it; it will be made again."
            ) from error


def packed(matrix: np.ndarray) -> np.ndarray:
    """Return the upper triangle of a symmetric (n, n) matrix, row by row, as float32."""
    return np.concatenate([matrix[i, i:] for i in range(len(matrix))] or [np.zeros(0)]).astype(np.float32)


def unpacked(triangle: np.ndarray, size: int) -> np.ndarray:
    """Return the symmetric (size, size) matrix of ``packed``, float32."""
    matrix = np.zeros((size, size), dtype=np.float32)
    start = 0
    for i in range(size):
        row = triangle[start : start + size - i]
        matrix[i, i:], matrix[i:, i] = row, row
        start += size - i
    return matrix


def _ladders(arrays: Mapping[str, np.ndarray]) -> Iterator[Ladder]:
    i = 0
    while f"{i}/order" in arrays:
        yield Ladder(arrays[f"{i}/order"], arrays[f"{i}/loss"])
        i += 1


def _projections(arrays: Mapping[str, np.ndarray]) -> Iterator[Projection]:
    i = 0
    while f"{i}/weight" in arrays:
        yield Projection(arrays[f"{i}/weight"], arrays[f"{i}/moment"], int(arrays[f"{i}/size"]))
        i += 1
