"""Multiply-accumulates of an image model, counted where they happen: hooks on one empty image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel


def empty_images(model: PreTrainedModel, count: int = 1) -> torch.Tensor:
    """Return zeros of the size that the model's config names: (count, channels, height, width) float32.

    Raises:
        ModelError: the config has no ``image_size``.
    """
    import torch

    size = getattr(model.config, "image_size", None)
    if size is None:
        raise ModelError(
            "config.json does not say how large the images are.",
            value=f"model_type {model.config.model_type!r}",
            fix="Set `image_size` in config.json to the height and width that the preprocessor gives.",
        )
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(count, model.config.num_channels, height, width, device=model.device)


def positions(model: PreTrainedModel) -> dict[str, int]:
    """Return, for each convolution and linear by module path, how often its kernel is applied to one image."""
    import torch
    from torch.nn import Conv2d, Linear

    seen: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: Module, inputs: Any, output: torch.Tensor) -> None:
            if isinstance(module, Conv2d):
                seen[name] = seen.get(name, 0) + output.shape[-2] * output.shape[-1]
            else:
                seen[name] = seen.get(name, 0) + math.prod(output.shape[1:-1])

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, Conv2d | Linear)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixel_values=empty_images(model))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return seen


def count_image_macs(model: PreTrainedModel) -> int:
    """Return the multiply-accumulates of one image.

    A convolution counts ``out_height * out_width * out * in / groups * kernel_height * kernel_width``, a linear
    ``tokens * in * out``, the attention of a transformer ``2 * tokens^2 * heads * head_size`` a layer.
    Normalisation, pooling, softmax and activations count nothing.
    """
    sizes = {name: int(parameter.numel()) for name, parameter in model.named_parameters()}
    total = sum(times * sizes[f"{name}.weight"] for name, times in positions(model).items())
    return total + _attention_macs(model)


def _attention_macs(model: PreTrainedModel) -> int:
    from compress.models.families import dimensions, encoder_layers, is_convolutional

    if is_convolutional(model.config.to_dict()):
        return 0
    tokens = dimensions(model.config.to_dict()).positions
    return sum(int(2 * tokens**2 * layer.heads * layer.head_size) for layer in encoder_layers(model))
