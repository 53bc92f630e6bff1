"""The parts of an encoder by role, whatever its family calls them: sizes, layers, projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

from compress.errors import ModelError
from compress.models.families.catalogue import Family, family_of
from compress.models.remote_code import AUTO_MAP, code_of

if TYPE_CHECKING:
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel


LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a dense encoder, as its config.json gives them.

    Attributes:
        layers, hidden, heads, neurons: of the encoder; heads and neurons are those of one layer.
        positions: longest input in tokens; of an encoder of images, the tokens of every input.
        own_head_size: features of one head where config.json gives them; otherwise they are hidden / heads.
        images: whether the inputs are images.
    """

    layers: int
    hidden: int
    heads: int
    neurons: int
    positions: int
    own_head_size: int | None = None
    images: bool = False

    @property
    def head_size(self) -> int:
        return self.own_head_size or self.hidden // self.heads


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer by role: a view, so it follows the layer when units or whole sub-layers are removed.

    Asking for a projection of a sub-layer that was removed is an error; ``heads`` and ``neurons`` are 0 then.

    Attributes:
        module: the layer.
        head_size: features of one head.
        family: names of the parts.
    """

    module: Module
    head_size: int
    family: Family

    @property
    def attention(self) -> Module:
        """The module that carries the head count; a ``NoAttention`` where the attention was removed."""
        return cast("Module", find_module(self.module, self.family.attention))

    @property
    def query(self) -> Linear:
        """(hidden) -> (heads * head_size)."""
        return self._of_attention(f"{self.family.attention}.{self.family.query}")

    @property
    def key(self) -> Linear:
        """(hidden) -> (heads * head_size)."""
        return self._of_attention(f"{self.family.attention}.{self.family.key}")

    @property
    def value(self) -> Linear:
        """(hidden) -> (heads * head_size)."""
        return self._of_attention(f"{self.family.attention}.{self.family.value}")

    @property
    def attention_out(self) -> Linear:
        """(heads * head_size) -> (hidden)."""
        return self._of_attention(self.family.attention_out)

    @property
    def ffn_in(self) -> Linear:
        """(hidden) -> (neurons)."""
        return self._of_ffn(self.family.ffn_in)

    @property
    def ffn_out(self) -> Linear:
        """(neurons) -> (hidden)."""
        return self._of_ffn(self.family.ffn_out)

    @property
    def heads(self) -> int:
        return 0 if self._is_gone(self.family.attention_out) else int(self.query.out_features) // self.head_size

    @property
    def neurons(self) -> int:
        return 0 if self._is_gone(self.family.ffn_out) else int(self.ffn_in.out_features)

    def _is_gone(self, projection: str) -> bool:
        from compress.models.removed import BiasOnly

        return isinstance(find_module(self.module, projection), BiasOnly)

    def _of_attention(self, path: str) -> Linear:
        return self._find(path, gone=self._is_gone(self.family.attention_out))

    def _of_ffn(self, path: str) -> Linear:
        return self._find(path, gone=self._is_gone(self.family.ffn_out))

    def _find(self, path: str, gone: bool) -> Linear:
        if gone:
            raise ModelError(
                "The layer has no such projection: its sub-layer was removed.",
                value=path,
                fix="Look at `heads` and `neurons` first: they are 0 where the sub-layer is gone.",
            )
        return cast("Linear", find_module(self.module, path))


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Read the sizes of an encoder from its config.json.

    Raises:
        ModelError: the model_type is not supported, or a size is missing or is none; or the model has code of its own.
    """
    if AUTO_MAP in config:
        raise _parts_unknown(str(config.get("model_type")))
    family = family_of(str(config.get("model_type")))
    positions = ("image_size", "patch_size") if family.image_tokens else ("max_position_embeddings",)
    keys = (family.layers_key, family.hidden_key, family.heads_key, family.neurons_key)
    missing = [key for key in (*keys, *positions) if key not in config]
    if missing:
        raise ModelError(
            "config.json lacks a size of the encoder.",
            value=", ".join(missing),
            fix="Save the model again with `save_pretrained` of a current Transformers release.",
        )
    layers, hidden, heads, neurons = (whole(config, key) for key in keys)
    if family.image_tokens:
        tokens = patches(config) + family.image_tokens
    else:
        tokens = whole(config, "max_position_embeddings") - family.position_offset
    key = family.head_size_key
    own_head_size = whole(config, key) if key and config.get(key) is not None else None
    if own_head_size is None and hidden % heads:
        raise ModelError(
            "config.json divides its features among heads that they are no multiple of.",
            value=f"{family.hidden_key} {hidden}, {family.heads_key} {heads}",
            fix="Put the model's own config.json beside its weights.",
        )
    return Dimensions(layers, hidden, heads, neurons, tokens, own_head_size, images=bool(family.image_tokens))


def whole(config: Mapping[str, Any], key: str, value: Any = None) -> int:
    """Return a size of a config.json.

    Args:
        config: config.json as a dict.
        key: of the size.
        value: an item of the value of ``key``; None = the value itself.

    Raises:
        ModelError: it is no whole number above 0, or an absurd one.
    """
    value = config.get(key) if value is None else value
    if type(value) is not int or not 0 < value <= LARGEST_SIZE:
        raise ModelError(
            "A size in config.json is not a whole number above 0.",
            value=f"{key}: {str(config.get(key, 'missing'))[:80]}",
            fix="Put the model's own config.json beside its weights.",
        )
    return value


def patches(config: Mapping[str, Any]) -> int:
    """Return how many patches the config.json of an encoder of images cuts its input into."""
    height, width = pair(config, "image_size")
    patch_height, patch_width = pair(config, "patch_size")
    return (height // patch_height) * (width // patch_width)


def layer_list(model: PreTrainedModel) -> Any:
    """Return the ``ModuleList`` of encoder layers of a model, with or without a head."""
    return find_module(model.base_model, _family(model).layers)


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """Return the encoder layers of a model by role, first to last.

    Raises:
        ModelError: the model_type is not supported, or the model has code of its own.
    """
    family = _family(model)
    head_size = dimensions(model.config.to_dict()).head_size
    return [EncoderLayer(layer, head_size, family) for layer in layer_list(model)]


def _family(model: PreTrainedModel) -> Family:
    """Return the family of a model; what its author's own code calls "bert" need not have BERT's parts."""
    if code_of(model) is not None:
        raise _parts_unknown(str(model.config.model_type))
    return family_of(model.config.model_type)


def _parts_unknown(model_type: str) -> ModelError:
    return ModelError(
        "The parts of this model are its author's own, and nothing is known of them.",
        value=f"model_type {model_type!r}, with code of its own",
        fix="Leave out what asks for layers, heads or neurons; logits can be imitated, and its ONNX form quantized.",
    )


def find_module(root: Any, path: str) -> Any:
    """Follow a dotted attribute path."""
    return reduce(getattr, path.split("."), root)


def replace_module(root: Any, path: str, module: Module) -> None:
    """Put a module where a dotted attribute path points."""
    parent, _, name = path.rpartition(".")
    setattr(find_module(root, parent) if parent else root, name, module)


def pair(config: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Return height and width of a size that a config.json gives as one number or as two."""
    value = config.get(key)
    if isinstance(value, list | tuple) and len(value) == 2:
        return whole(config, key, value[0]), whole(config, key, value[1])
    return whole(config, key), whole(config, key)
