"""Remove heads, neurons and layers physically: the weights are gone, not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.models.families import encoder_layers, family_of, find_module, layer_list
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


def drop_layers(model: PreTrainedModel, keep_layers: Sequence[int]) -> None:
    """Keep the chosen encoder layers, in place; config.json then says how many there are.

    Args:
        model: a supported encoder.
        keep_layers: positions, ascending.
    """
    from torch.nn import ModuleList

    family = family_of(model.config.model_type)
    layers = layer_list(model)
    parent, _, name = family.layers.rpartition(".")
    setattr(find_module(model.base_model, parent), name, ModuleList(layers[i] for i in keep_layers))
    setattr(model.config, family.layers_key, len(keep_layers))
