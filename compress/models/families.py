"""Where each supported family of encoders keeps its layers, projections and sizes.

A family is data. Adding one is one entry in ``FAMILIES`` and one line in ``tests/unit/test_models_families.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Names of one family's parts: attribute paths and keys of ``config.json``.

    Attributes:
        model_types: values of ``model_type`` in config.json.
        layers: path of the list of encoder layers, from the base model.
        attention: path of the module that holds query, key and value, from a layer.
        query, key, value: linears, from the attention module.
        attention_out, ffn_in, ffn_out: linears, from a layer.
        head_count: attribute of the attention module that holds its number of heads.
        all_head_size: attribute that holds heads * head size; empty where there is none.
        layers_key, hidden_key, heads_key, neurons_key: keys of config.json.
        position_offset: rows of the position table that no token uses.
    """

    model_types: tuple[str, ...]
    layers: str = "encoder.layer"
    attention: str = "attention.self"
    query: str = "query"
    key: str = "key"
    value: str = "value"
    attention_out: str = "attention.output.dense"
    ffn_in: str = "intermediate.dense"
    ffn_out: str = "output.dense"
    head_count: str = "num_attention_heads"
    all_head_size: str = "all_head_size"
    layers_key: str = "num_hidden_layers"
    hidden_key: str = "hidden_size"
    heads_key: str = "num_attention_heads"
    neurons_key: str = "intermediate_size"
    position_offset: int = 0


FAMILIES: tuple[Family, ...] = (
    Family(model_types=("bert", "electra")),
    Family(model_types=("roberta", "xlm-roberta", "camembert"), position_offset=2),
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        attention="attention",
        query="q_lin",
        key="k_lin",
        value="v_lin",
        attention_out="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        head_count="n_heads",
        all_head_size="",
        layers_key="n_layers",
        hidden_key="dim",
        heads_key="n_heads",
        neurons_key="hidden_dim",
    ),
)


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a dense encoder, as its config.json gives them."""

    layers: int
    hidden: int
    heads: int
    neurons: int
    positions: int
    """Longest input in tokens."""

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer by role; widths are read from the weights, so they hold after pruning too.

    Attributes:
        attention: module that carries the head count.
        query, key, value: (hidden) -> (heads * head_size).
        attention_out: (heads * head_size) -> (hidden).
        ffn_in: (hidden) -> (neurons).
        ffn_out: (neurons) -> (hidden).
        head_size: features of one head.
        family: names of the attributes to keep in step.
    """

    attention: Module
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    ffn_in: Linear
    ffn_out: Linear
    head_size: int
    family: Family

    @property
    def heads(self) -> int:
        return int(self.query.out_features) // self.head_size

    @property
    def neurons(self) -> int:
        return int(self.ffn_in.out_features)


def family_of(model_type: str) -> Family:
    """Return the family that a ``model_type`` belongs to.

    Raises:
        ModelError: no family knows it; the message lists those that are supported.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = [name for family in FAMILIES for name in family.model_types]
    raise ModelError(
        "This kind of model is not supported.", value=f"model_type {model_type!r}", fix=did_you_mean(model_type, known)
    )


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Read the sizes of an encoder from its config.json.

    Raises:
        ModelError: the model_type is not supported, or a size is missing.
    """
    family = family_of(str(config.get("model_type")))
    keys = (family.layers_key, family.hidden_key, family.heads_key, family.neurons_key, "max_position_embeddings")
    missing = [key for key in keys if key not in config]
    if missing:
        raise ModelError(
            "config.json lacks a size of the encoder.",
            value=", ".join(missing),
            fix="Save the model again with `save_pretrained` of a current Transformers release.",
        )
    layers, hidden, heads, neurons, positions = (int(config[key]) for key in keys)
    return Dimensions(layers, hidden, heads, neurons, positions - family.position_offset)


def layer_list(model: PreTrainedModel) -> Any:
    """Return the ``ModuleList`` of encoder layers of a model, with or without a head."""
    return find_module(model.base_model, family_of(model.config.model_type).layers)


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """Return the encoder layers of a model by role, first to last.

    Raises:
        ModelError: the model_type is not supported.
    """
    family = family_of(model.config.model_type)
    head_size = dimensions(model.config.to_dict()).head_size
    out = []
    for layer in layer_list(model):
        attention = find_module(layer, family.attention)
        out.append(
            EncoderLayer(
                attention=attention,
                query=find_module(attention, family.query),
                key=find_module(attention, family.key),
                value=find_module(attention, family.value),
                attention_out=find_module(layer, family.attention_out),
                ffn_in=find_module(layer, family.ffn_in),
                ffn_out=find_module(layer, family.ffn_out),
                head_size=head_size,
                family=family,
            )
        )
    return out


def find_module(root: Any, path: str) -> Any:
    """Follow a dotted attribute path."""
    return reduce(getattr, path.split("."), root)
