"""``structure.json``: the widths of a pruned encoder, and how they are put into a dense model.

``config.json`` of a width-pruned model still describes the dense one, because Transformers cannot express
another number of heads or neurons in each layer. ``structure.json`` beside it says what is left of each layer:
build the model that config.json describes, resize it with ``apply_structure``, then load the weights strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import ModelError
from compress.models.families import EncoderLayer, dimensions, encoder_layers

if TYPE_CHECKING:
    import torch
    from torch.nn import Linear
    from transformers import PreTrainedModel

STRUCTURE = "structure.json"


class LayerShape(BaseModel):
    """What one encoder layer keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[int, ...] = Field(min_length=1, description="kept heads, as indices into the dense layer's heads")
    neurons: int = Field(ge=1, description="kept feed-forward neurons")


class Structure(BaseModel):
    """The shapes of every encoder layer, first to last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model_type: str
    layers: tuple[LayerShape, ...]

    def write(self, folder: Path) -> None:
        (folder / STRUCTURE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Structure | None:
        """Return the structure that lies in a folder, or None for a dense model.

        Raises:
            ModelError: the file is not a structure of this schema.
        """
        source = folder / STRUCTURE
        if not source.is_file():
            return None
        try:
            return cls.model_validate_json(source.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise ModelError(
                "structure.json cannot be read.",
                value=f"{folder.name}: {error.errors()[0]['msg']}",
                fix="Produce the model again; this version reads schema 1.",
            ) from error


def structure_of(model: PreTrainedModel) -> Structure:
    """Return the shapes that a model has now."""
    layers = [LayerShape(heads=kept_heads(layer), neurons=layer.neurons) for layer in encoder_layers(model)]
    return Structure(model_type=model.config.model_type, layers=tuple(layers))


def is_dense(model: PreTrainedModel) -> bool:
    """Say whether config.json alone describes the model's shapes."""
    size = dimensions(model.config.to_dict())
    return all((layer.heads, layer.neurons) == (size.heads, size.neurons) for layer in encoder_layers(model))


def apply_structure(model: PreTrainedModel, structure: Structure) -> None:
    """Resize the linears of a freshly built dense model, in place; the weights still have to be loaded.

    Raises:
        ModelError: the structure belongs to another model.
    """
    layers = encoder_layers(model)
    _check(model, structure, layers)
    for layer, shape in zip(layers, structure.layers, strict=True):
        keep_units(layer, shape.heads, range(shape.neurons))


def kept_heads(layer: EncoderLayer) -> tuple[int, ...]:
    """Return the layer's heads as indices into the dense layer's."""
    return tuple(getattr(layer.attention, "kept_heads", range(layer.heads)))


def keep_units(layer: EncoderLayer, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep some heads and neurons of a layer and physically remove the rest, in place.

    Rows of query, key, value and ffn_in go, and the matching columns of attention_out and ffn_out; the
    biases of the two output projections stay. The attribute ``kept_heads`` of the attention module
    remembers which heads of the dense layer are left.

    Args:
        layer: the layer.
        heads: positions among the heads that the layer has now, ascending.
        neurons: positions among the neurons that the layer has now, ascending.
    """
    import torch

    original = kept_heads(layer)
    features = torch.tensor([h * layer.head_size + i for h in heads for i in range(layer.head_size)])
    for linear in (layer.query, layer.key, layer.value):
        _keep_rows(linear, features)
    _keep_columns(layer.attention_out, features)
    kept_neurons = torch.tensor(list(neurons))
    _keep_rows(layer.ffn_in, kept_neurons)
    _keep_columns(layer.ffn_out, kept_neurons)
    layer.attention.kept_heads = tuple(original[h] for h in heads)
    setattr(layer.attention, layer.family.head_count, len(heads))
    if layer.family.all_head_size:
        setattr(layer.attention, layer.family.all_head_size, len(heads) * layer.head_size)


def _keep_rows(linear: Linear, rows: torch.Tensor) -> None:
    import torch

    rows = rows.to(linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[rows].clone())
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[rows].clone())
    linear.out_features = len(rows)


def _keep_columns(linear: Linear, columns: torch.Tensor) -> None:
    import torch

    columns = columns.to(linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, columns].contiguous())
    linear.in_features = len(columns)


def _check(model: PreTrainedModel, structure: Structure, layers: Sequence[EncoderLayer]) -> None:
    size = dimensions(model.config.to_dict())
    fits = all(
        max(shape.heads) < size.heads and len(set(shape.heads)) == len(shape.heads) and shape.neurons <= size.neurons
        for shape in structure.layers
    )
    if structure.model_type != model.config.model_type or len(structure.layers) != len(layers) or not fits:
        raise ModelError(
            "structure.json does not belong to the config.json beside it.",
            value=f"{structure.model_type}, {len(structure.layers)} layers; config: "
            f"{model.config.model_type}, {len(layers)} layers, {size.heads} heads, {size.neurons} neurons",
            fix="Produce the model again; do not mix files of two models.",
        )
