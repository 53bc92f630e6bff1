"""The mathematics of exactly one label per example, shared by the tasks that have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import DataError

if TYPE_CHECKING:
    import torch


def right(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (n,) float64: 1 where the largest of (n, labels) logits is the target's."""
    return np.asarray((outputs.argmax(axis=1) == targets).astype(np.float64))


def same_label(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether two models' (n, labels) logits choose the same label."""
    return np.asarray(first.argmax(axis=1) == second.argmax(axis=1))


def best_labels(outputs: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most likely label of each row of (n, labels) logits, with its softmax probability."""
    chances = _softmax(outputs)
    best = chances.argmax(axis=1)
    return [{"label": labels[i], "score": float(row[i])} for i, row in zip(best, chances, strict=True)]


def every_label(outputs: np.ndarray, labels: Sequence[str]) -> list[dict[str, float]]:
    """Return the softmax probability of every label, in id order, for each row of (n, labels) logits."""
    return [dict(zip(labels, row, strict=True)) for row in _softmax(outputs).tolist()]


def _softmax(outputs: np.ndarray) -> np.ndarray:
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``T^2 * KL(softmax(t/T) || softmax(s/T))``, batchmean (Hinton et al. 2015, arXiv:1503.02531)."""
    from torch.nn import functional

    return (temperature * temperature) * functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def refuse_unknown(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse labels that the model does not know.

    Raises:
        DataError: lists up to five of them, and what the model knows.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise DataError(
            "The data has labels that the model does not know.",
            value=f"{', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; "
            f"the model knows: {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}",
            fix="Map the model's names to the data's with `labels: {LABEL_0: name, ...}` in the recipe.",
        )


def head_options(labels: Sequence[str]) -> dict[str, Any]:
    """Return what a Hugging Face config says of a head with these labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
