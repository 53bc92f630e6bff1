"""An encoder with random weights that costs what the user's costs, for measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError
from compress.models.families import Dimensions, family_of
from compress.models.loading import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 1024
"""Rows of the probe's word embeddings: a look-up costs the same in a large table, whose bytes nobody needs."""
LAYERS = 6
"""Layers of the probe at most; the cost of further ones follows from these."""
LAYER_BYTES = 150_000_000
"""float32 bytes of the probe's layers at most: about thirty variants are open at once."""
_IRRELEVANT = ("_name_or_path", "dtype", "id2label", "label2id", "problem_type", "torch_dtype", "transformers_version")
"""Keys of config.json that change nothing about the shapes; the number of labels is kept by itself."""


def probe_config(size: Dimensions, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config.json decides the latency, with the probe's vocabulary and number of layers."""
    family = family_of(str(config.get("model_type")))
    per_layer = 4 * (4 * size.hidden * size.heads * size.head_size + 2 * size.hidden * size.neurons)
    layers = max(1, min(size.layers, LAYERS, LAYER_BYTES // per_layer))
    kept = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    labels = len(config.get("id2label") or (0, 1))
    probe = kept | {family.layers_key: layers, "num_labels": labels}
    if "vocab_size" in config:
        probe["vocab_size"] = max(VOCABULARY, int(config.get("pad_token_id") or 0) + 1)
    return probe


def build_probe(config: Mapping[str, Any]) -> PreTrainedModel:
    """Return a randomly initialised model of a ``probe_config``, in evaluation mode.

    Every parameter differs from every other, since an exporter stores equal ones once.

    Raises:
        ModelError: the config names no class of Transformers.
    """
    import torch
    import transformers

    name = str((config.get("architectures") or [""])[0])
    class_ = getattr(transformers, name, None)
    if not (isinstance(class_, type) and issubclass(class_, transformers.PreTrainedModel)):
        raise ModelError(
            "config.json names no model class that Transformers has.",
            value=name,
            fix="Save the model again with `save_pretrained`.",
        )
    settings = {key: value for key, value in config.items() if key != "model_type"}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = class_(transformers.AutoConfig.for_model(config["model_type"], **settings))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.02)
    return model.eval()
