"""The size of the weights that a unit owns: needs no data, and knows nothing about the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from compress.models.families import EncoderLayer, encoder_layers
from compress.pruning.importance import Count, ScoredImportance, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.tasks.base import Task


class Magnitude(ScoredImportance):
    """Sum of the squared weights that a unit owns: its rows of the inner and its columns of the output projections."""

    uses_data: ClassVar[bool] = False

    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        layers = encoder_layers(model)
        return Scores(tuple(map(_heads, layers)), tuple(map(_neurons, layers)))


def _heads(layer: EncoderLayer) -> np.ndarray:
    if not layer.heads:
        return np.zeros(0)
    owned = layer.attention_out.weight.detach().double().square().sum(dim=0)
    for linear in (layer.query, layer.key, layer.value):
        owned = owned + linear.weight.detach().double().square().sum(dim=1)
    return np.asarray(owned.view(layer.heads, layer.head_size).sum(dim=1).cpu())


def _neurons(layer: EncoderLayer) -> np.ndarray:
    if not layer.neurons:
        return np.zeros(0)
    rows = layer.ffn_in.weight.detach().double().square().sum(dim=1)
    return np.asarray((rows + layer.ffn_out.weight.detach().double().square().sum(dim=0)).cpu())
