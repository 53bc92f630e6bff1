"""The contract of a task: what examples look like, how they are encoded, run and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from compress.artifact import TensorSpec
from compress.data.encoded import Encoded
from compress.errors import ModelError
from compress.registry import Registry

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Row = Mapping[str, Any]
"""One example as it was read: column name -> value, already renamed to the task's columns."""


@dataclass(frozen=True)
class Score:
    """A metric on one split.

    Attributes:
        metric: its name ("accuracy").
        value: the metric over all examples.
        direction: whether higher or lower is better.
        outcomes: (n,) float64, one contribution per example, for paired tests; their mean is ``value``.
        extra: further metrics by name.
    """

    metric: str
    value: float
    direction: Literal["higher", "lower"]
    outcomes: np.ndarray
    extra: Mapping[str, float]


class Task(ABC):
    """A task with its options (labels, lengths): a value that an artifact carries."""

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """Columns that hold text or images, most important first; the first is required."""

    labels: tuple[str, ...]
    max_length: int

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the main metric, as ``score`` reports it; gates are declared by it."""

    @property
    @abstractmethod
    def direction(self) -> Literal["higher", "lower"]:
        """Whether higher or lower values of the main metric are better, as ``score`` reports it."""

    @abstractmethod
    def dump(self) -> dict[str, Any]:
        """Return the JSON form; ``task_from(dump())`` gives an equal task."""

    @classmethod
    @abstractmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Build a task from ``dump()``."""

    @property
    def preprocessing(self) -> str:
        """What ``encode`` does to an example, in a few words for a report."""
        return ""

    @abstractmethod
    def encode(self, tokenizer_folder: Path, rows: Sequence[Row]) -> Encoded:
        """Turn rows into inputs with a folder's tokenizer or preprocessor; targets are set when rows have labels.

        Raises:
            DataError: a label that the task does not know.
        """

    def encoder(self, folder: Path) -> Callable[[Sequence[Row]], Encoded]:
        """Open a folder's tokenizer or preprocessor once; return what ``encode`` does with it, for many calls."""
        return partial(self.encode, folder)

    @abstractmethod
    def inputs(self, folder: Path) -> tuple[TensorSpec, ...]:
        """Return what the model in a folder takes; a size that varies is its name, ``batch`` first."""

    @abstractmethod
    def golden_rows(self, folder: Path) -> Sequence[Row]:
        """Return built-in rows whose outputs a manifest records, for the model in a folder; always the same."""

    @abstractmethod
    def score(self, outputs: np.ndarray, targets: np.ndarray) -> Score:
        """Score raw model outputs ((n, ...) float32) against the targets of an ``Encoded``."""

    @abstractmethod
    def agree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return (n,) bool: whether two models' raw outputs lead to the same decision, per example."""

    @abstractmethod
    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Decode raw outputs for a person: one ``{"label": ..., "score": ...}`` per example."""

    def label_scores(self, outputs: np.ndarray) -> list[Any]:
        """Decode raw outputs into every label's score: a mapping per example, or what ``predictions`` say."""
        return [answer["score"] for answer in self.predictions(outputs)]

    @abstractmethod
    def load_model(self, folder: Path, **options: Any) -> PreTrainedModel:
        """Load this task's auto class from a Hugging Face folder in float32."""

    @abstractmethod
    def config_options(self) -> dict[str, Any]:
        """Return what a Hugging Face config must say so that a fresh head fits this task."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean task loss of a batch: (batch, labels) float32 against collated targets."""

    @abstractmethod
    def divergence(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return the distillation loss between two batches of logits.

        Single label: ``T^2 * KL(softmax(t/T) || softmax(s/T))``, batchmean (Hinton et al. 2015).
        Multi label: the binary form, summed over labels. Regression: mean squared error.
        """


tasks: Registry[Task] = Registry("task", Task, group="mcompress.tasks")  # type: ignore[type-abstract]
tasks.register("image-classification", "compress.tasks.image_classification:ImageClassification")
tasks.register("text-classification", "compress.tasks.text_classification:TextClassification")


def task_from(options: Mapping[str, Any]) -> Task:
    """Rebuild the task that an artifact's manifest carries.

    Raises:
        ModelError: it is none.
    """
    try:
        return tasks.get(str(options["name"])).parse(options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "The task of an artifact cannot be read.",
            value=f"{type(error).__name__}: {error}; {str(dict(options))[:200]}",
            fix="Produce the artifact again.",
        ) from error
