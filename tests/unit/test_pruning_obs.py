"""Structured OBS against least squares, brute force and the textbook update; its curvature against Jacobians."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compress.data.encoded import Encoded
from compress.errors import DataError
from compress.models.families import encoder_layers
from compress.pruning import obs
from compress.pruning.hessian import _curvature_root, gather
from compress.pruning.positions import REST
from compress.pruning.ranking import Ranking, packed, unpacked
from compress.pruning.stream import sublayers
from compress.pruning.surgeon import Surgeon
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("no", "yes"))
OUTPUTS, COLUMNS, ROWS, DAMP = 5, 12, 40, 1e-2


def classifier(labels: int) -> PreTrainedModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=12,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=labels,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return classifier(2)


def problem() -> tuple[np.ndarray, np.ndarray, float]:
    """(weight, inputs (rows, columns) with correlated columns, absolute damping)."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(ROWS, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS))
    return rng.normal(size=(OUTPUTS, COLUMNS)), inputs, DAMP * float((inputs**2).mean())


def hessian(inputs: np.ndarray) -> torch.Tensor:
    return obs.damped(torch.from_numpy(inputs.T @ inputs / ROWS), DAMP)


class Saddle(TextClassification):
    """Loss x^2 - y^2 of the logits (x, y) where x is positive, x^2 + y^2 elsewhere."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x, y = logits.T
        return (x**2 - torch.where(x > 0, 1.0, -1.0) * y**2).mean()


def test_a_loss_that_is_not_convex_counts_as_flat_where_it_curves_down() -> None:
    logits = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    root = _curvature_root(Saddle(("no", "yes")), logits, torch.zeros(2))
    found = root @ root.transpose(1, 2)
    wanted = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def columns_of(units: np.ndarray | list[int], size: int) -> list[int]:
    return [int(unit) * size + i for unit in sorted(units) for i in range(size)]


def least_squares(kept: list[int]) -> tuple[np.ndarray, float]:
    """Fit the kept columns to the output of all columns by lstsq, damping as extra rows: (weights, squared error)."""
    weight, inputs, ridge = problem()
    rows = np.concatenate([inputs / np.sqrt(ROWS), np.sqrt(ridge) * np.eye(COLUMNS)])
    solution = np.linalg.lstsq(rows[:, kept], rows @ weight.T, rcond=None)[0].T
    return solution, float(((rows[:, kept] @ solution.T - rows @ weight.T) ** 2).sum())


@pytest.mark.parametrize("size", [1, 3])
def test_every_level_is_the_constrained_least_squares_solution_and_its_loss_the_error(size: int) -> None:
    weight, inputs, _ = problem()
    order, loss = obs.removal_order(torch.from_numpy(weight), hessian(inputs), size)
    assert sorted(order) == list(range(COLUMNS // size))
    assert loss[0] == 0
    for gone in range(len(order) + 1):
        kept = columns_of(order[gone:], size)
        wanted, error = least_squares(kept)
        got = obs.compensated(torch.from_numpy(weight), hessian(inputs), torch.tensor(kept, dtype=torch.int64))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)
        assert loss[gone] == pytest.approx(error, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_each_step_removes_what_brute_force_finds_cheapest(size: int) -> None:
    weight, inputs, _ = problem()
    order, _ = obs.removal_order(torch.from_numpy(weight), hessian(inputs), size)
    for step in range(len(order) - 1):
        errors = {
            int(unit): least_squares(columns_of([u for u in order[step:] if u != unit], size))[1]
            for unit in order[step:]
        }
        assert min(errors, key=lambda unit: errors[unit]) == order[step]


@pytest.mark.parametrize("size", [1, 3])
def test_compensated_weights_equal_the_updates_of_the_paper(size: int) -> None:
    weight, inputs, _ = problem()
    order, _ = obs.removal_order(torch.from_numpy(weight), hessian(inputs), size)
    inverse = np.linalg.inv(hessian(inputs).numpy())
    for gone, unit in enumerate(order[:-1], start=1):
        out = columns_of([unit], size)
        step = np.linalg.inv(inverse[np.ix_(out, out)]) @ inverse[out]
        weight = weight - weight[:, out] @ step
        inverse = inverse - inverse[:, out] @ step
        kept = columns_of(order[gone:], size)
        got = obs.compensated(torch.from_numpy(problem()[0]), hessian(inputs), torch.tensor(kept))
        np.testing.assert_allclose(got, weight[:, kept], rtol=1e-5, atol=1e-8)


def test_postponed_updates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs, _ = problem()
    results = []
    for block in (1, 5, 64):
        monkeypatch.setattr(obs, "BLOCK", block)
        results.append(obs.removal_order(torch.from_numpy(weight), hessian(inputs), 1))
    for order, loss in results[1:]:
        assert order.tolist() == results[0][0].tolist()
        np.testing.assert_allclose(loss, results[0][1], rtol=1e-9)


def test_nothing_to_remove_and_dead_inputs() -> None:
    order, loss = obs.removal_order(torch.zeros(3, 0).double(), torch.zeros(0, 0).double(), 1)
    assert (order.tolist(), loss.tolist()) == ([], [0.0])
    _, loss = obs.removal_order(torch.ones(3, 4).double(), obs.damped(torch.zeros(4, 4).double(), DAMP), 1)
    assert np.isfinite(loss).all()


def test_packed_matrices_return() -> None:
    matrix = np.cov(np.random.default_rng(0).normal(size=(7, 20))).astype(np.float32)
    np.testing.assert_array_equal(unpacked(packed(matrix), 7), matrix)
    assert unpacked(packed(np.zeros((0, 0))), 0).shape == (0, 0)


@pytest.mark.parametrize("labels", [2, 1])
def test_moments_equal_those_of_single_examples(tiny_encoded: Encoded, labels: int) -> None:
    """Inputs token by token; outputs as ``J^T H J`` with the Jacobian J of the logits and the Hessian H by them.

    Two labels: ``H = diag(p) - p p^T``. A number with squared error: ``H = 2``.
    """
    model = classifier(labels)
    task = TASK if labels == 2 else TextClassification((), problem="regression")
    examples = tiny_encoded.select(range(5))
    moments = gather(model, task, examples, batch_size=3)
    for i, part in enumerate(sublayers(model)):
        inputs, outputs, weight = np.zeros(moments[i].inputs.shape), np.zeros((16, 16)), 0.0
        for index in range(len(examples)):
            seen, jacobian, chances = jacobian_of(model, part.projection, examples, index)
            tokens = np.array([1.0] + [1.0 if i < 2 else REST] * (len(seen) - 1))
            inputs += (seen * tokens[:, None]).T @ seen
            weight += tokens.sum()
            curvature = np.diag(chances) - np.outer(chances, chances) if labels == 2 else np.array([[2.0]])
            outputs += np.einsum("atx,ab,bty->xy", jacobian, curvature, jacobian) / len(examples)
        np.testing.assert_allclose(moments[i].inputs, inputs / weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moments[i].outputs, outputs, rtol=1e-3, atol=1e-5 * outputs.max())


def jacobian_of(
    model: PreTrainedModel, projection: torch.nn.Module, examples: Encoded, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs (tokens, columns), d logits / d output (labels, tokens, hidden), probabilities) of one example."""
    seen: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        seen.extend([arguments[0], output])

    handle = projection.register_forward_hook(hook)
    logits = model(**{name: torch.from_numpy(ids) for name, ids in examples.batch([index]).items()}).logits[0]
    handle.remove()
    rows = [torch.autograd.grad(logit, seen[1], retain_graph=True)[0][0] for logit in logits]
    return seen[0][0].detach().numpy(), torch.stack(rows).numpy(), logits.softmax(0).detach().numpy()


