"""Fake quantization in torch: float values that take only the levels of 8-bit integers, and gradients past rounding."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from compress.quantization.ranges import LEVELS, Range

TABLE_BITS = 8
PACE = 0.04
"""What a step of training is to a range: its logarithm moves by ``1 / PACE`` times as much as a weight does.

LSQ asks that a step size and the weights change by like shares (arXiv:1902.08153, section 2.2). Adam moves every
parameter by about the learning rate, whatever its gradient, and 0.04 is a usual size of an encoder's weights.
"""


class StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """Return the second argument; its gradient goes to the first, unchanged (Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class LearnedStep(torch.autograd.Function):  # type: ignore[misc]
    """``clip(round(v / s), low, high) * s`` with the gradients of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3-5).

    With respect to v: 1 inside the range, 0 outside. With respect to s: ``round(v / s) - v / s`` inside, ``low``
    or ``high`` outside, summed, times ``1 / sqrt(features * high)``.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
        ctx.save_for_backward(values, scale)
        ctx.ends = low, high
        return torch.clamp(torch.round(values / scale), low, high) * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        values, scale = ctx.saved_tensors
        low, high = ctx.ends
        share = values / scale
        inside = (share > low) & (share < high)
        slope = torch.where(inside, torch.round(share) - share, torch.clamp(share, low, high))
        balance = 1.0 / math.sqrt(values.shape[-1] * max(high, 1))
        return gradient * inside, (gradient * slope).sum() * balance, None, None


class LearnedRange(nn.Module):  # type: ignore[misc]
    """A tensor's 8-bit range: its zero point stays, its scale is learned.

    ``scale = first * exp(growth / PACE)``, so that it stays positive and every tensor's changes by like shares.

    Args:
        initial: what calibration chose.
        activation: ``uint8`` with a zero point, or symmetric ``int8``.
    """

    def __init__(self, initial: Range, activation: Literal["uint8", "int8"] = "uint8") -> None:
        super().__init__()
        self.activation = activation
        if activation == "uint8":
            self.first, self.low = initial.scale, -initial.zero_point
        else:
            self.first, self.low = initial.symmetric_scale, -LEVELS // 2
        self.high = self.low + LEVELS - 1
        self.growth = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> torch.Tensor:
        """Scalar float32: distance of two neighbouring levels."""
        return self.first * torch.exp(self.growth / PACE)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize a tensor of any shape, features last."""
        return LearnedStep.apply(values, self.scale, self.low, self.high)

    def read(self) -> Range:
        """Return the range whose ``scale`` and ``zero_point`` (or ``symmetric_scale``) are these."""
        scale = float(self.scale.detach())
        return Range((self.low if self.activation == "uint8" else -self.high) * scale, self.high * scale)


def fake_weight(weight: torch.Tensor, bits: int, *, per_channel: bool = True) -> torch.Tensor:
    """Quantize and dequantize the weight of a linear layer as ``quantize_weight`` does, its gradient unchanged.

    No weight is clipped: the scale is the largest of them over the largest integer, anew in every step.

    Args:
        weight: (N, K) float32.
        bits: of the integers, the sign included.
        per_channel: one scale for each of the N outputs.
    """
    return _symmetric(weight, weight, 1 if per_channel else None, bits)


class FakeLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer on quantized inputs and weights; it holds the very parameters of the layer that it stands for.

    Args:
        linear: the layer.
        input_range: layers that read one tensor share it.
        owns: whether this layer's state holds the range: of those that share it, one does.
        bits: of the weight.
        per_channel: one scale for each output.
    """

    def __init__(
        self, linear: nn.Linear, input_range: LearnedRange, *, owns: bool, bits: int, per_channel: bool
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._ranges = [input_range]  # a list hides it from the state, which would hold it once for every reader
        self.learned = input_range if owns else None
        self.bits, self.per_channel = bits, per_channel

    @property
    def input_range(self) -> LearnedRange:
        """The range of the input, which other layers may share."""
        return self._ranges[0]

    def rounded(self) -> torch.Tensor:
        """Return the weight as it multiplies: (N, K) float32 on the levels of its integers."""
        return fake_weight(self.weight, self.bits, per_channel=self.per_channel)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.input_range(values), self.rounded(), self.bias)

    def plain(self) -> nn.Linear:
        """Return the layer without quantization, with the same parameters."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


class FakeEmbedding(nn.Embedding):  # type: ignore[misc]
    """A table with one 8-bit scale for each column; it holds the very parameter of the one that it stands for."""

    def __init__(self, embedding: nn.Embedding) -> None:
        sizes = embedding.num_embeddings, embedding.embedding_dim
        super().__init__(*sizes, padding_idx=embedding.padding_idx, device="meta")
        self.weight = embedding.weight

    def rounded(self) -> torch.Tensor:
        """Return the whole table on the levels of its integers: (rows, columns) float32."""
        return _symmetric(self.weight, self.weight, 0, TABLE_BITS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = functional.embedding(ids, self.weight, self.padding_idx)
        return _symmetric(rows, self.weight, 0, TABLE_BITS)

    def plain(self) -> nn.Embedding:
        """Return the table without quantization, with the same parameter."""
        sizes = self.num_embeddings, self.embedding_dim
        embedding = nn.Embedding(*sizes, padding_idx=self.padding_idx, device="meta")
        embedding.weight = self.weight
        return embedding


def _symmetric(values: torch.Tensor, whole: torch.Tensor, axis: int | None, bits: int) -> torch.Tensor:
    """Round values to the levels of a weight: one scale for all, or for each slice along what is not ``axis``."""
    largest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        peak = whole.abs().max() if axis is None else whole.abs().amax(dim=axis, keepdim=True)
        scale = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
        rounded = torch.clamp(torch.round(values / scale), -largest, largest) * scale
    return StraightThrough.apply(values, rounded)
