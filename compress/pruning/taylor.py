"""The first-order term of the loss in unit masks (Michel et al. 2019, arXiv:1905.10650)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from compress.pruning.importance import Count, ScoredImportance, Scores
from compress.pruning.masks import mean_over_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.tasks.base import Task


class Taylor(ScoredImportance):
    """``S_u = mean over examples n of |d loss_n / d mask_u|``: how far one example's loss moves when unit u goes.

    The square that Molchanov et al. 2019 (arXiv:1906.10771) take instead, with one gradient per example,
    ranks like ``fisher``.
    """

    uses_data: ClassVar[bool] = True

    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        return Scores(*mean_over_examples(model, task, examples, batch_size, torch.abs, count))
