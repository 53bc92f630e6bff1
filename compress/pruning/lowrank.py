"""Best low-rank factors: of a table whose rows count differently, and of a linear for the inputs that it gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What goes into a linear.

    Attributes:
        mean: (features in,) float64.
        covariance: (features in, features in) float64, around the mean.
    """

    mean: np.ndarray
    covariance: np.ndarray


def factor_table(table: np.ndarray, weights: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the A (V, r) and B (r, d) that minimise ``sum_v weights_v * |table_v - A_v B|^2``.

    With D the diagonal of the weights, the optimum is the truncated singular value decomposition of
    ``sqrt(D) table`` (Eckart and Young 1936): the rows of B span the leading eigenvectors Q of
    ``table' D table``, and ``A = table Q``. Any rotation R of the inner space gives the same product; here it
    is the orthonormal cosine transform, which spreads the eigenvalues over the columns of A so that
    one scale for the whole table, as INT8 look-ups have, fits all of them.

    Args:
        table: (V, d) float.
        weights: (V,) float, positive: how much each row counts.
        rank: 1 to d.

    Returns:
        A and B, float64.
    """
    table, weights = table.astype(np.float64), weights.astype(np.float64)
    leading = _leading(table.T @ (weights[:, None] * table), rank)
    rotation = _cosine_transform(rank)
    return table @ leading @ rotation, rotation.T @ leading.T


def factor_linear(
    weight: np.ndarray, bias: np.ndarray | None, moments: Moments, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the U (out, r), V (r, in) and bias that change a linear's outputs least on the inputs it gets.

    Minimises ``E |W x + b - (U V x + b')|^2``. With C the covariance of x, Q the leading eigenvectors of the
    covariance of the outputs ``W C W'``: ``U = Q``, ``V = Q' W`` and ``b' = b + (W - U V) E[x]``, the truncated
    singular value decomposition of W whitened by its inputs (DRONE, Chen et al. 2021, theorem 1). Without a bias
    nothing can take up the mean, and the second moment stands in for the covariance.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        moments: of the inputs.
        rank: 1 to the smaller of in and out.

    Returns:
        U, V and the new bias, float64.
    """
    weight = weight.astype(np.float64)
    leading = _leading(_output_moment(weight, bias, moments), rank)
    down = leading.T @ weight
    if bias is None:
        return leading, down, None
    return leading, down, bias.astype(np.float64) + (weight - leading @ down) @ moments.mean


def spectrum(weight: np.ndarray, bias: np.ndarray | None, moments: Moments) -> np.ndarray:
    """Return (out + 1,) float64: at r the share of a linear's output variance that rank r loses."""
    values = np.linalg.eigvalsh(_output_moment(weight.astype(np.float64), bias, moments))[::-1].clip(min=0.0)
    left = values.sum() - np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(left.clip(min=0.0) / max(values.sum(), np.finfo(np.float64).tiny))


def largest_rank(rows: int, columns: int, share: float) -> int:
    """Return the largest rank at which two factors hold at most ``share`` of a matrix's weights; 0 if none does."""
    return int(share * rows * columns / (rows + columns))


def _output_moment(weight: np.ndarray, bias: np.ndarray | None, moments: Moments) -> np.ndarray:
    inner = moments.covariance if bias is not None else moments.covariance + np.outer(moments.mean, moments.mean)
    return np.asarray(weight @ inner @ weight.T)


def _leading(symmetric: np.ndarray, rank: int) -> np.ndarray:
    """Return the ``rank`` eigenvectors of the largest eigenvalues as columns."""
    return np.ascontiguousarray(np.linalg.eigh(symmetric)[1][:, ::-1][:, :rank])


def _cosine_transform(size: int) -> np.ndarray:
    """Return the orthonormal type-2 discrete cosine transform, (size, size)."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt(2.0 / size)
    matrix[0] /= np.sqrt(2.0)
    return np.asarray(matrix)
