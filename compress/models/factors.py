"""Embeddings and linears as products of two thin matrices, and how they are put into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from compress.errors import ModelError
from compress.models.families import replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FactoredEmbedding(nn.Module):  # type: ignore[misc]
    """A table (tokens, rank) and a projection to the width of the model: rows of ``table @ project.weight.T``.

    Args:
        tokens: rows of the table.
        width: features that come out.
        rank: features of the table, below ``width`` to be smaller.
        padding: row that gets no gradient, as in ``nn.Embedding``.
    """

    def __init__(self, tokens: int, width: int, rank: int, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, rank, padding_idx=padding)
        self.project = nn.Linear(rank, width, bias=False)

    @property
    def rank(self) -> int:
        return int(self.table.embedding_dim)

    @property
    def num_embeddings(self) -> int:
        return int(self.table.num_embeddings)

    @property
    def embedding_dim(self) -> int:
        return int(self.project.out_features)

    @property
    def padding_idx(self) -> int | None:
        return None if self.table.padding_idx is None else int(self.table.padding_idx)

    @property
    def weight(self) -> torch.Tensor:
        """The product, (tokens, width): what a plain embedding would hold."""
        return self.table.weight @ self.project.weight.T

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.project(self.table(ids))


class FactoredLinear(nn.Module):  # type: ignore[misc]
    """Two linears, (features in) -> (rank) -> (features out), the second with the bias.

    Args:
        in_features: width that goes in.
        out_features: width that comes out.
        rank: width between them, below in * out / (in + out) to be smaller.
        bias: whether there is one.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    @property
    def rank(self) -> int:
        return int(self.down.out_features)

    @property
    def in_features(self) -> int:
        return int(self.down.in_features)

    @property
    def out_features(self) -> int:
        return int(self.up.out_features)

    @property
    def weight(self) -> torch.Tensor:
        """The product, (features out, features in): what a plain linear would hold."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.up.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(states))


def ranks_of(model: PreTrainedModel) -> dict[str, int]:
    """Return module path -> rank of everything that is factored, for ``Structure.ranks``."""
    modules = model.named_modules()
    return {path: module.rank for path, module in modules if isinstance(module, FactoredEmbedding | FactoredLinear)}


def apply_ranks(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Put untrained factors in the place of plain modules, in place; the weights still have to be loaded.

    Args:
        model: its embeddings and linears have their widths already.
        ranks: module path -> rank.

    Raises:
        ModelError: a path leads to nothing that can be factored.
    """
    modules = dict(model.named_modules())
    for path, rank in ranks.items():
        module = modules.get(path)
        if isinstance(module, nn.Embedding):
            table = FactoredEmbedding(module.num_embeddings, module.embedding_dim, rank, module.padding_idx)
            replace_module(model, path, table)
        elif isinstance(module, nn.Linear):
            bias = module.bias is not None
            linear = FactoredLinear(module.in_features, module.out_features, rank, bias=bias)
            replace_module(model, path, linear)
        else:
            raise ModelError(
                "structure.json names a factored module that the model does not have.",
                value=path,
                fix="Produce the model again; do not mix files of two models.",
            )
