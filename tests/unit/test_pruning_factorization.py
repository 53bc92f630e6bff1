"""Low rank: the factors are the best there are, full rank changes nothing, and they survive files and surgery."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.data.encoded import Encoded
from compress.distillation.internals import predict
from compress.errors import ModelError
from compress.models.counting import count_macs, count_parameters
from compress.models.factors import FactoredEmbedding, FactoredLinear, apply_ranks, ranks_of
from compress.models.families import encoder_layers
from compress.models.loading import load_torch, save_torch
from compress.models.structure import is_dense, keep_units, structure_of
from compress.pruning.factorization import factor_embedding, factor_linears, input_moments, linear_paths
from compress.pruning.lowrank import Moments, factor_linear, factor_table, largest_rank, spectrum
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
TEXTS = ("the film was great , not dull", "cancel my order please .", "she was slow but fine", "it works")
SAMPLE = [{"text": text, "text_pair": None} for text in TEXTS]
WORDS = "bert.embeddings.word_embeddings"
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def model(tiny_classifier: Callable[..., Path]) -> nn.Module:
    torch.set_num_threads(1)
    return load_torch(tiny_classifier(), TASK)


@pytest.fixture
def encoded(tiny_classifier: Callable[..., Path]) -> Encoded:
    return TASK.encode(tiny_classifier(), SAMPLE)


def table_loss(table: np.ndarray, weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    return float(weights @ ((table - a @ b) ** 2).sum(axis=1))


def alternate(table: np.ndarray, weights: np.ndarray, rank: int, rng: np.random.Generator) -> float:
    """Weighted loss after alternating least squares from a random start."""
    b = rng.normal(size=(rank, table.shape[1]))
    root = np.sqrt(weights)[:, None]
    for _ in range(400):
        a = np.linalg.lstsq(b.T, table.T, rcond=None)[0].T
        b = np.linalg.lstsq(root * a, root * table, rcond=None)[0]
    return table_loss(table, weights, a, b)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_table_equals_alternating_least_squares(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    table, weights = rng.normal(size=(12, 5)), rng.exponential(size=12) + 0.1
    a, b = factor_table(table, weights, rank)
    best = min(alternate(table, weights, rank, rng) for _ in range(3))
    assert table_loss(table, weights, a, b) == pytest.approx(best, rel=1e-6)
    assert (a.shape, b.shape) == ((12, rank), (rank, 5))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 9), columns=st.integers(1, 6))
def test_full_rank_is_the_matrix_itself(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, columns))
    a, b = factor_table(table, rng.exponential(size=rows) + 0.01, columns)
    np.testing.assert_allclose(a @ b, table, atol=1e-9)
    moments = Moments(
        rng.normal(size=columns), np.cov(rng.normal(size=(columns, 3 * columns + 3)), ddof=0).reshape(columns, columns)
    )
    u, v, bias = factor_linear(table, np.ones(rows), moments, rows)
    np.testing.assert_allclose(u @ v, table, atol=1e-9)
    np.testing.assert_allclose(bias, 1.0, atol=1e-9)


def linear_loss(
    inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, other: np.ndarray, shift: np.ndarray
) -> float:
    return float(((inputs @ weight.T + bias - inputs @ other.T - shift) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("seed", range(4))
def test_linear_equals_reduced_rank_regression(seed: int) -> None:
    """Against gradient-free alternation over (U, b') and V on the very inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
    weight, bias, rank = rng.normal(size=(4, 5)), rng.normal(size=4), 2
    moments = Moments(inputs.mean(axis=0), np.cov(inputs.T, ddof=0))
    u, v, shift = factor_linear(weight, bias, moments, rank)
    assert shift is not None
    ours = linear_loss(inputs, weight, bias, u @ v, shift)
    wanted, best = inputs @ weight.T + bias, np.inf
    for _ in range(3):
        down = rng.normal(size=(rank, 5))
        for _ in range(300):
            features = np.column_stack([inputs @ down.T, np.ones(60)])
            up = np.linalg.lstsq(features, wanted, rcond=None)[0].T
            design = np.kron(inputs, up[:, :rank])
            down = np.linalg.lstsq(design, (wanted - up[:, rank]).ravel(), rcond=None)[0].reshape(5, rank).T
        best = min(best, linear_loss(inputs, weight, bias, up[:, :rank] @ down, up[:, rank]))
    assert ours == pytest.approx(best, rel=1e-5)
    variance = float(((wanted - wanted.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert spectrum(weight, bias, moments)[rank] == pytest.approx(ours / variance, rel=1e-9)
    plain_u, plain_v, none = factor_linear(weight, None, moments, rank)
    assert none is None
    assert linear_loss(inputs, weight, bias, plain_u @ plain_v, bias) >= ours


def test_spectrum_and_largest_rank() -> None:
    moments = Moments(np.zeros(3), np.eye(3))
    lost = spectrum(np.diag([3.0, 2.0, 1.0]), np.zeros(3), moments)
    np.testing.assert_allclose(lost, [1.0, 5 / 14, 1 / 14, 0.0], atol=1e-12)
    assert largest_rank(384, 384, 0.5) == 96
    assert largest_rank(384, 1536, 1.0) * (384 + 1536) <= 384 * 1536
    assert largest_rank(4, 4, 0.2) == 0


def test_the_table_is_level_for_one_scale() -> None:
    """Columns of a plain decomposition differ by their eigenvalues; the rotation brings them together."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(400, 16)) * np.geomspace(10, 0.01, 16)
    a, _ = factor_table(table, np.ones(400), 8)
    plain = table @ np.linalg.svd(table)[2][:8].T
    assert np.ptp(np.log(a.std(axis=0))) < 0.5 * np.ptp(np.log(plain.std(axis=0)))


def test_input_moments_are_those_of_unpadded_tokens(model: nn.Module, encoded: Encoded) -> None:
    seen: list[np.ndarray] = []
    hook = model.get_submodule(QUERY).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].numpy()))
    for i in range(len(encoded)):
        with torch.inference_mode():
            model(**{name: torch.from_numpy(ids) for name, ids in encoded.batch([i]).items()})
    hook.remove()
    states = np.concatenate(seen).astype(np.float64)
    moments = input_moments(model, encoded, [QUERY, "bert.pooler.dense"], batch_size=3)
    np.testing.assert_allclose(moments[QUERY].mean, states.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moments[QUERY].covariance, np.cov(states.T, ddof=0), atol=1e-4)
    assert moments["bert.pooler.dense"].mean.shape == (32,)


def test_embedding_at_full_rank_changes_nothing_and_is_not_worth_it(model: nn.Module, encoded: Encoded) -> None:
    decision = factor_embedding(model, encoded, 32)
    assert not decision.factored
    assert "there are" in decision.reason
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    before = predict(model, encoded)
    table = model.get_input_embeddings()
    a, b = factor_table(table.weight.detach().numpy(), np.ones(table.num_embeddings), 32)
    apply_ranks(model, {WORDS: 32})
    with torch.no_grad():
        model.get_input_embeddings().table.weight.copy_(torch.from_numpy(a))
        model.get_input_embeddings().project.weight.copy_(torch.from_numpy(b.T.copy()))
    np.testing.assert_allclose(predict(model, encoded), before, atol=1e-4)


def test_frequent_tokens_lose_least(model: nn.Module, encoded: Encoded) -> None:
    dense = model.get_input_embeddings().weight.detach().numpy().copy()
    decision = factor_embedding(model, encoded, 8, smoothing=0.01)
    table = model.get_input_embeddings()
    assert isinstance(table, FactoredEmbedding)
    assert (decision.path, decision.rank, table.rank) == (WORDS, 8, 8)
    assert decision.after == sum(p.numel() for p in table.parameters()) == 8 * (len(dense) + 32) < decision.before
    gone = ((table.weight.detach().numpy() - dense) ** 2).sum(axis=1) / (dense**2).sum(axis=1)
    used = np.unique(np.concatenate(encoded.inputs["input_ids"]))
    unused = np.setdiff1d(np.arange(1, len(dense)), used)
    assert gone[used].mean() < 0.5 * gone[unused].mean()
    assert 0 < decision.lost < 1


def test_linears_keep_their_share_or_stay(model: nn.Module, encoded: Encoded) -> None:
    before = {path: model.get_submodule(path) for path in linear_paths(model)}
    assert QUERY in before
    assert "classifier" not in before
    macs, parameters = count_macs(model), count_parameters(model)
    decisions = factor_linears(model, encoded, share=0.5)
    assert [d.path for d in decisions] == list(before)
    for decision in decisions:
        module, old = model.get_submodule(decision.path), before[decision.path]
        assert isinstance(module, FactoredLinear)
        assert (module.in_features, module.out_features) == (old.in_features, old.out_features)
        assert decision.after - module.out_features <= 0.5 * module.in_features * module.out_features
    assert count_parameters(model) == parameters - sum(d.before - d.after for d in decisions)
    assert count_macs(model) < macs
    assert linear_paths(model) == list(before), "factored linears count as one each"


def test_a_linear_that_would_not_shrink_says_why(model: nn.Module, encoded: Encoded) -> None:
    strict = {decision.path: decision for decision in factor_linears(model, encoded, max_error=1e-9)}
    assert not strict[QUERY].factored
    assert "needs rank" in strict[QUERY].reason
    assert isinstance(model.get_submodule(QUERY), nn.Linear)
    assert "no rank keeps as little" in factor_linears(model, encoded, share=0.01)[0].reason
    loose = factor_linears(model, encoded, max_error=0.2)
    assert any(decision.factored for decision in loose)
    assert all(decision.lost <= 0.2 for decision in loose)
    again = factor_linears(model, encoded, share=0.9999)
    assert [d.reason for d in again if "there are" in d.reason], "what is factored already is not made larger"


OPEN = """
import json, sys, torch
from pathlib import Path
from compress.distillation.internals import predict
from compress.models.loading import load_torch
from compress.tasks.text_classification import TextClassification
torch.set_num_threads(1)
task, folder = TextClassification(("bad", "fine", "good"), max_length=32), Path(sys.argv[1])
rows = [{"text": text, "text_pair": None} for text in json.loads(sys.argv[2])]
print(json.dumps(predict(load_torch(folder, task), task.encode(folder, rows)).tolist()))
"""


@pytest.mark.parametrize("pruned", [False, True])
def test_ranks_survive_a_new_process(pruned: bool, tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_classifier("bert", pruned)
    model, encoded = load_torch(source, TASK), TASK.encode(source, SAMPLE)
    factor_embedding(model, encoded, 8)
    factor_linears(model, encoded, share=0.6)
    assert not is_dense(model)
    save_torch(model, tmp_path, tokenizer_from=source)
    assert json.loads((tmp_path / "structure.json").read_text(encoding="utf-8"))["ranks"] == ranks_of(model)
    command = [sys.executable, "-c", OPEN, str(tmp_path), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(np.array(json.loads(done.stdout), dtype=np.float32), predict(model, encoded))


def test_factors_can_be_pruned_afterwards(model: nn.Module, encoded: Encoded) -> None:
    """Rows of query, key, value and ffn_in are rows of ``up``; columns of the output projections are of ``down``."""
    factor_linears(model, encoded, share=0.8)
    layer = encoder_layers(model)[0]
    with torch.no_grad():
        for linear, first in ((layer.attention_out, 8), (layer.ffn_out, 24)):
            linear.down.weight[:, first:] = 0
    masked = predict(model, encoded)
    keep_units(layer, [0], range(24))
    assert (layer.heads, layer.neurons) == (1, 24)
    np.testing.assert_allclose(predict(model, encoded), masked, atol=1e-5)
    assert structure_of(model).ranks == ranks_of(model)


def test_a_path_that_does_not_exist_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="does not have") as caught:
        apply_ranks(model, {"bert.nowhere": 3})
    assert caught.value.value == "bert.nowhere"


def test_onnx_looks_up_the_factor_and_int8_shrinks_it(tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    """The exported graph holds the (tokens, rank) table, and dynamic INT8 stores one byte for each of its weights."""
    import onnx
    import onnxruntime

    from compress.export.onnx_export import export_onnx
    from compress.quantization.int8 import quantize_dynamic

    source = tiny_classifier()
    model, encoded = load_torch(source, TASK), TASK.encode(source, SAMPLE)
    tokens = model.get_input_embeddings().num_embeddings
    factor_embedding(model, encoded, 8)
    export_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    shapes = [tuple(tensor.dims) for tensor in graph.graph.initializer]
    assert (tokens, 8) in shapes
    assert (tokens, 32) not in shapes
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    batch = encoded.batch(range(len(encoded)))
    names = {value.name for value in session.get_inputs()}
    (logits,) = session.run(["logits"], {name: ids for name, ids in batch.items() if name in names})
    np.testing.assert_allclose(logits, predict(model, encoded), atol=1e-4)
    quantized, _ = quantize_dynamic(graph)
    tables = [t for t in quantized.graph.initializer if tuple(t.dims) == (tokens, 8)]
    assert [t.data_type for t in tables] == [onnx.TensorProto.UINT8]
    projections = [t for t in quantized.graph.initializer if tuple(t.dims) == (8, 32)]
    assert [t.data_type for t in projections] == [onnx.TensorProto.INT8]


def test_only_what_is_faster_beyond_its_interval_is_kept() -> None:
    from compress.search.deploy import Speedup
    from compress.search.factoring import fastest

    sure, lucky = Speedup(1.2, 1.1, 1.3, 8.3, 10.0), Speedup(1.3, 0.9, 1.7, 7.7, 10.0)
    assert fastest({"embeddings": sure}) == "embeddings"
    assert fastest({"embeddings": sure, "linears": Speedup(1.4, 1.3, 1.5, 7.1, 10.0)}) == "linears"
    assert fastest({"embeddings": Speedup(0.9, 0.8, 0.99, 11.0, 10.0)}) is None
    assert fastest({"linears": lucky}) is None
    assert fastest({"embeddings": sure, "linears": lucky}) == "embeddings"
