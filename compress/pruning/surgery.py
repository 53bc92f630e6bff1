"""Remove heads and neurons physically: the weights are gone, not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.models.families import encoder_layers
from compress.models.structure import Structure, keep_units, structure_of
from compress.pruning.selection import LayerUnits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prune_heads_and_neurons(model: PreTrainedModel, keep: Sequence[LayerUnits]) -> Structure:
    """Keep the chosen units of every layer and remove the rest, in place.

    The outputs equal those of the model with the removed units' masks at zero.

    Args:
        model: a supported encoder, pruned before or not.
        keep: for each layer the positions to keep, at least one head and one neuron.

    Returns:
        The new shapes; heads are indices into the dense model's.
    """
    for layer, units in zip(encoder_layers(model), keep, strict=True):
        keep_units(layer, units.heads, units.neurons)
    return structure_of(model)
