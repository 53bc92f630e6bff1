"""``structure.json``: the shapes of a model that config.json does not say, and how they are put into a dense one.

``config.json`` of a width-pruned model still describes the dense one, because Transformers cannot express
another number of heads or neurons in each layer, factored matrices, or single narrower convolutions.
``structure.json`` beside it says what is left: build the model that config.json describes, resize it with
``apply_structure``, then load the weights strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from compress.errors import ModelError, UsageError
from compress.models.channels import apply_channels, channels_of
from compress.models.families import EncoderLayer, dimensions, encoder_layers, is_convolutional
from compress.reading import Unreadable, read_json

if TYPE_CHECKING:
    import torch
    from torch.nn import Linear
    from transformers import PreTrainedModel

STRUCTURE = "structure.json"
Rank = Annotated[int, Field(gt=0, le=2**16)]
Sizes = Annotated[Mapping[str, Rank], AfterValidator(lambda sizes: dict(sorted(sizes.items())))]
"""Module path -> size, in the order of the paths."""
ChannelSizes = Annotated[
    Mapping[str, tuple[PositiveInt, PositiveInt]], AfterValidator(lambda sizes: dict(sorted(sizes.items())))
]
"""Module path -> (output, input) channels, in the order of the paths."""


class LayerShape(BaseModel):
    """What one encoder layer keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[int, ...] = Field(
        description="kept heads, as indices into the dense layer's heads; empty: its attention is gone"
    )
    neurons: int = Field(ge=0, description="kept feed-forward neurons; 0: its feed-forward is gone")


class Structure(BaseModel):
    """The shapes that config.json does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2] = Field(2, description="1, which is read as 2, had only encoder layers")
    model_type: str
    layers: tuple[LayerShape, ...] = Field((), description="every encoder layer, first to last; empty: no encoder")
    ranks: Sizes = Field({}, description="module path -> rank of a factorized embedding or linear")
    channels: ChannelSizes = Field({}, description="module path -> [output, input] channels of a convolutional net")

    @field_validator("schema_version")
    @classmethod
    def _current(cls, version: int) -> int:
        return 2

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
            return cls.model_validate(read_json(source))
        except (Unreadable, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ModelError(
                "structure.json cannot be read.",
                value=f"{folder.name}: {why}",
                fix="Produce the model again; this version reads schemas 1 and 2.",
            ) from error


def structure_of(model: PreTrainedModel) -> Structure:
    """Return the shapes that a model has now."""
    from compress.models.factors import ranks_of

    if is_convolutional(model.config.to_dict()):
        return Structure(model_type=model.config.model_type, channels=channels_of(model))
    layers = [LayerShape(heads=kept_heads(layer), neurons=layer.neurons) for layer in encoder_layers(model)]
    return Structure(model_type=model.config.model_type, layers=tuple(layers), ranks=ranks_of(model))


def is_dense(model: PreTrainedModel) -> bool:
    """Say whether config.json alone describes the model's shapes."""
    structure = structure_of(model)
    if structure.ranks or structure.channels:
        return False
    widths = {(len(shape.heads), shape.neurons) for shape in structure.layers}
    if not widths:
        return True
    size = dimensions(model.config.to_dict())
    return widths == {(size.heads, size.neurons)}


def apply_structure(model: PreTrainedModel, structure: Structure) -> None:
    """Resize the modules of a freshly built dense model, in place; the weights still have to be loaded.

    Raises:
        ModelError: the structure belongs to another model.
    """
    from compress.models.factors import apply_ranks

    if is_convolutional(model.config.to_dict()):
        apply_channels(model, structure.channels)
        return
    layers = encoder_layers(model)
    _check(model, structure, layers)
    for layer, shape in zip(layers, structure.layers, strict=True):
        keep_units(layer, shape.heads, range(shape.neurons))
    apply_ranks(model, structure.ranks)