def test_the_ranking_depends_neither_on_batches_nor_on_labels_and_leaves_the_model(
    model: PreTrainedModel, tiny_encoded: Encoded
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flipped = Encoded(tiny_encoded.inputs, tiny_encoded.padding, 1 - np.asarray(tiny_encoded.targets))
    seen: list[tuple[int, int]] = []
    one = Surgeon().rank(model, TASK, tiny_encoded, 1)
    many = Surgeon().rank(model, TASK, flipped, 7, lambda done, total: seen.append((done, total)))
    for first, second in zip(one.ladders.sublayers, many.ladders.sublayers, strict=True):
        assert first.order.tolist() == second.order.tolist()
        np.testing.assert_allclose(first.loss, second.loss, rtol=1e-3)
    assert seen[-1] == (24, 24)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not part.projection._forward_hooks for part in sublayers(model))


def test_costs_are_half_the_curvature_along_the_change_of_the_weights(
    model: PreTrainedModel, tiny_encoded: Encoded
) -> None:
    ranking = Surgeon().rank(model, TASK, tiny_encoded, 8)
    moments = gather(model, TASK, tiny_encoded, 8)
    for i, (ladder, part) in enumerate(zip(ranking.ladders.sublayers, sublayers(model), strict=True)):
        kept = ladder.kept(2)
        change = -part.projection.weight.detach().double().numpy()
        change[:, columns_of(list(kept), part.columns // part.units)] += ranking.weights(i, kept)
        second = obs.damped(moments[i].inputs, DAMP).numpy()
        wanted = 0.5 * np.trace(moments[i].outputs.numpy() @ change @ second @ change.T)
        assert ladder.loss_at(2) == pytest.approx(wanted, rel=1e-3)


def test_a_saved_ranking_returns_with_equal_bytes(
    model: PreTrainedModel, tiny_encoded: Encoded, tmp_path: Path
) -> None:
    ranking = Surgeon().rank(model, TASK, tiny_encoded, 8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    ranking.save(tmp_path / "a")
    loaded = Ranking.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    files = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("a", "b")]
    assert files[0] == files[1]
    assert loaded.comparable
    layer = encoder_layers(model)[1]
    whole, empty = loaded.weights(3, range(12)), loaded.weights(0, ())
    assert whole is not None
    assert empty is not None
    np.testing.assert_allclose(whole, layer.ffn_out.weight.detach(), atol=1e-5)
    assert empty.shape == (16, 0)
    np.testing.assert_array_equal(loaded.weights(2, (1, 3)), ranking.weights(2, (1, 3)))
    np.testing.assert_array_equal(ranking.select([1]).weights(0, (1, 3)), ranking.weights(2, (1, 3)))
    with pytest.raises(DataError, match="ranking cannot be read"):
        Ranking.load(tmp_path)
