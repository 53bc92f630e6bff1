"""What stands where a whole sub-layer stood: the bias of its output projection, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.models.families import replace_module

if TYPE_CHECKING:
    from compress.models.families import EncoderLayer


class BiasOnly(nn.Module):  # type: ignore[misc]
    """The output projection of a sub-layer that has no units left: it returns its bias, whatever comes in.

    The bias keeps its name in the state dict and goes on learning.

    Args:
        linear: the projection that was there; its bias becomes this module's.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the bias: (hidden) in evaluation mode, which the residual broadcasts for free.

        In training it is (batch, tokens, hidden), so that dropout treats every token by itself.
        """
        return self.bias.expand(*states.shape[:-1], -1) if self.training else self.bias


class NoAttention(nn.Module):  # type: ignore[misc]
    """Stands for an attention module whose heads are gone.

    Args:
        projection: path of the output projection inside the attention module; None where it lies outside.
        bias: what is left of that projection.
    """

    kept_heads: tuple[int, ...] = ()

    def __init__(self, projection: str | None, bias: BiasOnly) -> None:
        super().__init__()
        self._projection = projection
        if projection is not None:
            self.add_module(projection, bias)

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
        """Return (output, attention weights) as attention modules do; there are no weights."""
        if self._projection is None:
            return hidden_states, None
        return self.get_submodule(self._projection)(hidden_states), None


def remove_attention(layer: EncoderLayer) -> None:
    """Remove the attention of a layer in place; the bias of its output projection stays."""
    family = layer.family
    bias = BiasOnly(layer.attention_out)
    inside = family.attention_out.startswith(f"{family.attention}.")
    stand_in = NoAttention(family.attention_out.removeprefix(f"{family.attention}.") if inside else None, bias)
    stand_in.train(layer.attention.training)
    if not inside:
        replace_module(layer.module, family.attention_out, bias.train(layer.attention_out.training))
    replace_module(layer.module, family.attention, stand_in)


def remove_ffn(layer: EncoderLayer) -> None:
    """Remove the feed-forward of a layer in place; the bias of its output projection stays."""
    family = layer.family
    replace_module(layer.module, family.ffn_out, BiasOnly(layer.ffn_out).train(layer.ffn_out.training))
    for path in (family.ffn_in, family.ffn_activation):
        replace_module(layer.module, path, nn.Identity())
