"""The residual stream of an encoder, one layer at a time, for all examples at once.

Going on from the last layer's outputs costs one pass through every layer, where starting from the tokens each time
would cost a pass through all layers below, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from compress.models.families import EncoderLayer, encoder_layers, find_module
from compress.pruning.masks import to_batch
from compress.pruning.positions import token_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded


class Sublayer:
    """The attention or the feed-forward of a layer, seen from its output projection.

    Attributes:
        layer: the encoder layer.
        units: heads or neurons; 0 when the sub-layer is gone.
        projection: the linear that writes to the residual stream; a ``BiasOnly`` when the sub-layer is gone.
    """

    def __init__(self, layer: EncoderLayer, attention: bool) -> None:
        family = layer.family
        self.layer = layer
        self.units = layer.heads if attention else layer.neurons
        self.projection: Any = find_module(layer.module, family.attention_out if attention else family.ffn_out)
        self._norm = family.attention_norm if attention else family.ffn_norm

    @property
    def columns(self) -> int:
        """Inputs of the projection."""
        return int(self.projection.in_features) if self.units else 0

    @contextmanager
    def observed(self) -> Iterator[dict[str, torch.Tensor]]:
        """Collect, at each pass inside this context, the projection's ``inputs`` and the ``stream`` after it.

        Both are (batch, tokens, features). The pass ends where the stream is seen.
        """
        seen: dict[str, torch.Tensor] = {}

        def see_inputs(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            seen["inputs"] = arguments[0]

        def see_stream(module: Any, arguments: tuple[torch.Tensor, ...], output: Any = None) -> None:
            seen["stream"] = arguments[0] if output is None else _first(output)
            raise _SeenError

        with ExitStack() as hooks:
            hooks.callback(self.projection.register_forward_pre_hook(see_inputs).remove)
            if self._norm:
                norm = find_module(self.layer.module, self._norm)
                hooks.callback(norm.register_forward_pre_hook(see_stream).remove)
            else:
                hooks.callback(self.layer.module.register_forward_hook(see_stream).remove)
            yield seen


def sublayers(model: PreTrainedModel) -> list[Sublayer]:
    """Return attention 0, feed-forward 0, attention 1, feed-forward 1, ..."""
    return [Sublayer(layer, attention) for layer in encoder_layers(model) for attention in (True, False)]


class Stream:
    """The hidden states of all examples at the input of one encoder layer, at first of the lowest.

    Args:
        model: in evaluation mode.
        examples: all of them.
        batch_size: examples per batch.
    """

    def __init__(self, model: PreTrainedModel, examples: Encoded, batch_size: int) -> None:
        self._model = model
        self._layers = encoder_layers(model)
        self._at = 0
        self._batches = [to_batch(model, examples, i) for i in examples.batches(batch_size, by_length=True)]
        self._calls = [self._first_call(batch) for batch in self._batches]

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        """Return (attention, feed-forward) of the layer that comes next."""
        return Sublayer(self._layers[self._at], attention=True), Sublayer(self._layers[self._at], attention=False)

    def observe(self, sublayer: Sublayer, batch: int) -> dict[str, torch.Tensor]:
        """Pass a batch through the layer up to a sub-layer: its projection's ``inputs``, the ``stream`` after it."""
        with sublayer.observed() as seen:
            self._run(batch)
        return seen

    def weights(self, batch: int) -> torch.Tensor:
        """Return (batch, tokens) float32: how much each token counts after this layer."""
        tokens = self._calls[batch][0].shape[1]
        return token_weights(self._model, self._batches[batch], tokens, last=self._at == len(self._layers) - 1)

    def advance(self) -> None:
        """Move all examples through the layer."""
        for batch, (_, arguments, options) in enumerate(self._calls):
            self._calls[batch] = (_first(self._run(batch)), arguments, options)
        self._at += 1

    def _run(self, batch: int) -> Any:
        states, arguments, options = self._calls[batch]
        return _until_seen(self._layers[self._at].module, states, *arguments, **options)

    def _first_call(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
        """Return what the lowest layer is called with: hidden states, other arguments, keyword arguments."""
        calls: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def see_call(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls.append((arguments[0], arguments[1:], options))
            raise _SeenError

        hook = self._layers[0].module.register_forward_pre_hook(see_call, with_kwargs=True)
        try:
            _until_seen(self._model, **batch)
        finally:
            hook.remove()
        return calls[0]


class _SeenError(Exception):
    """Ends a forward pass: what it was for has been seen."""


def _until_seen(module: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a module; its output, or None when a hook ended the pass."""
    try:
        return module(*arguments, **options)
    except _SeenError:
        return None


def _first(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states
