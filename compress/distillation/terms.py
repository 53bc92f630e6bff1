"""Which terms of the loss two models allow, and which of their layers are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.distillation.defaults import HIDDEN_WEIGHT
from compress.distillation.losses import uniform_layers
from compress.distillation.teacher import Terms
from compress.errors import ModelError, UsageError
from compress.models.families import encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how much each term counts.

    Attributes:
        weights: factor of task, logits, hidden and relations; 0 where the term is left out.
        pairs: (student layer, teacher layer) whose outputs are compared, ascending.
        relations: whether the last layers' queries, keys and values are.
    """

    weights: Mapping[str, float]
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def terms(self) -> Terms:
        """What is asked of the teacher besides its logits."""
        return Terms(tuple(layer for _, layer in self.pairs), bool(self.weights["relations"]))

    def logits_only(self) -> Comparison:
        return Comparison({**self.weights, "hidden": 0.0, "relations": 0.0})


def compare(
    weights: Mapping[str, float | None], student: PreTrainedModel, teacher: PreTrainedModel, tokens_match: bool
) -> Comparison:
    """Settle the terms of the loss.

    Args:
        weights: factor of each term; None for ``hidden``: 10 where the models can be compared token by token
            and layer by layer, else 0.
        student, teacher: the models.
        tokens_match: whether both cut every text into the same tokens.

    Raises:
        UsageError: a term is asked for that the models do not allow.
    """
    small, large = depth(student), depth(teacher)
    asked = {name: 0.0 if factor is None else float(factor) for name, factor in weights.items()}
    _refuse(asked, small, large, tokens_match)
    if weights["hidden"] is None and tokens_match and 0 < small <= large:
        asked["hidden"] = HIDDEN_WEIGHT
    pairs = pair_layers(student, large) if asked["hidden"] else ()
    if not pairs:
        asked["hidden"] = 0.0
    return Comparison(asked, pairs)


def pair_layers(student: PreTrainedModel, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student layer, teacher layer) whose outputs are compared.

    Layers are paired evenly, last with last. A layer that lost both its sub-layers can learn next to nothing, so
    what counts is the state that reaches the next living layer, or the head: of a living layer and the empty ones
    behind it, only the last is compared. Empty layers before the first living one are not compared.
    """
    layers = encoder_layers(student)
    alive = [bool(layer.heads or layer.neurons) for layer in layers]
    pairs = enumerate(uniform_layers(len(layers), teacher_layers))
    return tuple(
        pair for pair in pairs if any(alive[: pair[0] + 1]) and (pair[0] + 1 == len(layers) or alive[pair[0] + 1])
    )


def depth(model: PreTrainedModel) -> int:
    """Return the number of encoder layers; 0 for a model that is no known encoder."""
    try:
        return len(encoder_layers(model))
    except ModelError:
        return 0


def _refuse(weights: Mapping[str, float], small: int, large: int, tokens_match: bool) -> None:
    if not (weights["hidden"] or weights["relations"]):
        return
    if not (small and large):
        raise UsageError(
            "Hidden states and relations can only be compared between known encoders.",
            value=f"weights hidden {weights['hidden']:g}, relations {weights['relations']:g}",
            fix="Leave both out and keep logits: `weights: {hidden: 0}`.",
        )
    if not tokens_match:
        raise UsageError(
            "Teacher and student cut texts into different tokens, so their tokens cannot be compared one by one.",
            value=f"weights hidden {weights['hidden']:g}, relations {weights['relations']:g}",
            fix="Set both weights to 0 and keep logits: `weights: {hidden: 0, relations: 0}`.",
        )
    if weights["hidden"] and small > large:
        raise UsageError(
            "The student has more layers than the teacher, so its hidden states have no counterpart.",
            value=f"student {small}, teacher {large}",
            fix="Set `weights: {hidden: 0}`, or choose a deeper teacher.",
        )
