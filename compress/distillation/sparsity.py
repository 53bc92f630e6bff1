"""Zeros of a 2:4 sparse model stay zeros while it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from compress.models.sparsity import mask24, require_sparse, sparse_linears


@contextmanager
def zeros_kept(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Keep the linear layers that are 2:4 as they are inside this context; a dense model is left alone.

    A zero gets no gradient. So it adds nothing to the norm by which gradients are clipped, its moments stay 0, and
    AdamW's step from there, ``w - lr * (decay * w + m / (sqrt(v) + eps))``, is 0 exactly. What counts as a zero follows
    from the weights at the beginning, so a resumed run has the same mask.

    Args:
        model: on the device on which it learns, before its first step and before a checkpoint is read.

    Yields:
        The paths of the layers that are 2:4.

    Raises:
        RunError: one of them is not, at the end.
    """
    paths = sparse_linears(model)
    with ExitStack() as hooks:
        for path in paths:
            weight = model.get_submodule(path).weight
            if weight.requires_grad:
                mask = torch.from_numpy(mask24(np.abs(weight.detach().cpu().numpy())))
                hooks.callback(weight.register_hook(partial(torch.mul, mask.to(weight))).remove)
        yield paths
    require_sparse(model, paths)
