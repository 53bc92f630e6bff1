"""Let what is left of a pruned encoder make up for what went: least squares, sub-layer by sub-layer, no training.

Bottom-up, every output projection is refitted on the inputs that the already refitted layers below it produce, so
that errors do not add up on the way (K-prune, Park et al. 2023, arXiv:2308.03449, fits weights in this order).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compress.errors import UsageError
from compress.models.families import encoder_layers
from compress.pruning.masks import frozen
from compress.pruning.obs import damped
from compress.pruning.stream import Stream, Sublayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.pruning.importance import Count


def reconstruct(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    examples: Encoded,
    batch_size: int,
    *,
    damp: float = 1.0,
    count: Count | None = None,
) -> None:
    """Refit the output projections of a pruned model, weights and biases, in place.

    The target is the dense model's residual stream after the same sub-layer: what the next LayerNorm reads. With
    inputs x of the projection and the error e = dense stream - pruned stream, the weights change by the D and the
    bias by the b that minimise ``mean |D x + b - e|^2 + damp * mean(x_i^2) * |D|^2`` over the tokens that count.
    Where a sub-layer is gone only its bias is refitted. When nothing was removed nothing changes.

    Memory: the hidden states of all examples at one layer of both models (8 bytes * tokens * hidden), and one
    normal equation in float64 (8 bytes * columns^2).

    Args:
        pruned: has the layers of ``dense``, at any widths, merely cut out or already compensated.
        dense: unchanged.
        examples: from the training split; labels are not needed.
        batch_size: examples per forward pass; does not change the result.
        damp: how strongly the weights are held where they are, relative to the mean square of the inputs; weights that
            are already compensated want much of it, or the refit follows the noise of few examples.
        count: called with (sub-layers done, sub-layers in total).

    Raises:
        UsageError: the models have different numbers of layers.
    """
    layers, wanted = len(encoder_layers(pruned)), len(encoder_layers(dense))
    if layers != wanted:
        raise UsageError(
            "A pruned model is reconstructed layer by layer, so the dense one needs the same layers.",
            value=f"{layers} and {wanted} layers",
            fix="Drop the same layers from the dense model first.",
        )
    with frozen(pruned), frozen(dense), torch.no_grad():
        new, old = Stream(pruned, examples, batch_size), Stream(dense, examples, batch_size)
        for layer in range(layers):
            for kind, (sublayer, target) in enumerate(zip(new.sublayers(), old.sublayers(), strict=True)):
                _refit(sublayer, *_normal_equations(new, sublayer, old, target), damp)
                if count is not None:
                    count(2 * layer + kind + 1, 2 * layers)
            new.advance()
            old.advance()


def _normal_equations(
    new: Stream, sublayer: Sublayer, old: Stream, target: Sublayer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted means over tokens of ``z z^T`` and ``z e^T``, with ``z = (x, 1)``.

    Returns:
        (columns + 1, columns + 1) and (columns + 1, hidden), float64, on the model's device.
    """
    bias = sublayer.projection.bias
    size = sublayer.columns + 1
    moment = torch.zeros(size, size, dtype=torch.float64, device=bias.device)
    cross = torch.zeros(size, len(bias), dtype=torch.float64, device=bias.device)
    for batch in range(len(new)):
        seen, wanted = new.observe(sublayer, batch), old.observe(target, batch)
        weights = new.weights(batch)
        counts = weights > 0
        root = weights[counts].sqrt().unsqueeze(1)
        inputs = seen["inputs"][counts] if sublayer.units else root[:, :0]
        design = torch.cat([inputs, torch.ones_like(root)], dim=1) * root
        moment += (design.T @ design).double()
        cross += (design.T @ ((wanted["stream"] - seen["stream"])[counts] * root)).double()
    total = moment[-1, -1].clone()
    return moment / total, cross / total


def _refit(sublayer: Sublayer, moment: torch.Tensor, cross: torch.Tensor, damp: float) -> None:
    """Add the solution of the normal equations to the projection; the bias is eliminated first, so it is not damped."""
    mean, drift = moment[:-1, -1:], cross[-1:]
    covariance = damped(moment[:-1, :-1], damp) - mean @ mean.T
    change = torch.linalg.solve(covariance, cross[:-1] - mean @ drift) if sublayer.units else cross[:-1]
    shift = drift - mean.T @ change
    projection = sublayer.projection
    projection.bias.copy_((projection.bias.double() + shift[0]).to(projection.bias.dtype))
    if sublayer.units:
        projection.weight.copy_((projection.weight.double() + change.T).to(projection.weight.dtype))
