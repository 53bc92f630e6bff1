"""Masks on units, and the gradient of every single example's loss by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.models.families import EncoderLayer, encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.pruning.importance import Count
    from compress.tasks.base import Task

Masks = list[tuple[torch.Tensor, torch.Tensor]]
"""For each layer (heads, neurons): (batch, units) or (1, units) float; 0 units where the sub-layer is gone."""


@contextmanager
def masked(layers: Sequence[EncoderLayer], masks: Masks) -> Iterator[None]:
    """Multiply the units' outputs by masks, where the output projections read them, inside this context."""
    hooks = []
    for layer, (heads, neurons) in zip(layers, masks, strict=True):
        if layer.heads:
            scale = _scale(heads.repeat_interleave(layer.head_size, 1))
            hooks.append(layer.attention_out.register_forward_pre_hook(scale))
        if layer.neurons:
            hooks.append(layer.ffn_out.register_forward_pre_hook(_scale(neurons)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mean_over_examples(
    model: PreTrainedModel,
    task: Task,
    examples: Encoded,
    batch_size: int,
    of: Callable[[torch.Tensor], torch.Tensor],
    count: Count | None = None,
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Return the mean over examples n of ``of(d loss_n / d mask)`` at masks of 1.

    Args:
        model: any supported encoder with the task's head; unchanged afterwards.
        task: gives the loss.
        examples: labelled.
        batch_size: examples per forward pass; does not change the result.
        of: elementwise.
        count: progress.

    Returns:
        (heads, neurons): one float64 array (units,) per layer each.
    """
    layers = encoder_layers(model)
    sums = [(torch.zeros(x.heads, dtype=torch.float64), torch.zeros(x.neurons, dtype=torch.float64)) for x in layers]
    done = 0
    with frozen(model):
        for indices in examples.batches(batch_size, by_length=True):
            for total, gradients in zip(sums, _gradients(model, layers, task, examples, indices), strict=True):
                for kind in (0, 1):
                    total[kind].add_(of(gradients[kind].double()).sum(dim=0).cpu())
            done += len(indices)
            if count is not None:
                count(done, len(examples))
    heads, neurons = zip(*sums, strict=True)
    return tuple((x / done).numpy() for x in heads), tuple((x / done).numpy() for x in neurons)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without weight gradients inside this context."""
    training = model.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        model.train(training)


def to_batch(model: PreTrainedModel, examples: Encoded, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the model's inputs for some examples, on its device."""
    return {name: torch.from_numpy(array).to(model.device) for name, array in examples.batch(indices).items()}


def _gradients(
    model: PreTrainedModel, layers: Sequence[EncoderLayer], task: Task, examples: Encoded, indices: np.ndarray
) -> Masks:
    """Return d loss_n / d mask; one backward pass of the summed loss yields them, as each example has its own masks."""
    size, device = len(indices), model.device
    masks = [
        (
            torch.ones(size, layer.heads, device=device, requires_grad=True),
            torch.ones(size, layer.neurons, device=device, requires_grad=True),
        )
        for layer in layers
    ]
    targets = torch.from_numpy(np.asarray(examples.targets)[indices]).to(device)
    with torch.enable_grad(), masked(layers, masks):
        loss = task.loss(model(**to_batch(model, examples, indices)).logits, targets) * size
        flat = torch.autograd.grad(loss, [mask for pair in masks for mask in pair], materialize_grads=True)
    return list(zip(flat[::2], flat[1::2], strict=True))


def _scale(mask: torch.Tensor) -> Callable[[Any, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * mask.unsqueeze(1), *inputs[1:])

    return hook
