"""How long and how fast to train when the user does not say: by how much was removed and by how many examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compress.errors import ModelError
from compress.models.families import layer_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN_WEIGHT = 10.0
"""Factor of the hidden-state term where the models' tokens can be compared one by one."""
_STEPS = 400
_RATE = 1e-4
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 40
_MOST_HALVINGS = 4.0


def halvings(student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    """Return how often the teacher's encoder was halved to get the student's: log2 of their weights, 0 to 4.

    Embeddings and heads do not count; of a model that is no known encoder every weight does.
    """
    ratio = _weights(teacher) / max(_weights(student), 1)
    return min(max(math.log2(ratio), 0.0), _MOST_HALVINGS)


def choose_epochs(halved: float, examples: int, batch_size: int, new: bool) -> int:
    """Return the number of epochs: 400 steps and 400 more for each halving, twice that for a new student.

    Args:
        halved: see ``halvings``.
        examples: training examples, unlabelled ones too.
        batch_size: examples per step.
        new: whether the student's weights do not come from the teacher's own function (narrower, foreign).

    Returns:
        From 2 to 40: small data is seen more often.
    """
    steps = _STEPS * (1 + halved) * (2 if new else 1)
    return min(max(math.ceil(steps * batch_size / max(examples, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)


def choose_rate(halved: float) -> float:
    """Return the peak learning rate: 1e-4, times the square root of 2 for each halving; 2e-4 for a quarter.

    What is left of a model has more to relearn, and a smaller model stands a higher rate.
    """
    return float(f"{_RATE * 2 ** (halved / 2):.2g}")


def _weights(model: PreTrainedModel) -> int:
    try:
        body = layer_list(model)
    except ModelError:
        body = model
    return sum(int(parameter.numel()) for parameter in body.parameters())
