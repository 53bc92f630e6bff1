"""Golden inputs and outputs: eight built-in sentences and what a model says about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import Golden
from compress.models.loading import load_torch
from compress.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

GOLDEN_TEXTS: tuple[str, ...] = (
    "It works.",
    "The second half was slower than the first, but I enjoyed it anyway.",
    "Why was my card charged twice for the same order?",
    "A dull, overlong film with nothing new to say.",
    "Please cancel the order, not the subscription.",
    "The train to Geneva leaves at 07:45 from platform 3.",
    "She never said that the parcel had arrived; she asked where it was.",
    "Charming, well acted and short: one of the best evenings I have had at the cinema in years, and I would go again.",
)


def golden_batch(folder: Path, task: Task) -> dict[str, np.ndarray]:
    """Encode the golden texts with a folder's own tokenizer: name -> (8, longest) int64."""
    encoded = task.encode(folder, [{"text": text, "text_pair": None} for text in GOLDEN_TEXTS])
    return encoded.batch(range(len(encoded)))


def golden_torch(folder: Path, task: Task) -> Golden:
    """Load a torch artifact's folder as a user would and record its logits for the golden texts.

    Args:
        folder: the payload, weights and tokenizer.
        task: encodes the texts.
    """
    return golden_of(load_torch(folder, task), golden_batch(folder, task))


def golden_of(model: PreTrainedModel, batch: dict[str, np.ndarray]) -> Golden:
    """Run a model in memory on one batch of token ids ((batch, sequence) int64 each) and record it."""
    import torch

    tensors = {name: torch.from_numpy(ids).to(model.device) for name, ids in batch.items()}
    with torch.inference_mode():
        logits = model.eval()(**tensors).logits
    return Golden(
        inputs={name: ids.tolist() for name, ids in batch.items()}, outputs={"logits": logits.float().cpu().tolist()}
    )
