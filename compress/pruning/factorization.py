"""Put low-rank factors into a model where they make it smaller, and say why not where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.models.families import replace_module
from compress.pruning.lowrank import Moments, factor_linear, factor_table, largest_rank, spectrum

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded


@dataclass(frozen=True)
class Decision:
    """What was done to one module.

    Attributes:
        path: of the module.
        before, after: its weights; equal where it was left.
        rank: 0 where it was left.
        lost: share of the weighted squares of an embedding, or of the variance of a linear's outputs, that went.
        reason: why it was left; empty where it was factored.
    """

    path: str
    before: int
    after: int
    rank: int = 0
    lost: float = 0.0
    reason: str = ""

    @property
    def factored(self) -> bool:
        return self.rank > 0

    def leave(self, reason: str) -> Decision:
        """Return the decision not to factor the module after all."""
        return Decision(self.path, self.before, self.before, reason=self.reason or reason)

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps of a factored module."""
        return {"rank": self.rank, "weights_before": self.before, "weights_after": self.after, "lost": self.lost}


def factor_embedding(model: PreTrainedModel, encoded: Encoded, rank: int, smoothing: float = 1.0) -> Decision:
    """Factor the word embeddings, in place, if that makes them smaller.

    Args:
        model: a supported encoder of text.
        encoded: the training texts; a token counts as often as it occurs in them, plus ``smoothing``.
        rank: features of the table that stays.
        smoothing: what a token that never occurs counts.
    """
    import torch

    from compress.models.factors import FactoredEmbedding

    table = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is table)
    tokens, width, before = table.num_embeddings, table.embedding_dim, _size(table)
    after = rank * (tokens + width)
    if rank > width or after >= before:
        return Decision(path, before, before, reason=f"rank {rank} needs {after} weights, there are {before}")
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *encoded.inputs["input_ids"]])
    weights = np.bincount(ids, minlength=tokens) + smoothing
    dense = table.weight.detach().double().numpy()
    inner, outer = factor_table(dense, weights, rank)
    factored = FactoredEmbedding(tokens, width, rank, table.padding_idx)
    with torch.no_grad():
        factored.table.weight.copy_(torch.from_numpy(inner))
        factored.project.weight.copy_(torch.from_numpy(outer.T.copy()))
    replace_module(model, path, factored.train(table.training))
    gone = float(weights @ ((dense - inner @ outer) ** 2).sum(axis=1)) / float(weights @ (dense**2).sum(axis=1))
    return Decision(path, before, after, rank, gone)


def factor_linears(
    model: PreTrainedModel,
    encoded: Encoded,
    *,
    share: float | None = None,
    max_error: float | None = None,
    batch_size: int = 32,
) -> list[Decision]:
    """Factor the linears of the encoder, in place, each of them that gets smaller by it.

    All of them are weighed by what goes into them in the model as it came.

    Args:
        model: a supported encoder.
        encoded: training examples.
        share: most of its weights that a linear keeps; its rank follows from it, unless ``max_error`` is given.
        max_error: share of the variance of a linear's outputs that may go; the least rank within it is taken.
        batch_size: examples per forward pass.

    Returns:
        One decision for each linear, in the order of the model.
    """
    paths = linear_paths(model)
    moments = input_moments(model, encoded, paths, batch_size)
    return [_factor_linear(model, path, moments[path], share, max_error) for path in paths]


def linear_paths(model: PreTrainedModel) -> list[str]:
    """Return the paths of the encoder's linears, factored ones included, without the head of the task."""
    from torch import nn

    from compress.models.factors import FactoredEmbedding, FactoredLinear

    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    modules = dict(model.base_model.named_modules())
    inner = {path for path, module in modules.items() if isinstance(module, FactoredEmbedding | FactoredLinear)}
    return [
        prefix + path
        for path, module in modules.items()
        if isinstance(module, nn.Linear | FactoredLinear) and path.rpartition(".")[0] not in inner
    ]


def input_moments(
    model: PreTrainedModel, encoded: Encoded, paths: list[str], batch_size: int = 32
) -> dict[str, Moments]:
    """Return the moments of what goes into linears, over the tokens of all examples without padding.

    Linears that see one vector per example (pooler, head) average over examples.

    Args:
        model: in evaluation mode; unchanged.
        encoded: the examples.
        paths: of the linears.
        batch_size: examples per forward pass.
    """
    import torch

    sums: dict[str, torch.Tensor] = {}
    mask = torch.empty(0)

    def add(path: str, states: torch.Tensor) -> None:
        if states.dim() == 3:
            states = states[mask]
        states = torch.cat([states.double(), torch.ones(len(states), 1, dtype=torch.float64)], dim=1)
        sums[path] = sums.get(path, 0.0) + states.T @ states

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda _, arguments, path=path: add(path, arguments[0]))
        for path in paths
    ]
    try:
        for indices in encoded.batches(batch_size, by_length=True):
            batch = {name: torch.from_numpy(ids) for name, ids in encoded.batch(indices).items()}
            mask = batch["attention_mask"].bool()
            with torch.inference_mode():
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: _moments(total.numpy()) for path, total in sums.items()}


def _factor_linear(
    model: PreTrainedModel, path: str, moments: Moments, share: float | None, max_error: float | None
) -> Decision:
    linear = model.get_submodule(path)
    bias = None if linear.bias is None else linear.bias.detach().double().numpy()
    weight, before = linear.weight.detach().double().numpy(), _size(linear)
    rows, columns = weight.shape
    lost = spectrum(weight, bias, moments)
    most = min(largest_rank(rows, columns, 1.0 if share is None else share), rows, columns)
    rank = most if max_error is None else max(1, int(np.argmax(lost <= max_error)))
    after = rank * (rows + columns) + (0 if bias is None else rows)
    reason = ""
    if not most:
        reason = f"no rank keeps as little as {share:g} of its weights"
    elif rank > most:
        reason = f"losing at most {max_error:g} of the variance needs rank {rank}, and above {most} too little is saved"
    elif after >= before:
        reason = f"rank {rank} needs {after} weights, there are {before}"
    if reason:
        return Decision(path, before, before, reason=reason)
    _put_linear(model, path, factor_linear(weight, bias, moments, rank))
    return Decision(path, before, after, rank, float(lost[rank]))


def _put_linear(model: PreTrainedModel, path: str, factors: tuple[np.ndarray, np.ndarray, np.ndarray | None]) -> None:
    import torch

    from compress.models.factors import FactoredLinear

    up, down, bias = factors
    factored = FactoredLinear(down.shape[1], up.shape[0], down.shape[0], bias=bias is not None)
    with torch.no_grad():
        factored.up.weight.copy_(torch.from_numpy(up))
        factored.down.weight.copy_(torch.from_numpy(down))
        if bias is not None:
            factored.up.bias.copy_(torch.from_numpy(bias))
    replace_module(model, path, factored.train(model.training))


def _moments(total: np.ndarray) -> Moments:
    count = total[-1, -1]
    mean = total[:-1, -1] / count
    return Moments(mean, total[:-1, :-1] / count - np.outer(mean, mean))


def _size(module: nn.Module) -> int:
    return sum(int(parameter.numel()) for parameter in module.parameters())
