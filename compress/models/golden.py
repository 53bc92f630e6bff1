"""Golden inputs and outputs: a task's built-in examples and what a model says about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.artifact import Golden
from compress.models.loading import load_torch
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DECIMALS = 4
"""Golden pixels are rounded to so many: the model sees what the manifest can hold without bloat."""


def golden_batch(folder: Path, task: Task) -> dict[str, np.ndarray]:
    """Encode the golden rows with a folder's own files: name -> (rows, longest) int64 or (rows, *shape) float32."""
    encoded = task.encode(folder, task.golden_rows(folder))
    batch = encoded.batch(range(len(encoded)))
    return {name: np.round(values, _DECIMALS) if values.dtype.kind == "f" else values for name, values in batch.items()}


def golden_torch(folder: Path, task: Task) -> Golden:
    """Load a torch artifact's folder as a user would and record its logits for the golden rows.

    Args:
        folder: the payload, weights and tokenizer or preprocessor.
        task: gives and encodes the rows.
    """
    return golden_of(load_torch(folder, task), golden_batch(folder, task))


def golden_of(model: PreTrainedModel, batch: dict[str, np.ndarray]) -> Golden:
    """Run a model in memory on one batch of inputs and record it."""
    import torch

    tensors = {name: torch.from_numpy(values).to(model.device) for name, values in batch.items()}
    with torch.inference_mode():
        logits = model.eval()(**tensors).logits
    return Golden(inputs=golden_inputs(batch), outputs={"logits": logits.float().cpu().tolist()})


def golden_inputs(batch: dict[str, np.ndarray]) -> dict[str, list[object]]:
    """Return a batch as a manifest holds it: nested lists, floats as short as ``golden_batch`` rounded them."""
    return {
        name: (np.round(values.astype(np.float64), _DECIMALS) if values.dtype.kind == "f" else values).tolist()
        for name, values in batch.items()
    }
