"""Put an untrained head for a task on a pretrained encoder."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from compress.errors import ModelError
from compress.models.loading import quiet
from compress.models.remote_code import code_of
from compress.models.structure import apply_structure, is_dense, structure_of
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_fits(model: PreTrainedModel, task: Task) -> bool:
    """Say whether the model's head has the task's labels, in the same order, and its kind of problem."""
    return all(getattr(model.config, key) == value for key, value in task.config_options().items())


def with_fresh_head(model: PreTrainedModel, task: Task, seed: int) -> PreTrainedModel:
    """Return a model with the same encoder, pruned or not, and a new head drawn from ``seed``.

    Raises:
        ModelError: the model's class has no encoder that could be taken over.
    """
    import torch

    if model.base_model is model:
        raise ModelError(
            "The model has no head to replace.", value=type(model).__name__, fix="Take it in with the task's class."
        )
    config = copy.deepcopy(model.config)
    for key, value in task.config_options().items():
        setattr(config, key, value)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: PreTrainedModel = type(model)(config)
    if code_of(model) is None and not is_dense(model):
        apply_structure(fresh, structure_of(model))
    fresh.base_model.load_state_dict(model.base_model.state_dict(), strict=True)
    return fresh.eval()
