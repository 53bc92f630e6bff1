"""Where each supported family of encoders keeps its layers, projections and sizes; and which ones are refused, and why.

A family is data. Adding one is an entry in ``FAMILIES`` and one in ``tests/unit/test_models_families.py``, which
holds the invariants that every family keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Family:
    """Names of one family's parts: attribute paths and keys of ``config.json``.

    Attributes:
        model_types: values of ``model_type`` in config.json.
        layers: path of the list of encoder layers, from the base model.
        attention: path of the module that holds query, key and value, from a layer. It is called with the hidden
            states first, and returns (output, weights).
        query, key, value: linears, from the attention module.
        attention_out, ffn_in, ffn_out: linears, from a layer.
        ffn_activation: module between ffn_in and ffn_out, from a layer.
        attention_norm, ffn_norm: the LayerNorm that reads the residual stream after the sub-layer, from a layer;
            empty where the stream leaves the layer as its output.
        head_count: attribute of the attention module that holds its number of heads.
        all_head_size: attribute that holds heads * head size; empty where there is none.
        layers_key, hidden_key, heads_key, neurons_key: keys of config.json.
        head_size_key: key of config.json that frees the head size from hidden / heads; empty where there is none.
        position_offset: rows of the position table that no token uses.
        image_tokens: tokens beside the patches of an image (class, distillation); 0 for an encoder of text.
    """

    model_types: tuple[str, ...]
    layers: str = "encoder.layer"
    attention: str = "attention.self"
    query: str = "query"
    key: str = "key"
    value: str = "value"
    attention_out: str = "attention.output.dense"
    ffn_in: str = "intermediate.dense"
    ffn_activation: str = "intermediate.intermediate_act_fn"
    ffn_out: str = "output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_norm: str = "output.LayerNorm"
    head_count: str = "num_attention_heads"
    all_head_size: str = "all_head_size"
    layers_key: str = "num_hidden_layers"
    hidden_key: str = "hidden_size"
    heads_key: str = "num_attention_heads"
    neurons_key: str = "intermediate_size"
    head_size_key: str = ""
    position_offset: int = 0
    image_tokens: int = 0


_VIT = Family(
    model_types=("vit",),
    layers="layers",
    attention="attention",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    attention_out="attention.o_proj",
    ffn_in="mlp.fc1",
    ffn_activation="mlp.activation_fn",
    ffn_out="mlp.fc2",
    attention_norm="layernorm_after",
    ffn_norm="",
    all_head_size="",
    head_size_key="head_dim",
    image_tokens=1,
)

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
        ffn_activation="ffn.activation",
        ffn_out="ffn.lin2",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        head_count="n_heads",
        all_head_size="",
        layers_key="n_layers",
        hidden_key="dim",
        heads_key="n_heads",
        neurons_key="hidden_dim",
    ),
    _VIT,
    replace(_VIT, model_types=("deit",), image_tokens=2),
)


@dataclass(frozen=True)
class Refusal:
    """Why some kinds of model are not supported, and what to do instead."""

    model_types: tuple[str, ...]
    reason: str
    fix: str


_ENCODER = "Fine-tune an encoder for the task: BERT, RoBERTa, XLM-R, ELECTRA or DistilBERT for text, ViT for images."

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        ("albert",),
        "ALBERT is not supported: its layers share one set of weights, so what goes from one goes from all.",
        "Fine-tune a BERT, RoBERTa or ELECTRA of the size that you need on the same data.",
    ),
    Refusal(
        ("modernbert",),
        "ModernBERT is not supported: it fuses query, key and value into one projection and gates its feed-forward.",
        "Fine-tune a BERT, RoBERTa or ELECTRA on the same data.",
    ),
    Refusal(
        ("deberta", "deberta-v2"),
        "DeBERTa is not supported: its heads also own projections of relative positions, tied across layers.",
        "Fine-tune a BERT, RoBERTa or ELECTRA on the same data; for DeBERTa-v2 and v3, ELECTRA comes closest.",
    ),
    Refusal(
        (
            "gpt2",
            "gpt_neox",
            "opt",
            "bloom",
            "llama",
            "mistral",
            "phi3",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "smollm3",
        ),
        "This is a decoder, which generates text token by token; only encoders are supported.",
        _ENCODER,
    ),
    Refusal(
        ("t5", "mt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "whisper"),
        "This model pairs an encoder with a decoder; only encoders are supported.",
        _ENCODER,
    ),
)


def family_of(model_type: str) -> Family:
    """Return the family that a ``model_type`` belongs to.

    Raises:
        ModelError: it is refused, and the message says why; or nothing is known about it, and the message lists
            what is supported.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    for refusal in REFUSALS:
        if model_type in refusal.model_types:
            raise ModelError(refusal.reason, value=f"model_type {model_type!r}", fix=refusal.fix)
    known = [name for family in FAMILIES for name in family.model_types]
    raise ModelError(
        "This kind of model is not supported.", value=f"model_type {model_type!r}", fix=did_you_mean(model_type, known)
    )


def is_convolutional(config: Mapping[str, Any]) -> bool:
    """Say whether a config.json describes a model of images that is no encoder of heads and neurons."""
    families = {kind for family in FAMILIES for kind in family.model_types}
    return "num_channels" in config and str(config.get("model_type")) not in families