def kept_heads(layer: EncoderLayer) -> tuple[int, ...]:
    """Return the layer's heads as indices into the dense layer's."""
    return tuple(getattr(layer.attention, "kept_heads", range(layer.heads)))


def keep_units(layer: EncoderLayer, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep some heads and neurons of a layer and physically remove the rest, in place.

    Rows of query, key, value and ffn_in go, and the matching columns of attention_out and ffn_out; the
    biases of the two output projections stay. Without a head, or without a neuron, the whole sub-layer goes:
    what stays is that bias, under its name, and the residual connection with its LayerNorm. The attribute
    ``kept_heads`` of the attention module remembers which heads of the dense layer are left.

    Args:
        layer: the layer, pruned before or not.
        heads: positions among the heads that the layer has now, ascending; empty: the attention goes.
        neurons: positions among the neurons that the layer has now, ascending; empty: the feed-forward goes.

    Raises:
        UsageError: a position does not exist, or they are not ascending.
    """
    from compress.models.removed import remove_attention, remove_ffn

    _check_positions("head", heads, layer.heads)
    _check_positions("neuron", neurons, layer.neurons)
    if layer.heads and not heads:
        remove_attention(layer)
    elif heads:
        _keep_heads(layer, heads)
    if layer.neurons and not neurons:
        remove_ffn(layer)
    elif neurons:
        _keep_neurons(layer, neurons)


def _keep_heads(layer: EncoderLayer, heads: Sequence[int]) -> None:
    import torch

    original = kept_heads(layer)
    features = torch.tensor([h * layer.head_size + i for h in heads for i in range(layer.head_size)])
    for linear in (layer.query, layer.key, layer.value):
        _keep_rows(linear, features)
    _keep_columns(layer.attention_out, features)
    layer.attention.kept_heads = tuple(original[h] for h in heads)
    setattr(layer.attention, layer.family.head_count, len(heads))
    if layer.family.all_head_size:
        setattr(layer.attention, layer.family.all_head_size, len(heads) * layer.head_size)


def _keep_neurons(layer: EncoderLayer, neurons: Sequence[int]) -> None:
    import torch

    kept = torch.tensor(list(neurons))
    _keep_rows(layer.ffn_in, kept)
    _keep_columns(layer.ffn_out, kept)


def _keep_rows(linear: Linear, rows: torch.Tensor) -> None:
    import torch

    linear = getattr(linear, "up", linear)
    rows = rows.to(linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[rows].clone())
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[rows].clone())
    linear.out_features = len(rows)


def _keep_columns(linear: Linear, columns: torch.Tensor) -> None:
    import torch

    linear = getattr(linear, "down", linear)
    columns = columns.to(linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, columns].contiguous())
    linear.in_features = len(columns)


def _check_positions(unit: str, positions: Sequence[int], present: int) -> None:
    wanted = list(positions)
    if wanted != sorted(set(wanted)) or any(not 0 <= position < present for position in wanted):
        raise UsageError(
            f"These {unit}s cannot be kept.",
            value=f"{wanted[:8]} of {present} present",
            fix=f"Give positions among the {unit}s that the layer has now, ascending, each once.",
        )


def _check(model: PreTrainedModel, structure: Structure, layers: Sequence[EncoderLayer]) -> None:
    size = dimensions(model.config.to_dict())
    fits = all(
        len(set(shape.heads)) == len(shape.heads)
        and all(0 <= head < size.heads for head in shape.heads)
        and shape.neurons <= size.neurons
        for shape in structure.layers
    )
    if structure.model_type != model.config.model_type or len(structure.layers) != len(layers) or not fits:
        raise ModelError(
            "structure.json does not belong to the config.json beside it.",
            value=f"{structure.model_type}, {len(structure.layers)} layers; config: "
            f"{model.config.model_type}, {len(layers)} layers, {size.heads} heads, {size.neurons} neurons",
            fix="Produce the model again; do not mix files of two models.",
        )
