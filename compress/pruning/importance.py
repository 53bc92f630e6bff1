"""How much a model needs each attention head and each feed-forward neuron.

An importance is a class with one method. Adding one is a module (or a class here), a line of registration and a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.data.encoded import Encoded
from compress.models.families import EncoderLayer, encoder_layers
from compress.registry import Registry
from compress.tasks.base import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Count = Callable[[int, int], None]
"""Called with (examples done, examples in total)."""


@dataclass(frozen=True)
class Scores:
    """Importance of every unit; never negative, higher matters more.

    Attributes:
        heads: one float64 array (heads,) per encoder layer.
        neurons: one float64 array (neurons,) per encoder layer.
    """

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def select(self, layers: Sequence[int]) -> Scores:
        """Return the scores of some layers, in that order."""
        return Scores(tuple(self.heads[i] for i in layers), tuple(self.neurons[i] for i in layers))

    def layer_sums(self) -> np.ndarray:
        """Return (layers,) float64: the importance of each layer as a whole."""
        return np.array([h.sum() + n.sum() for h, n in zip(self.heads, self.neurons, strict=True)])


class Importance(ABC):
    """One way to score units."""

    uses_data: ClassVar[bool]
    """Whether ``score`` looks at the examples."""

    @abstractmethod
    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        """Score every head and neuron of a model; the model is unchanged afterwards.

        Args:
            model: any supported encoder with the task's head, pruned or not.
            task: gives the loss.
            examples: labelled, from the training split.
            batch_size: examples per forward pass; does not change the result.
            count: progress.
        """


class Fisher(Importance):
    """Diagonal of the empirical Fisher information of unit masks (Kwon et al. 2022, arXiv:2204.09656, eq. 8).

    Every unit gets a mask variable, 1, that multiplies its output where the output projection reads it.
    ``I_u = sum over examples n of (d loss_n / d mask_u)^2``, with one gradient per example rather than per
    batch: the mask is expanded to (batch, units), so that one backward pass of the summed loss yields
    them all. Half of ``I_u`` estimates how much the loss rises when the unit goes.
    """

    uses_data = True

    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        import torch

        layers = encoder_layers(model)
        sums = [
            (torch.zeros(x.heads, dtype=torch.float64), torch.zeros(x.neurons, dtype=torch.float64)) for x in layers
        ]
        done = 0
        with _frozen(model):
            for indices in examples.batches(batch_size, by_length=True):
                for total, gradients in zip(sums, _mask_gradients(model, layers, task, examples, indices), strict=True):
                    for kind in (0, 1):
                        total[kind].add_(gradients[kind].double().square().sum(dim=0).cpu())
                done += len(indices)
                if count is not None:
                    count(done, len(examples))
        return Scores(tuple(heads.numpy() for heads, _ in sums), tuple(neurons.numpy() for _, neurons in sums))


class Magnitude(Importance):
    """Sum of the squared weights that a unit owns: its rows of the inner and its columns of the output projections."""

    uses_data = False

    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        heads, neurons = [], []
        for layer in encoder_layers(model):
            owned = layer.attention_out.weight.detach().double().square().sum(dim=0)
            for linear in (layer.query, layer.key, layer.value):
                owned = owned + linear.weight.detach().double().square().sum(dim=1)
            heads.append(owned.view(layer.heads, layer.head_size).sum(dim=1).cpu().numpy())
            rows = layer.ffn_in.weight.detach().double().square().sum(dim=1)
            neurons.append((rows + layer.ffn_out.weight.detach().double().square().sum(dim=0)).cpu().numpy())
        return Scores(tuple(heads), tuple(neurons))


importances: Registry[Importance] = Registry("importance", Importance, group="mcompress.importances")  # type: ignore[type-abstract]
importances.register("fisher", Fisher)
importances.register("magnitude", Magnitude)


@contextmanager
def masked(layers: Sequence[EncoderLayer], masks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Multiply the units' outputs by masks inside this context.

    Args:
        layers: the encoder layers.
        masks: for each layer (heads mask, neurons mask): (batch, units) or (1, units), float.
    """
    hooks = []
    for layer, (heads, neurons) in zip(layers, masks, strict=True):
        hooks.append(layer.attention_out.register_forward_pre_hook(_scale(heads.repeat_interleave(layer.head_size, 1))))
        hooks.append(layer.ffn_out.register_forward_pre_hook(_scale(neurons)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _scale(mask: torch.Tensor) -> Callable[[Any, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * mask.unsqueeze(1), *inputs[1:])

    return hook


def _mask_gradients(
    model: PreTrainedModel, layers: Sequence[EncoderLayer], task: Task, examples: Encoded, indices: np.ndarray
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return, for each layer, d loss_n / d mask: (batch, heads) and (batch, neurons) float32."""
    import torch

    size, device = len(indices), model.device
    masks = [
        (
            torch.ones(size, layer.heads, device=device, requires_grad=True),
            torch.ones(size, layer.neurons, device=device, requires_grad=True),
        )
        for layer in layers
    ]
    batch = {name: torch.from_numpy(ids).to(device) for name, ids in examples.batch(indices).items()}
    targets = torch.from_numpy(np.asarray(examples.targets)[indices]).to(device)
    with torch.enable_grad(), masked(layers, masks):
        loss = task.loss(model(**batch).logits, targets) * size
        flat = torch.autograd.grad(loss, [mask for pair in masks for mask in pair])
    return list(zip(flat[::2], flat[1::2], strict=True))


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
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
