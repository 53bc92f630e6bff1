"""Uniform widths: shapes that config.json can say, so that plain ``from_pretrained`` opens the pruned model.

The number of layers is a key of config.json in every family, and so is one number of neurons for all layers. One
number of heads is too, but it fixes the size of a head as hidden / heads; only families whose config.json has a key
for that size (``Family.head_size_key``) can say that every layer has fewer heads of the old size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.models.families import dimensions, encoder_layers, family_of
from compress.models.structure import Structure, structure_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def heads_are_free(model_type: str) -> bool:
    """Say whether config.json of this family can express another number of heads than the dense model has.

    Raises:
        ModelError: the model_type is not supported.
    """
    return bool(family_of(model_type).head_size_key)


def expressible(structure: Structure, heads: int) -> bool:
    """Say whether some config.json of the family describes these shapes.

    Args:
        structure: shapes of an encoder.
        heads: of each layer of the dense model.
    """
    widths = {(len(shape.heads), shape.neurons) for shape in structure.layers}
    if len(widths) != 1 or structure.ranks or structure.channels:
        return False
    kept, neurons = widths.pop()
    return kept > 0 and neurons > 0 and (kept == heads or heads_are_free(structure.model_type))


def absorb(model: PreTrainedModel) -> bool:
    """Let config.json describe the model as it is now, if it can, in place; ``save_torch`` then writes no structure.

    From then on the pruned model is the dense one that its config.json describes: what is measured against "the
    dense model", and which of its heads are left, is forgotten.

    Returns:
        Whether it could; if not, nothing changed.
    """
    structure, family = structure_of(model), family_of(model.config.model_type)
    size = dimensions(model.config.to_dict())
    if not expressible(structure, size.heads):
        return False
    layers = encoder_layers(model)
    setattr(model.config, family.neurons_key, layers[0].neurons)
    if layers[0].heads != size.heads:
        setattr(model.config, family.heads_key, layers[0].heads)
        setattr(model.config, family.head_size_key, size.head_size)
    for layer in layers:
        layer.attention.kept_heads = tuple(range(layer.heads))
    return True
