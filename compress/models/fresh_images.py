"""New small image classifiers, for tasks without pretrained weights: a vision transformer and a residual network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError
from compress.models.loading import save_torch
from compress.tasks.base import Task
from compress.tasks.preprocessing import PREPROCESSOR

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MEAN = _STD = 0.5
"""Normalise levels to -1 to 1."""
_BILINEAR = 2


def fresh_vit(
    task: Task,
    out: Path,
    *,
    image_size: int,
    num_channels: int,
    patch_size: int,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    seed: int,
) -> None:
    """Write a randomly initialised ViTForImageClassification (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Args:
        task: gives the head.
        out: an empty folder.
        image_size: height and width of the images, pixels; a multiple of ``patch_size``.
        num_channels: 1 (grey) or 3.
        patch_size: height and width of a patch, pixels.
        layers: encoder layers.
        hidden: width of the encoder; a multiple of ``heads``.
        heads: attention heads per layer.
        intermediate: feed-forward neurons per layer.
        seed: of the initial weights.

    Raises:
        UsageError: ``hidden`` is not a multiple of ``heads``, or ``image_size`` not one of ``patch_size``.
    """
    from transformers import ViTConfig

    if hidden % heads or image_size % patch_size:
        raise UsageError(
            "The sizes of a fresh vision transformer do not divide.",
            value=f"hidden {hidden}, heads {heads}; image_size {image_size}, patch_size {patch_size}",
            fix="Take hidden a multiple of heads, and image_size a multiple of patch_size.",
        )
    config = ViTConfig(
        image_size=image_size,
        num_channels=num_channels,
        patch_size=patch_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        **task.config_options(),
    )
    _write(config, seed, out)


def fresh_resnet(
    task: Task,
    out: Path,
    *,
    image_size: int,
    num_channels: int,
    stem: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    seed: int,
) -> None:
    """Write a randomly initialised ResNetForImageClassification of basic blocks (He et al. 2016, arXiv:1512.03385).

    Args:
        task: gives the head.
        out: an empty folder.
        image_size: height and width of the images, pixels; the stem and each stage after the first halve it.
        num_channels: 1 (grey) or 3.
        stem: channels of the first convolution.
        widths: channels of each stage.
        depths: blocks of each stage.
        seed: of the initial weights.

    Raises:
        UsageError: ``widths`` and ``depths`` do not have the same length.
    """
    from transformers import ResNetConfig

    if len(widths) != len(depths):
        raise UsageError(
            "A fresh residual network needs a width and a depth for each stage.",
            value=f"widths {list(widths)}, depths {list(depths)}",
            fix="Give two lists of the same length.",
        )
    config = ResNetConfig(
        num_channels=num_channels,
        embedding_size=stem,
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type="basic",
        image_size=image_size,
        **task.config_options(),
    )
    _write(config, seed, out)


def preprocessor(image_size: int, num_channels: int) -> Mapping[str, Any]:
    """Return the ``preprocessor_config.json`` of a fresh model: resize, and levels from -1 to 1."""
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [_MEAN] * num_channels,
        "image_processor_type": "ViTImageProcessor",
        "image_std": [_STD] * num_channels,
        "resample": _BILINEAR,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
    }


def _write(config: PreTrainedConfig, seed: int, out: Path) -> None:
    import torch
    from transformers import AutoModelForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageClassification.from_config(config)
    settings = preprocessor(config.image_size, config.num_channels)
    (out / PREPROCESSOR).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_torch(model, out, tokenizer_from=out)
