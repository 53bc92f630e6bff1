"""2:4 sparsity: which linear layers take it, which weights go, and what it costs.

In every group of four consecutive inputs of an output the two smallest weights become zero (Mishra et al. 2021,
arXiv:2104.08378, section 4.1), or those that are smallest times the size of what they multiply (Wanda, Sun et al.
2023, arXiv:2306.11695, eq. 1). Shapes stay: only sparse tensor cores skip the zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    from compress.data.encoded import Encoded

Sizes = Callable[[list[str]], Mapping[str, np.ndarray]]
"""Paths of linear layers -> for each of them (inputs,): how large every input is, root mean square."""


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


def sparsify(
    model: PreTrainedModel, *, multiple: int = 32, exclude: Sequence[str] = (), sizes: Sizes | None = None
) -> list[Decision]:
    """Make the linear layers of an encoder 2:4, in place.

    Args:
        model: a supported encoder.
        multiple: layers whose inputs or outputs are no multiple of this stay; itself one of 4.
        exclude: globs of paths that stay.
        sizes: weighs every weight by its input; None: by its own magnitude alone.

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
    reasons = {
        path: _reason(module, module in inside, multiple)
        or ("excluded by the recipe" if any(fnmatchcase(path, glob) for glob in exclude) else "")
        for path, module in modules.items()
    }
    chosen = [path for path, reason in reasons.items() if not reason]
    if not chosen:
        raise UsageError(
            "No linear layer of the model can become 2:4 sparse.",
            value="; ".join(sorted(set(reasons.values()))[:4]),
            fix="Lower `multiple`, exclude less, or leave the step out.",
        )
    worth = {} if sizes is None else sizes(chosen)
    decisions = []
    for path, reason in reasons.items():
        energy = 1.0
        if not reason:
            parameter = modules[path].weight
            weight = parameter.detach().cpu().numpy()
            mask = mask24(np.abs(weight) * worth.get(path, 1.0))
            energy = energy_kept(weight, mask)
            with torch.no_grad():
                parameter.masked_fill_(torch.from_numpy(~mask).to(parameter.device), 0.0)
        decisions.append(Decision(path, energy, reason))
    return decisions


def input_sizes(model: PreTrainedModel, encoded: Encoded, batch_size: int = 32) -> Sizes:
    """Return the function that measures root mean squares of inputs, over all tokens of texts without padding."""
    from compress.pruning.factorization import input_moments

    def sizes(paths: list[str]) -> dict[str, np.ndarray]:
        moments = input_moments(model, encoded, paths, batch_size)
        return {path: np.sqrt(np.diag(it.covariance) + it.mean**2) for path, it in moments.items()}

    return sizes


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
