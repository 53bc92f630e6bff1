"""How far a candidate is from the model that it is cut from: scored on real inputs, without building it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from compress.data.encoded import Encoded
from compress.models.families import EncoderLayer, encoder_layers, layer_list
from compress.pruning.ladder import Widths
from compress.tasks.base import Task

if TYPE_CHECKING:
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

    from compress.pruning.ranking import Ranking

Weights = dict[str, torch.Tensor]
"""Name of a parameter of the model -> the tensor that takes its place."""

OUTPUT_BYTES = 2**30
"""Most memory for the outputs of the model's own layers; beyond it those of the last layers are not kept."""
WEIGHT_BYTES = 2**28
"""Most memory for the weights of sub-layers at the widths that were used last."""


class CandidateScorer:
    """Scores widths of a model by how far the pruned model's outputs are from its own.

    A candidate is the model with smaller weights in some sub-layers: the kept rows of query, key, value and
    ffn_in, the compensated columns of the output projections. One call of the model's ``forward`` is given
    them in place of its own, so a score costs what the pruned model's forward costs, and the model never
    changes. Layers before the first pruned one are not computed again: their outputs were kept.

    Args:
        model: a supported encoder with the task's head, pruned before or not.
        task: says how outputs are compared.
        ranking: ladders and compensated weights of this very model.
        examples: a few hundred; targets are not used.
        batch_size: examples per forward pass; does not change the score.
    """

    def __init__(
        self, model: PreTrainedModel, task: Task, ranking: Ranking, examples: Encoded, batch_size: int = 32
    ) -> None:
        self._model, self._task = model, task
        self._layers: list[Module] = list(layer_list(model))
        self._cuts = _Cuts(model, ranking)
        self._batches = [
            {name: torch.from_numpy(ids).to(model.device) for name, ids in examples.batch(indices).items()}
            for indices in examples.batches(batch_size, by_length=True)
        ]
        self._own: list[tuple[torch.Tensor, list[Any]]] = []
        self._kept = len(self._layers)
        with _evaluating(model):
            for batch in self._batches:
                self._own.append(self._trace(batch))
                self._forget_above(OUTPUT_BYTES)

    def __call__(self, widths: Widths) -> float:
        """Return the mean divergence per example from the model's own outputs, at temperature 1; 0 or more."""
        weights, first = self._cuts.of(widths)
        reused = min(first, self._kept)
        total, count = 0.0, 0
        with _evaluating(self._model):
            for batch, (logits, outputs) in zip(self._batches, self._own, strict=True):
                with _replaying(self._layers[:reused], outputs):
                    candidate = functional_call(self._model, weights, args=(), kwargs=batch).logits
                total += float(self._task.divergence(candidate, logits, 1.0)) * len(logits)
                count += len(logits)
        return total / count

    def _trace(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[Any]]:
        """Run the model itself; return its logits and what its first layers return."""
        outputs: list[Any] = []
        with ExitStack() as hooks:
            for layer in self._layers[: self._kept]:
                handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
                hooks.callback(handle.remove)
            return self._model(**batch).logits, outputs

    def _forget_above(self, limit: int) -> None:
        """Drop the outputs of the last layers until the rest fit into ``limit`` bytes."""
        while sum(_size(output) for _, outputs in self._own for output in outputs) > limit:
            self._kept -= 1
            for _, outputs in self._own:
                del outputs[self._kept :]


class _Cuts:
    """The weights that stand for candidates: per sub-layer and width, the most recently used ones kept."""

    def __init__(self, model: PreTrainedModel, ranking: Ranking) -> None:
        self._layers = encoder_layers(model)
        self._ranking = ranking
        self._names = {id(module): name for name, module in model.named_modules()}
        self._cache: OrderedDict[tuple[int, int], Weights] = OrderedDict()
        self._bytes = 0

    def of(self, widths: Widths) -> tuple[Weights, int]:
        """Return the weights of a candidate, and the first layer that it changes: the number of layers if none."""
        weights: Weights = {}
        first = len(self._layers)
        for sublayer, width in enumerate(widths.sublayers):
            if width < self._ranking.ladders.sublayers[sublayer].units:
                weights |= self._cached(sublayer, width)
                first = min(first, sublayer // 2)
        return weights, first

    def _cached(self, sublayer: int, width: int) -> Weights:
        place = (sublayer, width)
        if place not in self._cache:
            self._cache[place] = self._cut(sublayer, width)
            self._bytes += _size(self._cache[place])
            while self._bytes > WEIGHT_BYTES and len(self._cache) > 1:
                self._bytes -= _size(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(place)
        return self._cache[place]

    def _cut(self, sublayer: int, width: int) -> Weights:
        """Return the weights of a sub-layer that keeps ``width`` units.

        One that keeps none is given one unit whose output nothing reads: that is equal, and every family's
        ``forward`` takes it.
        """
        layer, ladder = self._layers[sublayer // 2], self._ranking.ladders.sublayers[sublayer]
        kept = ladder.kept(max(width, 1))
        inner, out, size = _projections(layer, sublayer)
        features = torch.tensor([unit * size + i for unit in kept for i in range(size)], device=out.weight.device)
        weights: Weights = {}
        for linear in inner:
            name = self._names[id(linear)]
            weights[f"{name}.weight"] = linear.weight.detach()[features]
            if linear.bias is not None:
                weights[f"{name}.bias"] = linear.bias.detach()[features]
        columns = out.weight.detach()[:, features]
        if width == 0:
            columns = torch.zeros_like(columns)
        elif (compensated := self._ranking.weights(sublayer, kept)) is not None:
            columns = torch.from_numpy(compensated).to(columns)
        return weights | {f"{self._names[id(out)]}.weight": columns.contiguous()}


def _projections(layer: EncoderLayer, sublayer: int) -> tuple[tuple[Linear, ...], Linear, int]:
    """Return a sub-layer's inner projections, its output projection, and the features of one unit."""
    if sublayer % 2:
        return (layer.ffn_in,), layer.ffn_out, 1
    return (layer.query, layer.key, layer.value), layer.attention_out, layer.head_size


def _size(value: Any) -> int:
    """Return the bytes of a tensor, or of all tensors that a layer returns or a mapping holds."""
    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, Mapping):
        value = value.values()
    return sum(map(_size, value)) if isinstance(value, Iterable) else 0


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients inside this context."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextmanager
def _replaying(layers: Sequence[Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let layers return given outputs instead of computing inside this context."""
    for layer, output in zip(layers, outputs, strict=False):
        layer.forward = lambda *args, _output=output, **kwargs: _output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
