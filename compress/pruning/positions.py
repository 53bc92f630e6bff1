"""Which tokens of a batch count, and how much, when a sub-layer's output is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READS_FIRST = ("ForSequenceClassification", "ForImageClassification")
"""Heads of the supported families that read nothing but the last layer's first token."""
REST = 0.05
"""Weight of the tokens that the head does not read, so that the statistics stay well conditioned."""


def token_weights(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], tokens: int, last: bool) -> torch.Tensor:
    """Return (batch, tokens) float32 on the batch's device: 0 for padding, 1 for what counts.

    After the last layer a classifier reads one token; the others then weigh ``REST``.

    Args:
        model: its class says what the head reads.
        batch: the model's inputs; without an attention mask every token counts.
        tokens: positions that the encoder sees.
        last: whether the sub-layer belongs to the last encoder layer.
    """
    first = next(iter(batch.values()))
    mask = batch.get("attention_mask", torch.ones(len(first), tokens, device=first.device)).float()
    if last and type(model).__name__.endswith(READS_FIRST):
        mask = torch.cat([mask[:, :1], REST * mask[:, 1:]], dim=1)
    return mask
