"""2:4 sparsity by magnitude: which linear layers take it, and what it costs them.

In every group of four consecutive inputs of an output the two smallest weights become zero (Mishra et al. 2021,
arXiv:2104.08378, section 4.1). Shapes stay: only sparse tensor cores skip the zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import RecipeError, UsageError
from compress.models.families import layer_list
from compress.models.sparsity import mask24

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decision:
    """What was done to one module.

    Attributes:
        path: of the module.
        energy: share of the squares of its weights that stayed; 1 where it was left.
        reason: why it was left; empty where it is 2:4 now.
    """

    path: str
    energy: float = 1.0
    reason: str = ""

    @property
    def sparse(self) -> bool:
        return not self.reason


def sparsify(model: PreTrainedModel, *, multiple: int = 32, exclude: Sequence[str] = ()) -> list[Decision]:
    """Make the linear layers of an encoder 2:4, in place.

    Args:
        model: a supported encoder.
        multiple: layers whose inputs or outputs are no multiple of this stay; itself one of 4.
        exclude: globs of paths that stay.

    Returns:
        One decision for each linear layer, embedding table and convolution, in the order of the model.

    Raises:
        RecipeError: a glob matches no linear layer.
        UsageError: no layer is left to become sparse.
    """
    import torch
    from torch import nn

    modules = {path: it for path, it in model.named_modules() if isinstance(it, nn.Linear | nn.Embedding | nn.Conv2d)}
    inside = {module for layer in layer_list(model) for module in layer.modules()}
    _check_globs(exclude, [path for path, module in modules.items() if module in inside])
    decisions = []
    for path, module in modules.items():
        reason = _reason(module, module in inside, multiple)
        if not reason and any(fnmatchcase(path, glob) for glob in exclude):
            reason = "excluded by the recipe"
        if reason:
            decisions.append(Decision(path, reason=reason))
            continue
        weight = module.weight.detach().cpu().numpy()
        mask = mask24(np.abs(weight))
        decisions.append(Decision(path, energy_kept(weight, mask)))
        with torch.no_grad():
            module.weight.masked_fill_(torch.from_numpy(~mask).to(module.weight.device), 0.0)
    if not any(decision.sparse for decision in decisions):
        reasons = sorted({decision.reason for decision in decisions})
        raise UsageError(
            "No linear layer of the model can become 2:4 sparse.",
            value="; ".join(reasons[:4]),
            fix="Lower `multiple`, exclude less, or leave the step out.",
        )
    return decisions


def energy_kept(weight: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the sum of squares of the weights that a mask keeps."""
    squares = weight.astype(np.float64) ** 2
    whole = float(squares.sum())
    return float((squares * mask).sum()) / whole if whole else 1.0


def share_of_zeros(model: nn.Module) -> float:
    """Return the share of all parameters of a model that are zero."""
    counts = [(int(p.numel()), int((p.detach() == 0).sum())) for p in model.parameters()]
    return sum(zeros for _, zeros in counts) / sum(size for size, _ in counts)


def _reason(module: Any, inside: bool, multiple: int) -> str:
    """Return why a module stays dense; empty if it can become sparse."""
    from torch import nn

    if isinstance(module, nn.Embedding):
        return "an embedding table is read, not multiplied"
    if not isinstance(module, nn.Linear):
        return "a convolution that cuts an image into patches"
    if not inside:
        return "outside the encoder's layers (pooler, classifier)"
    for name, size in (("inputs", module.in_features), ("outputs", module.out_features)):
        if size % multiple:
            return f"{size} {name} are no multiple of {multiple}"
    return ""


def _check_globs(globs: Sequence[str], paths: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise RecipeError(
                "An entry of `exclude` matches no linear layer of the encoder.",
                value=glob,
                fix=f"Layers are called like {', '.join(paths[:2])}; `*` stands for any text.",
            )
