"""Read a model's logits, hidden states and last queries, keys and values in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compress.data.encoded import Encoded
from compress.models.families import encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Internals:
    """What distillation compares.

    Attributes:
        logits: (batch, labels) float32.
        hidden: for each layer asked for, its output: (batch, tokens, hidden).
        relations: last layer's queries, keys, values side by side: (batch, tokens, 3 * heads * head_size);
            None when not asked for.
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
        relations: whether the last layer's projections are wanted.
    """
    seen: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> None:
        seen.append(output)

    last = encoder_layers(model)[-1]
    projections = (last.query, last.key, last.value) if relations else ()
    hooks = [linear.register_forward_hook(keep) for linear in projections]
    try:
        outputs = model(**inputs, output_hidden_states=bool(layers))
    finally:
        for hook in hooks:
            hook.remove()
    hidden = tuple(outputs.hidden_states[layer + 1] for layer in layers)
    return Internals(outputs.logits, hidden, torch.cat(seen, dim=-1) if relations else None)


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
