"""Importances against brute force: one example at a time, finite differences, weights by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.families import encoder_layers
from compress.pruning.importance import Fisher, Magnitude, Scores, importances, masked
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("no", "yes"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=12,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def unmasked(model: PreTrainedModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(1, x.heads), torch.ones(1, x.neurons)) for x in encoder_layers(model)]


def loss_of(
    model: PreTrainedModel, examples: Encoded, index: int, masks: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    batch = {name: torch.from_numpy(ids) for name, ids in examples.batch([index]).items()}
    with masked(encoder_layers(model), masks):
        logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits, torch.tensor(examples.targets[index : index + 1]))


def flat(scores: Scores) -> np.ndarray:
    return np.concatenate([*scores.heads, *scores.neurons])


def test_fisher_equals_the_sum_of_squared_gradients_of_single_examples(
    model: PreTrainedModel, tiny_encoded: Encoded
) -> None:
    examples = tiny_encoded.select(range(9))
    wanted: list[list[np.ndarray]] = [[np.zeros(4), np.zeros(12)] for _ in range(2)]
    for index in range(len(examples)):
        masks = [(h.requires_grad_(), n.requires_grad_()) for h, n in unmasked(model)]
        gradients = torch.autograd.grad(loss_of(model, examples, index, masks), [m for pair in masks for m in pair])
        for layer in range(2):
            for kind in range(2):
                wanted[layer][kind] += gradients[2 * layer + kind][0].double().numpy() ** 2
    scores = Fisher().score(model, TASK, examples, batch_size=4)
    for layer in range(2):
        np.testing.assert_allclose(scores.heads[layer], wanted[layer][0], rtol=1e-4, atol=1e-10)
        np.testing.assert_allclose(scores.neurons[layer], wanted[layer][1], rtol=1e-4, atol=1e-10)


def test_fisher_of_one_example_equals_finite_differences(model: PreTrainedModel, tiny_encoded: Encoded) -> None:
    double = BertForSequenceClassification(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    scores = Fisher().score(double, TASK, tiny_encoded.select([3]), batch_size=1)
    step = 1e-4
    for layer, head in ((0, 1), (1, 3)):
        values = []
        for sign in (1, -1):
            masks = [(h.double(), n.double()) for h, n in unmasked(model)]
            masks[layer][0][0, head] += sign * step
            with torch.no_grad():
                values.append(float(loss_of(double, tiny_encoded, 3, masks)))
        slope = (values[0] - values[1]) / (2 * step)
        assert scores.heads[layer][head] == pytest.approx(slope**2, rel=1e-3)


def test_fisher_does_not_depend_on_the_batch_size_or_change_the_model(
    model: PreTrainedModel, tiny_encoded: Encoded
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    one = Fisher().score(model, TASK, tiny_encoded, batch_size=1)
    many = Fisher().score(model, TASK, tiny_encoded, batch_size=7, count=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(flat(one), flat(many), rtol=1e-4, atol=1e-10)
    assert seen == [(7, 24), (14, 24), (21, 24), (24, 24)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(not linear._forward_pre_hooks for x in encoder_layers(model) for linear in (x.attention_out, x.ffn_out))


def test_magnitude_by_hand(model: PreTrainedModel, tiny_encoded: Encoded) -> None:
    scores = Magnitude().score(model, TASK, tiny_encoded, batch_size=1)
    layer = model.bert.encoder.layer[1]
    head = slice(4, 8)
    own = layer.attention.self
    wanted = sum(float(x.weight.detach()[head].double().square().sum()) for x in (own.query, own.key, own.value))
    wanted += float(layer.attention.output.dense.weight.detach()[:, head].double().square().sum())
    assert scores.heads[1][1] == pytest.approx(wanted)
    neuron = float(layer.intermediate.dense.weight.detach()[5].double().square().sum())
    neuron += float(layer.output.dense.weight.detach()[:, 5].double().square().sum())
    assert scores.neurons[1][5] == pytest.approx(neuron)


def test_registry_and_layer_sums() -> None:
    assert importances.names() == ["fisher", "magnitude"]
    with pytest.raises(UsageError, match="Unknown importance"):
        importances.get("fischer")
    scores = Scores((np.array([1.0]), np.array([2.0, 3.0])), (np.array([4.0]), np.array([5.0])))
    assert scores.layer_sums().tolist() == [5.0, 10.0]
    assert scores.select([1]).layer_sums().tolist() == [10.0]
