"""Importances against brute force: one example at a time, finite differences, weights by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.families import encoder_layers
from compress.models.structure import keep_units
from compress.pruning.fisher import Fisher
from compress.pruning.importance import Importance, ScoredImportance, Scores, importances
from compress.pruning.magnitude import Magnitude
from compress.pruning.masks import Masks, masked
from compress.pruning.taylor import Taylor
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("no", "yes"))
CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=12,
    max_position_embeddings=16,
    initializer_range=0.3,
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertForSequenceClassification(CONFIG).eval()


def unmasked(model: PreTrainedModel) -> Masks:
    return [(torch.ones(1, x.heads), torch.ones(1, x.neurons)) for x in encoder_layers(model)]


def loss_of(model: PreTrainedModel, examples: Encoded, index: int, masks: Masks) -> torch.Tensor:
    batch = {name: torch.from_numpy(ids) for name, ids in examples.batch([index]).items()}
    with masked(encoder_layers(model), masks):
        logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(examples.targets)[index : index + 1]))


def slopes(model: PreTrainedModel, examples: Encoded) -> list[list[np.ndarray]]:
    """For each example the gradients by the masks: heads and neurons of layer 0, then of layer 1."""
    out = []
    for index in range(len(examples)):
        masks = [(h.requires_grad_(), n.requires_grad_()) for h, n in unmasked(model)]
        gradients = torch.autograd.grad(loss_of(model, examples, index, masks), [m for pair in masks for m in pair])
        out.append([gradient[0].double().numpy() for gradient in gradients])
    return out


def flat(scores: Scores) -> np.ndarray:
    return np.concatenate([*scores.heads, *scores.neurons])


@pytest.mark.parametrize(
    ("importance", "wanted"),
    [(Fisher(), lambda g: 0.5 * np.mean(g**2, 0)), (Taylor(), lambda g: np.mean(np.abs(g), 0))],
)
def test_scores_equal_their_definition_over_gradients_of_single_examples(
    model: PreTrainedModel, tiny_encoded: Encoded, importance: ScoredImportance, wanted: object
) -> None:
    examples = tiny_encoded.select(range(9))
    scores = importance.score(model, TASK, examples, batch_size=4)
    for i, gradients in enumerate(zip(*slopes(model, examples), strict=True)):
        got = (scores.heads, scores.neurons)[i % 2][i // 2]
        np.testing.assert_allclose(got, wanted(np.array(gradients)), rtol=1e-4, atol=1e-10)  # type: ignore[operator]


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
        assert scores.heads[layer][head] == pytest.approx(0.5 * slope**2, rel=1e-3)


@pytest.mark.parametrize("importance", [Fisher(), Taylor()])
def test_scores_do_not_depend_on_the_batch_size_or_change_the_model(
    model: PreTrainedModel, tiny_encoded: Encoded, importance: ScoredImportance
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    one = importance.score(model, TASK, tiny_encoded, 1)
    many = importance.score(model, TASK, tiny_encoded, 7, lambda done, total: seen.append((done, total)))
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


def test_scores_become_ladders_from_the_lowest_up() -> None:
    ladders = Scores((np.array([3.0, 1.0, 2.0]),), (np.zeros(0),)).ladders()
    assert ladders.heads[0].order.tolist() == [1, 2, 0]
    assert ladders.heads[0].loss.tolist() == [0, 1, 3, 6]
    assert (ladders.neurons[0].units, ladders.neurons[0].loss.tolist()) == (0, [0.0])


@pytest.mark.parametrize("name", importances.names())
def test_every_importance_ranks_what_is_left_of_a_pruned_encoder(name: str, tiny_encoded: Encoded) -> None:
    torch.manual_seed(1)
    model = BertForSequenceClassification(CONFIG).eval()
    for layer, heads, neurons in zip(encoder_layers(model), ([], [0, 3]), (range(5), []), strict=True):
        keep_units(layer, heads, neurons)
    importance: Importance = importances.get(name)()
    ranking = importance.rank(model, TASK, tiny_encoded, batch_size=5)
    assert [ladder.units for ladder in ranking.ladders.sublayers] == [0, 5, 2, 0]
    for ladder in ranking.ladders.sublayers:
        assert sorted(ladder.order) == list(range(ladder.units))
        assert (str(ladder.order.dtype), str(ladder.loss.dtype)) == ("int64", "float64")
        assert len(ladder.loss) == ladder.units + 1
        assert ladder.loss[0] == 0
        assert (np.diff(ladder.loss) >= 0).all()
    assert ranking.comparable


def test_registry_names_what_it_knows() -> None:
    assert importances.names() == ["fisher", "magnitude", "obs", "taylor"]
    with pytest.raises(UsageError, match="Unknown importance"):
        importances.get("fischer")
