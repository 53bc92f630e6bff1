"""The 2:4 pattern of sparse tensor cores: of every four consecutive inputs of an output, at most two have a weight.

NVIDIA GPUs from Ampere on multiply such a weight in half the steps (Mishra et al. 2021, arXiv:2104.08378, section 3).
The zeros are ordinary numbers in the files, so every loader opens such a model, and nothing else gains by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import RunError

if TYPE_CHECKING:
    from torch.nn import Module

SPARSE = "sparse24"
"""The trait of a model whose linear layers are 2:4."""
GROUP = 4
KEPT = 2


def mask24(scores: np.ndarray) -> np.ndarray:
    """Return which weights stay: in every group the two of the highest score, of equal ones the first.

    Args:
        scores: (outputs, inputs), the larger the more a weight is worth; inputs are a multiple of 4.

    Returns:
        (outputs, inputs) bool, two of every four consecutive inputs True.
    """
    groups = scores.reshape(len(scores), -1, GROUP)
    best = np.argsort(-groups, axis=-1, kind="stable")[..., :KEPT]
    mask = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(mask, best, True, axis=-1)
    return mask.reshape(scores.shape)


def is_sparse24(weight: np.ndarray) -> bool:
    """Say whether a weight (outputs, inputs) is 2:4 along its inputs; one that is all zeros is not."""
    if weight.ndim != 2 or weight.shape[1] % GROUP or not weight.any():
        return False
    return bool((np.count_nonzero(weight.reshape(len(weight), -1, GROUP), axis=-1) <= KEPT).all())


def sparse_linears(model: Module) -> tuple[str, ...]:
    """Return the paths of the linear layers of a model that are 2:4."""
    from torch.nn import Linear

    linears = ((path, module) for path, module in model.named_modules() if isinstance(module, Linear))
    return tuple(path for path, linear in linears if is_sparse24(linear.weight.detach().cpu().numpy()))


def require_sparse(model: Module, paths: Iterable[str]) -> None:
    """Check that linear layers are 2:4.

    Raises:
        RunError: one is not.
    """
    kept = set(sparse_linears(model))
    broken = [path for path in paths if path not in kept]
    if broken:
        raise RunError(
            "Linear layers that were 2:4 sparse no longer are.",
            value=f"{len(broken)}: {', '.join(broken[:3])}",
            fix="Run `sparsify` after the step that changed them.",
        )
