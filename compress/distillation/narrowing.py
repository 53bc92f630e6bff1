"""A narrower student: fewer layers, features, heads and neurons of a dense teacher, the most used ones kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.depth import drop_layers
from compress.models.families import dimensions, encoder_layers, family_of
from compress.models.loading import quiet
from compress.models.narrow import narrow_sizes
from compress.models.structure import is_dense, keep_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Usage:
    """How much of each part real inputs use.

    Attributes:
        features: (hidden,) mean absolute value of each hidden feature, over the outputs of embeddings and layers
            (Minitron, arXiv:2407.14679, section 2.2).
        heads: (layers, heads) mean square of what each head adds to the hidden states, cross terms left out.
        neurons: (layers, neurons) the same of each feed-forward neuron.
    """

    features: np.ndarray
    heads: np.ndarray
    neurons: np.ndarray


def measure_usage(model: PreTrainedModel, encoded: Encoded, batch_size: int = 32) -> Usage:
    """Run examples through a dense encoder and measure what they use; padding never counts.

    Args:
        model: a dense encoder of text, in evaluation mode.
        encoded: a few hundred examples.
        batch_size: examples per forward pass.
    """
    layers = encoder_layers(model)
    size = dimensions(model.config.to_dict())
    features = torch.zeros(size.hidden, dtype=torch.float64)
    inputs = [
        torch.zeros(part.in_features, dtype=torch.float64) for x in layers for part in (x.attention_out, x.ffn_out)
    ]
    outlets = [part for layer in layers for part in (layer.attention_out, layer.ffn_out)]
    with torch.inference_mode(), _reading_inputs(outlets) as seen:
        for indices in encoded.batches(batch_size, by_length=True):
            batch = {name: torch.from_numpy(ids).to(model.device) for name, ids in encoded.batch(indices).items()}
            hidden = model(**batch, output_hidden_states=True).hidden_states
            real = batch["attention_mask"].bool()
            features += sum(states[real].abs().sum(dim=0).double().cpu() for states in hidden)
            for total, states in zip(inputs, seen, strict=True):
                total += states[real].square().sum(dim=0).double().cpu()
            seen.clear()
    energy = [
        (total * outlet.weight.detach().double().cpu().square().sum(dim=0)).numpy()
        for total, outlet in zip(inputs, outlets, strict=True)
    ]
    heads = [each.reshape(-1, size.head_size).sum(axis=1) for each in energy[0::2]]
    return Usage(features.numpy(), np.stack(heads), np.stack(energy[1::2]))


def narrow(
    teacher: PreTrainedModel, keep_layers: Sequence[int], hidden: int, usage: Usage
) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """Make a student out of the most used parts of a teacher; it opens with plain ``from_pretrained``.

    The same features stay in every module: in the embeddings, the LayerNorms, the projections and the head.

    Args:
        teacher: a dense encoder of text; it is not changed.
        keep_layers: positions of the layers that stay, ascending.
        hidden: features that stay, a multiple of the head size; heads and neurons shrink in proportion.
        usage: of the teacher.

    Returns:
        The student on the CPU, and the features of the teacher that it kept, ascending.

    Raises:
        UsageError: the teacher is pruned already, or the width does not fit.
    """
    sizes = narrow_sizes(teacher.config.to_dict(), hidden)
    if not is_dense(teacher):
        raise UsageError(
            "A narrower student is cut out of a dense teacher; this one is pruned.",
            value=f"hidden {hidden}",
            fix="Name the dense model as the teacher, or leave `hidden` out.",
        )
    family, features = family_of(teacher.config.model_type), _most_used(usage.features, hidden)
    heads, neurons = sizes[family.heads_key], sizes[family.neurons_key]
    cut = copy.deepcopy(teacher).to("cpu")
    drop_layers(cut, keep_layers)
    for layer, position in zip(encoder_layers(cut), keep_layers, strict=True):
        keep_units(layer, _most_used(usage.heads[position], heads), _most_used(usage.neurons[position], neurons))
    config = copy.deepcopy(cut.config)
    for key, value in sizes.items():
        setattr(config, key, value)
    with quiet():
        student: PreTrainedModel = type(teacher)(config)
        student.load_state_dict(_cut_features(cut, features), strict=True)
    return student.requires_grad_(True).eval(), features


def _most_used(scores: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(int(i) for i in np.argsort(-scores, kind="stable")[:count]))


def _cut_features(model: PreTrainedModel, features: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the weights with only these hidden features, wherever a weight runs along them."""
    hidden, kept = dimensions(model.config.to_dict()).hidden, torch.tensor(features)
    layers = encoder_layers(model)
    inner = {id(m) for layer in layers for m in (layer.query, layer.key, layer.value, layer.ffn_in)}
    outer = {id(m) for layer in layers for m in (layer.attention_out, layer.ffn_out)}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    out = {}
    for name, tensor in model.state_dict().items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.LayerNorm) and tensor.shape == (hidden,):
            tensor = tensor[kept]
        elif isinstance(module, nn.Embedding) and tensor.shape[1] == hidden:
            tensor = tensor[:, kept]
        elif isinstance(module, nn.Linear):
            outside = id(module) not in inner | outer
            if id(module) in outer or (outside and module.out_features == hidden and module is not linears[-1]):
                tensor = tensor[kept]
            if tensor.ndim == 2 and (id(module) in inner or (outside and module.in_features == hidden)):
                tensor = tensor[:, kept]
        out[name] = tensor.detach().clone()
    return out


@contextmanager
def _reading_inputs(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect the first argument of every call of the modules, in the order of the calls."""
    seen: list[torch.Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
