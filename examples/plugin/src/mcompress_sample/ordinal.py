"""Ordinal classification: labels in an order, such as ratings, where a near miss is better than a far one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from compress.errors import ModelError
from compress.tasks.base import Score
from compress.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OrdinalClassification(TextClassification):
    """Texts with one of several levels; the labels in id order are the levels, lowest first.

    The answer is the median of the predicted distribution, which has the smallest expected distance from the truth.
    Metrics: mean distance in levels, with quadratically weighted kappa (Cohen 1968) and accuracy beside it.
    """

    name: ClassVar[str] = "ordinal-classification"

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        problem = options.get("problem", "single_label")
        if problem != "single_label":
            raise ModelError(
                "Ordinal classification takes a model with one label per text.",
                value=f"problem: {problem}",
                fix="Set `problem: single_label`, or use `task: text-classification`.",
            )
        return super().parse(options)

    @property
    def metric(self) -> str:
        return "mae"

    @property
    def direction(self) -> Literal["higher", "lower"]:
        return "lower"

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> Score:
        levels = median_levels(outputs)
        distances = np.abs(levels - targets).astype(np.float64)
        extra = {
            "quadratic_kappa": quadratic_kappa(targets, levels, len(self.labels)),
            "accuracy": float((distances == 0).mean()),
        }
        return Score(self.metric, float(distances.mean()), self.direction, distances, extra)

    def agree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.asarray(median_levels(first) == median_levels(second))

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Return the median level of each text, with the probability of that very level."""
        levels, chances = median_levels(outputs), probabilities(outputs)
        return [
            {"label": self.labels[level], "score": float(row[level])}
            for level, row in zip(levels, chances, strict=True)
        ]

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean ranked probability score (Epstein 1969): squared distances of cumulative distributions."""
        import torch

        steps = torch.arange(logits.shape[1] - 1, device=logits.device)
        reached = (targets[:, None] <= steps).to(logits.dtype)
        return (logits.softmax(dim=1).cumsum(dim=1)[:, :-1] - reached).square().sum(dim=1).mean()


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return the softmax of (n, levels) logits as float64."""
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def median_levels(outputs: np.ndarray) -> np.ndarray:
    """Return (n,) int64: the lowest level that half of the probability lies at or below."""
    return np.asarray((probabilities(outputs).cumsum(axis=1) >= 0.5).argmax(axis=1))


def quadratic_kappa(truth: np.ndarray, found: np.ndarray, levels: int) -> float:
    """Return ``1 - sum(w * observed) / sum(w * expected)`` with ``w = (i - j)^2``; 1 where both are always the same."""
    observed = np.zeros((levels, levels))
    np.add.at(observed, (truth.astype(np.int64), found), 1.0)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / max(len(truth), 1)
    weights = np.square(np.subtract.outer(np.arange(levels), np.arange(levels)), dtype=np.float64)
    chance = float((weights * expected).sum())
    return 1.0 - float((weights * observed).sum()) / chance if chance else 1.0
