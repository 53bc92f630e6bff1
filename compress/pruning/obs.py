"""Structured optimal brain surgery (ZipLM, arXiv:2302.04089): which unit goes next, and what the others become.

A sub-layer ends in a projection ``y = W x``. Removing the columns M of ``W`` and letting the others make up for it
raises the squared output error by ``rho_M = trace(W_M ((H^-1)_MM)^-1 W_M^T)``, with ``H`` the second moment of the
inputs. The unit with the smallest rho goes first; ``W`` and ``H^-1`` are updated exactly and the next is chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 64
"""Columns that go before the inverse is updated and compacted; any number gives the same result."""


def damped(moment: torch.Tensor, damp: float) -> torch.Tensor:
    """Return ``moment + damp * mean(diagonal) * I``; (columns, columns), positive definite for ``damp > 0``."""
    mean = float(moment.diagonal().mean()) if len(moment) else 1.0
    return moment + damp * (mean or 1.0) * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def removal_order(weight: torch.Tensor, hessian: torch.Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove unit after unit, each time the one whose loss costs least, until none is left.

    Args:
        weight: (outputs, units * size) float64.
        hessian: (units * size, units * size) float64, symmetric and positive definite.
        size: columns of one unit: the head size for attention, 1 for feed-forward neurons.

    Returns:
        order: (units,) int64, first to go first.
        loss: (units + 1,) float64, ``trace(D H D^T)`` of the change D of the weights after each removal; it ends at
        ``trace(W H W^T)``, when everything is gone.
    """
    units = weight.shape[1] // size
    if not units:
        return np.zeros(0, dtype=np.int64), np.zeros(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    remove: Callable[..., tuple[list[int], list[float]]] = _remove_columns if size == 1 else _remove_blocks
    order, rises = remove(weight, inverse, size)
    return np.array(order, dtype=np.int64), np.concatenate([[0.0], np.cumsum(rises)])


def compensated(weight: torch.Tensor, hessian: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the weights of the kept columns that bring the output closest to that of all columns.

    The constrained least squares solution ``W H[:, K] (H[K, K])^-1``: what all exact updates up to there amount to.

    Args:
        weight: (outputs, columns) float64.
        hessian: (columns, columns) float64, symmetric and positive definite.
        columns: (kept,) int64.

    Returns:
        (outputs, kept) float64.
    """
    rows = hessian[columns]
    factor = torch.linalg.cholesky(rows[:, columns])
    return torch.cholesky_solve(rows @ weight.T, factor).T


def _remove_blocks(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> tuple[list[int], list[float]]:
    """Remove units of several columns; every removal updates and compacts the inverse at once."""
    left = list(range(weight.shape[1] // size))
    order, rises = [], []
    while left:
        at = torch.arange(len(left))
        own = inverse.view(len(left), size, len(left), size)[at, :, at, :]
        factors = torch.linalg.cholesky(own)
        shares = torch.linalg.solve_triangular(factors, weight.view(-1, len(left), size).permute(1, 2, 0), upper=False)
        rho = shares.square().sum(dim=(1, 2))
        pick = int(rho.argmin())
        gone = slice(pick * size, (pick + 1) * size)
        rows = torch.linalg.solve_triangular(factors[pick], inverse[gone], upper=False)
        kept = torch.cat([torch.arange(gone.start), torch.arange(gone.stop, weight.shape[1])])
        weight = weight[:, kept] - shares[pick].T @ rows[:, kept]
        inverse = inverse[kept][:, kept] - rows[:, kept].T @ rows[:, kept]
        order.append(left.pop(pick))
        rises.append(float(rho[pick]))
    return order, rises


def _remove_columns(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> tuple[list[int], list[float]]:
    """Remove single columns; the inverse and the weights are updated once per block of removals."""
    left = torch.arange(weight.shape[1])
    order: list[int] = []
    rises: list[float] = []
    while len(left):
        picks, rows, shares, rho = _remove_block_of_columns(weight, inverse, min(BLOCK, len(left)))
        order += left[picks].tolist()
        rises += rho
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[picks] = False
        kept = stays.nonzero()[:, 0]
        rows = rows[:, kept]
        inverse = inverse[kept][:, kept].addmm_(rows.T, rows, alpha=-1)
        weight = weight[:, kept].addmm_(shares.T, rows, alpha=-1)
        left = left[kept]
    return order, rises


def _remove_block_of_columns(
    weight: torch.Tensor, inverse: torch.Tensor, count: int
) -> tuple[list[int], torch.Tensor, torch.Tensor, list[float]]:
    """Choose ``count`` columns without touching the inverse: what each removal changes is kept as one row.

    Returns:
        picks: positions, in order.
        rows: (count, columns); the inverse afterwards is ``inverse - rows^T rows``.
        shares: (count, outputs); the weights afterwards are ``weight - shares^T rows``.
        rho: the rise of the loss at each removal.
    """
    rows, shares = weight.new_zeros(count, weight.shape[1]), weight.new_zeros(count, weight.shape[0])
    diagonal, squares = inverse.diagonal().clone(), weight.square().sum(dim=0)
    picks: list[int] = []
    rho: list[float] = []
    for step in range(count):
        pick = int((squares / diagonal).argmin())
        past, seen = rows[:step], rows[:step, pick]
        root = diagonal[pick].sqrt()
        row = (inverse[pick] - seen @ past) / root
        share = (weight[:, pick] - seen @ shares[:step]) / root
        rise = share @ share
        overlap = share @ weight - (shares[:step] @ share) @ past
        squares = (squares - 2 * row * overlap + row.square() * rise).clamp_(min=0)
        diagonal = diagonal - row.square()
        rows[step], shares[step] = row, share
        picks.append(pick)
        rho.append(float(rise))
        squares[picks], diagonal[picks] = torch.inf, 1.0
    return picks, rows, shares, rho
