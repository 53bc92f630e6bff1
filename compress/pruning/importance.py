"""The contract of an importance: in which order a model can spare its heads and neurons, and what each step costs.

An importance is a class with one method. Adding one is a module, a line of registration and a test; one that gives
every unit a score of its own derives from ``ScoredImportance`` and writes only ``score``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from compress.data.encoded import Encoded
from compress.pruning.ladder import Ladder, Ladders
from compress.pruning.ranking import Ranking
from compress.registry import Registry
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Count = Callable[[int, int], None]
"""Called with (examples done, examples in total)."""


class Importance(ABC):
    """One way to rank units."""

    uses_data: ClassVar[bool]
    """Whether ``rank`` looks at the examples."""

    @abstractmethod
    def rank(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Ranking:
        """Rank the heads and neurons of every layer; the model is unchanged afterwards.

        Args:
            model: any supported encoder with the task's head, pruned or not.
            task: gives the loss.
            examples: labelled, from the training split.
            batch_size: examples per forward pass; does not change the result.
            count: progress.

        Returns:
            One ladder per sub-layer; one without units where the sub-layer is gone.
        """


@dataclass(frozen=True)
class Scores:
    """What the loss is expected to lose with each unit alone; never negative, higher matters more.

    Attributes:
        heads: one float64 array (heads,) per encoder layer.
        neurons: one float64 array (neurons,) per encoder layer.
    """

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def ladders(self) -> Ladders:
        """Return the order from the lowest score to the highest, and the sums of the scores along it."""
        return Ladders(tuple(map(_ladder, self.heads)), tuple(map(_ladder, self.neurons)))


class ScoredImportance(Importance):
    """An importance that gives every unit a score and takes the scores as independent of each other."""

    def rank(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Ranking:
        return Ranking(self.score(model, task, examples, batch_size, count).ladders(), comparable=True)

    @abstractmethod
    def score(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Scores:
        """Score every head and neuron; arguments as for ``rank``."""


importances: Registry[Importance] = Registry("importance", Importance, group="mcompress.importances")  # type: ignore[type-abstract]
importances.register("fisher", "compress.pruning.fisher:Fisher")
importances.register("magnitude", "compress.pruning.magnitude:Magnitude")
importances.register("obs", "compress.pruning.surgeon:Surgeon")
importances.register("taylor", "compress.pruning.taylor:Taylor")


def _ladder(scores: np.ndarray) -> Ladder:
    order = np.argsort(scores, kind="stable").astype(np.int64)
    return Ladder(order, np.concatenate([[0.0], np.cumsum(scores[order], dtype=np.float64)]))
