"""Prune the channels of a convolutional network to a share of its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.data.encoded import Encoded
from compress.errors import DataError, RecipeError, did_you_mean
from compress.pruning.channels import ChannelGroup, MacsTable, channel_groups, masked_channels, remove_channels
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Count = Callable[[int, int], None]
"""Called with (examples done, examples in total)."""
IMPORTANCES = ("fisher", "taylor", "magnitude")


@dataclass(frozen=True)
class PrunedChannels:
    """What was removed.

    Attributes:
        before, after: group's root module -> channels.
        macs_before, macs_after: multiply-accumulates of one image.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    macs_before: int
    macs_after: int

    def notes(self) -> dict[str, Any]:
        """Return the record for a manifest."""
        return {
            "channels_before": dict(self.before),
            "channels": dict(self.after),
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "kept_macs": self.macs_after / self.macs_before,
        }


def prune_channels(
    model: PreTrainedModel,
    task: Task,
    examples: Encoded,
    *,
    keep_macs: float,
    importance: str = "fisher",
    round_to: int = 8,
    batch_size: int = 32,
    count: Count | None = None,
) -> PrunedChannels:
    """Rank the channels of all groups together, keep the best within the budget, remove the rest, in place.

    BatchNorm statistics are stale afterwards: call ``recalibrate_batchnorm``.

    Args:
        model: a network of convolutions, linears and BatchNorms with the task's head, pruned before or not.
        task: gives the loss.
        examples: labelled, from the training split.
        keep_macs: share of the multiply-accumulates to keep, at most; above 0 and below 1.
        importance: fisher, taylor or magnitude; see ``score_channels``.
        round_to: kept widths are multiples of this, and at least this.
        batch_size: examples per forward pass; does not change the result.
        count: progress.

    Raises:
        RecipeError: the importance is unknown, or the budget is below what ``round_to`` channels everywhere cost.
        ModelError: the network has parts that cannot be pruned safely.
        MissingCapabilityError: Torch-Pruning is not installed.
    """
    groups = channel_groups(model)
    scores = score_channels(model, task, examples, groups, importance, batch_size, count)
    table = MacsTable(model, groups)
    dense = [group.width for group in groups]
    widths = choose_channels(table, scores, keep_macs * table.total(dense), round_to)
    kept = {
        group.root: sorted(np.argsort(-score, kind="stable")[:width].tolist())
        for group, score, width in zip(groups, scores, widths, strict=True)
    }
    remove_channels(model, kept)
    names = [group.root for group in groups]
    return PrunedChannels(
        dict(zip(names, dense, strict=True)),
        dict(zip(names, widths, strict=True)),
        table.total(dense),
        table.total(widths),
    )


def score_channels(
    model: PreTrainedModel,
    task: Task,
    examples: Encoded,
    groups: Sequence[ChannelGroup],
    importance: str = "fisher",
    batch_size: int = 32,
    count: Count | None = None,
) -> list[np.ndarray]:
    """Return (width,) float64 scores for each group: how much the loss needs each channel; never negative.

    With ``g_n = d loss_n / d mask``, where the mask multiplies a channel wherever it is read (one gradient per
    example, summed over its readers): ``fisher`` is half the mean of ``g_n^2`` (Kwon et al. 2022,
    arXiv:2204.09656, eq. 8), ``taylor`` the mean of ``|g_n|`` (Molchanov et al. 2017, arXiv:1611.06440, eq. 8),
    ``magnitude`` the sum of the squared weights that make and read the channel.

    Raises:
        RecipeError: the importance is unknown.
    """
    if importance not in IMPORTANCES:
        raise RecipeError(f"Unknown importance {importance!r} for channels.", fix=did_you_mean(importance, IMPORTANCES))
    if importance == "magnitude":
        return [_magnitude(model, group) for group in groups]
    sums = [np.zeros(group.width) for group in groups]
    done = 0
    for indices in examples.batches(batch_size):
        for total, gradients in zip(sums, _mask_gradients(model, task, examples, groups, indices), strict=True):
            total += (0.5 * gradients**2 if importance == "fisher" else np.abs(gradients)).sum(axis=0)
        done += len(indices)
        if count is not None:
            count(done, len(examples))
    return [total / len(examples) for total in sums]


