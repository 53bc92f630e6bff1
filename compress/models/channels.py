"""Channel widths of a pruned convolutional network: read off a model, and put into a dense one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

Channels = Mapping[str, tuple[int, int]]
"""Module path -> (output channels, input channels) of a convolution, a linear or a BatchNorm."""


def channels_of(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return the widths that config.json does not say: of every module that is narrower than in the dense model."""
    import torch

    with torch.device("meta"):
        dense = _widths(type(model)(copy.deepcopy(model.config)))
    return {name: width for name, width in _widths(model).items() if width != dense[name]}


def apply_channels(model: PreTrainedModel, channels: Channels) -> None:
    """Resize modules of a freshly built dense model, in place; the weights still have to be loaded.

    Raises:
        ModelError: a module does not exist, or is narrower in the dense model.
    """
    dense = _widths(model)
    for name, (out, in_) in channels.items():
        if name not in dense or out > dense[name][0] or in_ > dense[name][1]:
            raise ModelError(
                "structure.json does not belong to the config.json beside it.",
                value=f"{name}: {out} x {in_} channels; config: {dense.get(name, 'no such module')}",
                fix="Produce the model again; do not mix files of two models.",
            )
        _resize(model.get_submodule(name), out, in_)


def _widths(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    from torch.nn import BatchNorm2d, Conv2d, Linear

    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv2d):
            widths[name] = (module.out_channels, module.in_channels)
        elif isinstance(module, Linear):
            widths[name] = (module.out_features, module.in_features)
        elif isinstance(module, BatchNorm2d):
            widths[name] = (module.num_features, module.num_features)
    return widths


def _resize(module: Module, out: int, in_: int) -> None:
    from torch.nn import BatchNorm2d, Conv2d

    if isinstance(module, BatchNorm2d):
        module.num_features = out
        shape: tuple[int, ...] = (out,)
    elif isinstance(module, Conv2d):
        module.groups = out if module.groups == module.in_channels == module.out_channels else module.groups
        module.out_channels, module.in_channels = out, in_
        shape = (out, in_ // module.groups, *module.kernel_size)
    else:
        module.out_features, module.in_features = out, in_
        shape = (out, in_)
    _replace(module, "weight", shape)
    for name in ("bias", "running_mean", "running_var"):
        _replace(module, name, (out,))


def _replace(module: Module, name: str, shape: tuple[int, ...]) -> None:
    import torch

    tensor: Any = getattr(module, name, None)
    if tensor is None:
        return
    fresh = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    setattr(module, name, torch.nn.Parameter(fresh) if isinstance(tensor, torch.nn.Parameter) else fresh)
