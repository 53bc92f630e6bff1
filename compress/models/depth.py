"""Choose and drop whole encoder layers; what is left opens with plain ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import UsageError
from compress.models.families import family_of, layer_list, replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_layers(layers: int | Sequence[int], total: int, layer_scores: np.ndarray | None = None) -> tuple[int, ...]:
    """Choose which encoder layers stay.

    Args:
        layers: explicit positions, or how many.
        total: layers that there are.
        layer_scores: (total,) importance of each layer; the highest stay. Without it, layers are spaced
            evenly from the first to the last.

    Returns:
        Positions, ascending.

    Raises:
        UsageError: a position does not exist or stands twice, or the number is not between 1 and ``total``.
    """
    if isinstance(layers, int):
        wanted = _spaced(layers, total) if layer_scores is None else np.argsort(-layer_scores, kind="stable")[:layers]
        fits = 1 <= layers <= total
    else:
        wanted = np.array(sorted(layers), dtype=np.int64)
        fits = bool(layers) and len(set(layers)) == len(layers) and all(0 <= i < total for i in layers)
    if not fits:
        raise UsageError(
            "These layers cannot be kept.",
            value=f"layers {layers} of a model with {total}",
            fix=f"Give a number from 1 to {total}, or positions from 0 to {total - 1}, each once.",
        )
    return tuple(sorted(int(i) for i in wanted))


def drop_layers(model: PreTrainedModel, keep_layers: Sequence[int]) -> None:
    """Keep the chosen encoder layers, in place; config.json then says how many there are.

    Args:
        model: a supported encoder.
        keep_layers: positions, ascending.
    """
    from torch.nn import ModuleList

    family = family_of(model.config.model_type)
    layers = layer_list(model)
    replace_module(model.base_model, family.layers, ModuleList(layers[i] for i in keep_layers))
    setattr(model.config, family.layers_key, len(keep_layers))


def _spaced(count: int, total: int) -> np.ndarray:
    return np.floor(np.linspace(0, total - 1, max(count, 0)) + 0.5).astype(np.int64)