def choose_channels(table: MacsTable, scores: Sequence[np.ndarray], budget: float, round_to: int) -> list[int]:
    """Return the width of each group: the least loss per multiply-accumulate goes first, until the budget is met.

    Widths fall to the next multiple of ``round_to``, one group at a time; what a step saves is counted at the
    widths that the other groups have by then, since a convolution costs its inputs times its outputs.

    Raises:
        RecipeError: the budget cannot be met with ``round_to`` channels in each group.
    """
    losses = [np.concatenate([[0.0], np.cumsum(np.sort(score))]) for score in scores]
    dense = [len(score) for score in scores]
    widths = list(dense)
    now = table.total(widths)
    while now > budget:
        steps = []
        for group, width in enumerate(widths):
            lower = (width - 1) // round_to * round_to
            if lower < round_to:
                continue
            smaller = table.total([lower if i == group else other for i, other in enumerate(widths)])
            loss = losses[group][dense[group] - lower] - losses[group][dense[group] - width]
            steps.append((loss / max(now - smaller, 1), group, lower, smaller))
        if not steps:
            raise RecipeError(
                f"The budget is smaller than a network with {round_to} channels everywhere.",
                value=f"wanted {budget / table.total(dense):.1%} of the multiply-accumulates, "
                f"reachable {now / table.total(dense):.1%}",
                fix="Raise `macs`, or lower `round_to`.",
            )
        _, group, widths[group], now = min(steps)
    return widths


def recalibrate_batchnorm(model: PreTrainedModel, examples: Encoded, batch_size: int = 64) -> int:
    """Measure the means and variances of every BatchNorm again, as plain averages over batches, in place.

    Args:
        model: the network; weights do not change, and it is in evaluation mode afterwards.
        examples: from the training split; about a thousand are plenty, and a last incomplete batch is left out.
        batch_size: examples per batch; each batch counts the same.

    Returns:
        The number of BatchNorms.

    Raises:
        DataError: there is nothing to measure on.
    """
    import torch
    from torch.nn import BatchNorm2d

    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
    if len(examples) < 2:
        raise DataError(
            "BatchNorm cannot be recalibrated on fewer than two images.",
            value=f"{len(examples)} images",
            fix="Give the prune step more `samples`.",
        )
    batches = [indices for indices in examples.batches(batch_size) if len(indices) == min(batch_size, len(examples))]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for indices in batches:
                model(**_tensors(model, examples, indices))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    return len(norms)


def _mask_gradients(
    model: PreTrainedModel, task: Task, examples: Encoded, groups: Sequence[ChannelGroup], indices: np.ndarray
) -> list[np.ndarray]:
    """Return, for each group, d loss_n / d mask: (batch, width) float64."""
    import torch

    size = len(indices)
    model.eval()
    masks = [torch.ones(size, group.width, device=model.device, requires_grad=True) for group in groups]
    targets = torch.from_numpy(np.asarray(examples.targets)[indices]).to(model.device)
    with torch.enable_grad(), masked_channels(model, groups, masks):
        loss = task.loss(model(**_tensors(model, examples, indices)).logits, targets) * size
        gradients = torch.autograd.grad(loss, masks)
    return [gradient.double().cpu().numpy() for gradient in gradients]


def _magnitude(model: PreTrainedModel, group: ChannelGroup) -> np.ndarray:
    from torch.nn import BatchNorm2d

    total = np.zeros(group.width)
    for name in group.outputs:
        module = model.get_submodule(name)
        if not isinstance(module, BatchNorm2d):
            total += module.weight.detach().double().cpu().flatten(1).square().sum(dim=1).numpy()
    for name, repeats in group.inputs.items():
        columns = model.get_submodule(name).weight.detach().double().cpu().transpose(0, 1).flatten(1)
        total += columns.square().sum(dim=1).reshape(group.width, repeats).sum(dim=1).numpy()
    return total


def _tensors(model: PreTrainedModel, examples: Encoded, indices: np.ndarray) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(values).to(model.device) for name, values in examples.batch(indices).items()}
