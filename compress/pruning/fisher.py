"""The diagonal of the empirical Fisher information of unit masks (Kwon et al. 2022, arXiv:2204.09656, eq. 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from compress.pruning.importance import Count, ScoredImportance, Scores
from compress.pruning.masks import mean_over_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.tasks.base import Task


class Fisher(ScoredImportance):
    """``S_u = 1/2 mean over examples n of (d loss_n / d mask_u)^2``: how much the loss rises when unit u goes.

    The second-order term of the loss in the mask, with the Fisher information in place of the Hessian; there is
    one gradient per example, not one per batch.
    """

    uses_data: ClassVar[bool] = True

    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        heads, neurons = mean_over_examples(model, task, examples, batch_size, torch.square, count)
        return Scores(tuple(0.5 * x for x in heads), tuple(0.5 * x for x in neurons))
