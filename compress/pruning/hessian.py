"""Curvature of the loss in every output projection: second moments of what it reads and of what its output does.

When the weights of a projection change by D the loss rises by about ``1/2 trace(G D A D^T)``, with A the second
moment of the inputs and G that of the loss's sensitivity to the outputs, summed over an example's tokens
(Kronecker-factored curvature, Martens & Grosse 2015, arXiv:1503.05671, with the tokens taken as independent).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.pruning.masks import frozen, to_batch
from compress.pruning.positions import token_weights
from compress.pruning.stream import Sublayer, sublayers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.pruning.importance import Count
    from compress.tasks.base import Task

RIDGE = 1e-12
"""Added to the diagonal of a Hessian by the logits, relative to its trace: it may be singular."""
TINY = 1e-30
"""The smallest trace, for a model that is entirely sure."""


@dataclass(frozen=True)
class Moments:
    """The two factors of one sub-layer, float64 on the model's device.

    Attributes:
        inputs: (columns, columns), mean of ``x x^T`` over the tokens that count; (0, 0) where the sub-layer is gone.
        outputs: (hidden, hidden), ``g g^T`` summed over the tokens of an example, mean over examples.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor


def gather(
    model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
) -> list[Moments]:
    """Pass the examples forward and backward once and collect the moments of every sub-layer.

    ``g`` is the gradient, by the projection's output at a token, of ``v . logits``, where v is random with the
    Hessian of the example's loss by its logits as second moment. So the mean of ``g g^T`` is the Gauss-Newton
    curvature, which does not depend on the labels. For two classes v has one direction and nothing is left to chance.

    Products of one batch are in float32, sums in float64. Memory: 8 bytes * (columns^2 + hidden^2) per sub-layer.

    Args:
        model: any supported encoder with the task's head; unchanged afterwards.
        task: gives the loss.
        examples: labelled.
        batch_size: examples per forward pass; does not change the result.
        count: progress.

    Returns:
        Attention 0, feed-forward 0, attention 1, feed-forward 1, ...
    """
    parts = sublayers(model)
    sums = [_Sums(part, model.device) for part in parts]
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (len(examples), model.config.num_labels)))
    done = 0
    with frozen(model):
        for indices in examples.batches(batch_size, by_length=True):
            batch = to_batch(model, examples, indices)
            targets = torch.from_numpy(np.asarray(examples.targets)[indices]).to(model.device)
            inputs, gradients = _passes(model, parts, task, batch, targets, signs[indices].to(model.device))
            for i, total in enumerate(sums):
                last = i >= len(parts) - 2
                total.add(inputs[i], gradients[i], token_weights(model, batch, inputs[i].shape[1], last))
            done += len(indices)
            if count is not None:
                count(done, len(examples))
    return [total.mean(done) for total in sums]


class _Sums:
    def __init__(self, part: Sublayer, device: torch.device) -> None:
        hidden = len(part.projection.bias)
        self.inputs = torch.zeros(part.columns, part.columns, dtype=torch.float64, device=device)
        self.outputs = torch.zeros(hidden, hidden, dtype=torch.float64, device=device)
        self.weight = 0.0

    def add(self, inputs: torch.Tensor, gradients: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch: (batch, tokens, columns), (batch, tokens, hidden), (batch, tokens)."""
        counts = weights > 0
        g = gradients[counts]
        self.outputs += (g.T @ g).double()
        self.weight += float(weights.double().sum())
        if len(self.inputs):
            x = inputs[counts] * weights[counts].sqrt().unsqueeze(1)
            self.inputs += (x.T @ x).double()

    def mean(self, examples: int) -> Moments:
        return Moments(self.inputs / self.weight, self.outputs / examples)


def _passes(
    model: PreTrainedModel,
    parts: Sequence[Sublayer],
    task: Task,
    batch: dict[str, torch.Tensor],
    targets: torch.Tensor,
    signs: torch.Tensor,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the inputs of each projection and the gradient by its output, token by token."""
    inputs: dict[int, torch.Tensor] = {}
    probes: dict[int, torch.Tensor] = {}

    def see(i: int) -> Any:
        def hook(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            inputs[i] = arguments[0].detach()
            probes[i] = output.new_zeros(*arguments[0].shape[:-1], output.shape[-1]).requires_grad_()
            return output + probes[i]

        return hook

    with ExitStack() as hooks, torch.enable_grad():
        for i, part in enumerate(parts):
            hooks.callback(part.projection.register_forward_hook(see(i)).remove)
        logits = model(**batch).logits
        direction = torch.einsum("nij,nj->ni", _curvature_root(task, logits, targets), signs)
        wanted = [probes[i] for i in range(len(parts))]
        gradients = torch.autograd.grad((logits * direction.to(logits.dtype)).sum(), wanted)
    return [inputs[i] for i in range(len(parts))], list(gradients)


def _curvature_root(task: Task, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return R with ``R R^T`` the Hessian of each loss by its logits: (batch, labels, labels) float64.

    Of a loss that is not convex there, which a plug-in's task may have, the directions that curve down count as flat.
    """
    points = logits.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(task.loss(points, targets) * len(points), points, create_graph=True)
    rows = [torch.autograd.grad(slope[:, k].sum(), points, retain_graph=True)[0] for k in range(points.shape[1])]
    hessians = torch.stack(rows, dim=1)
    traces = hessians.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=TINY)
    ridge = RIDGE * traces[:, None, None] * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    root, failed = torch.linalg.cholesky_ex(hessians + ridge)
    if (bent := failed > 0).any():
        values, vectors = torch.linalg.eigh(hessians[bent])
        root[bent] = vectors * values.clamp(min=TINY).sqrt()[:, None, :]
    return root
