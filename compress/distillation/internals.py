"""Read a model's logits, hidden states and last queries, keys and values in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.families import EncoderLayer, encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Internals:
    """What distillation compares.

    Attributes:
        logits: (batch, labels) float32.
        hidden: for each layer asked for, its output: (batch, tokens, hidden).
        relations: queries, keys, values of the last layer that has attention, side by side:
            (batch, tokens, 3 * heads * head_size); None when not asked for.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    relations: torch.Tensor | None = None


def read_internals(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], layers: Sequence[int] = (), relations: bool = False
) -> Internals:
    """Run a batch and return what was asked for; gradients flow where they are enabled.

    Args:
        model: encoder with a head.
        inputs: token inputs, (batch, tokens) int64 each.
        layers: encoder layers whose outputs are wanted, from 0.
        relations: whether the projections of the last layer with attention are wanted.

    Raises:
        UsageError: relations are asked for and no layer has attention.
    """
    seen: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> None:
        seen.append(output)

    last = last_attention(model) if relations else None
    hooks = [linear.register_forward_hook(keep) for linear in ((last.query, last.key, last.value) if last else ())]
    try:
        outputs = model(**inputs, output_hidden_states=bool(layers))
    finally:
        for hook in hooks:
            hook.remove()
    hidden = tuple(outputs.hidden_states[layer + 1] for layer in layers)
    return Internals(outputs.logits, hidden, torch.cat(seen, dim=-1) if relations else None)


def last_attention(model: PreTrainedModel) -> EncoderLayer:
    """Return the last encoder layer whose attention has not been removed.

    Raises:
        UsageError: there is none.
    """
    for layer in reversed(encoder_layers(model)):
        if layer.heads:
            return layer
    raise UsageError(
        "Relations compare queries, keys and values, and no layer of the model has attention left.",
        value=f"{len(encoder_layers(model))} layers, 0 heads",
        fix="Leave them out: `weights: {relations: 0}`.",
    )


def predict(model: PreTrainedModel, encoded: Encoded, batch_size: int = 64) -> np.ndarray:
    """Return (n, labels) float32 logits in the order of the examples, in evaluation mode, without gradients."""
    out: np.ndarray | None = None
    model.eval()
    for indices in encoded.batches(batch_size, by_length=True):
        batch = {name: torch.from_numpy(ids).to(model.device) for name, ids in encoded.batch(indices).items()}
        with torch.inference_mode():
            logits = model(**batch).logits.float().cpu().numpy()
        if out is None:
            out = np.empty((len(encoded), logits.shape[1]), dtype=np.float32)
        out[indices] = logits
    return np.empty((0, 0), dtype=np.float32) if out is None else out
