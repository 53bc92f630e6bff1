"""Parameters and multiply-accumulates: of a model in memory, and of one that only config.json describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.models.families import Dimensions, dimensions, pair, patches, whole
from compress.models.remote_code import code_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 128
"""Length of the input that every count of multiply-accumulates refers to, unless it says otherwise."""


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of weights, each stored tensor once."""
    return sum(int(parameter.numel()) for parameter in model.parameters())


def count_macs(model: PreTrainedModel, tokens: int = TOKENS) -> int:
    """Return the multiply-accumulates of one sequence or image: linears, convolutions and attention products.

    A linear of a text encoder counts ``tokens * in * out``; the pooler and the head see one token. The two
    attention products of a layer count ``2 * tokens^2 * heads * head_size``. Embedding look-ups,
    normalisation, softmax and activations count nothing.

    Args:
        model: the model, pruned or not.
        tokens: length of the sequence; an image has as many as its model cuts it into.
    """
    from torch.nn import Linear

    from compress.models.families import encoder_layers
    from compress.models.image_macs import count_image_macs

    if model.main_input_name == "pixel_values":
        return count_image_macs(model)
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            per_token = name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")
            total += (tokens if per_token else 1) * module.in_features * module.out_features
    return total + sum(2 * tokens**2 * layer.heads * layer.head_size for layer in encoder_layers(model))


def known_macs(model: PreTrainedModel) -> int | None:
    """Return ``count_macs``; None of a model with code of its own: who knows what it runs how often?"""
    return None if code_of(model) is not None else count_macs(model)


def counted_tokens(size: Dimensions) -> int:
    """Return the length of the input that counts refer to: 128 tokens of text, or the tokens of one image."""
    return size.positions if size.images else TOKENS


def head_macs(size: Dimensions, tokens: int | None = None) -> int:
    """Return what one attention head costs: its share of four projections and of two products.

    Args:
        size: of the encoder.
        tokens: length of the input; default: ``counted_tokens``.
    """
    tokens = tokens or counted_tokens(size)
    return tokens * 4 * size.hidden * size.head_size + 2 * tokens**2 * size.head_size


def neuron_macs(size: Dimensions, tokens: int | None = None) -> int:
    """Return what one feed-forward neuron costs: a row of ffn_in and a column of ffn_out."""
    return (tokens or counted_tokens(size)) * 2 * size.hidden


def head_parameters(size: Dimensions) -> int:
    return 4 * size.hidden * size.head_size + 3 * size.head_size


def neuron_parameters(size: Dimensions) -> int:
    return 2 * size.hidden + 1


def encoder_macs(size: Dimensions, tokens: int | None = None) -> int:
    """Return the multiply-accumulates of a dense encoder's layers, without pooler and head."""
    return size.layers * (size.heads * head_macs(size, tokens) + size.neurons * neuron_macs(size, tokens))


def layer_parameters(size: Dimensions) -> int:
    """Return the weights of one dense encoder layer: projections, biases, two layer norms."""
    units = size.heads * head_parameters(size) + size.neurons * neuron_parameters(size)
    return units + 2 * size.hidden + 4 * size.hidden


def planned_counts(config: Mapping[str, Any], labels: int | None = None) -> tuple[int, int]:
    """Return (parameters, multiply-accumulates) of the dense classifier that a config.json describes.

    Args:
        config: config.json as a dict.
        labels: width of the head; default: what the config says.
    """
    size = dimensions(config)
    names = config.get("id2label")
    labels = labels or (len(names) if isinstance(names, dict) else 0) or 2
    outside = _around_images(config, size, labels) if size.images else _around_texts(config, size, labels)
    return size.layers * layer_parameters(size) + outside[0], encoder_macs(size) + outside[1]


def _around_texts(config: Mapping[str, Any], size: Dimensions, labels: int) -> tuple[int, int]:
    """Return (parameters, multiply-accumulates) of embeddings, pooler and head."""
    hidden = size.hidden
    width = whole(config, "embedding_size") if config.get("embedding_size") else hidden
    projection = 0 if width == hidden else width * hidden
    rows = whole(config, "vocab_size") + whole(config, "max_position_embeddings") + _token_types(config)
    parameters = rows * width + 2 * width + (projection and projection + hidden)
    parameters += hidden * hidden + hidden + labels * hidden + labels
    return parameters, TOKENS * projection + hidden * hidden + labels * hidden


def _around_images(config: Mapping[str, Any], size: Dimensions, labels: int) -> tuple[int, int]:
    """Return (parameters, multiply-accumulates) of patch and position embeddings, the last norm, and head."""
    hidden, cut = size.hidden, patches(config)
    height, width = pair(config, "patch_size")
    kernel = whole(config, "num_channels") * height * width * hidden
    parameters = kernel + hidden + (size.positions - cut + size.positions) * hidden
    parameters += 2 * hidden + labels * hidden + labels
    return parameters, cut * kernel + labels * hidden


def _token_types(config: Mapping[str, Any]) -> int:
    if config["model_type"] == "distilbert" or not config.get("type_vocab_size"):
        return 0
    return whole(config, "type_vocab_size")
