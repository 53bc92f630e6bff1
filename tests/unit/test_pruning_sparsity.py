"""2:4 sparsity: the mask is the best of all, the right layers get it, and ONNX graphs keep it along the inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from compress.distillation.sparsity import zeros_kept
from compress.errors import RecipeError, RunError, UsageError
from compress.export.sparsity import sparse_weights
from compress.models.families import encoder_layers
from compress.models.loading import load_torch
from compress.models.sparsity import is_sparse24, mask24, require_sparse, sparse_linears
from compress.models.structure import keep_units
from compress.pruning.semi_structured import energy_kept, share_of_zeros, sparsify
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
CHOICES = list(itertools.combinations(range(4), 2))


@pytest.fixture
def model(tiny_classifier: Callable[..., Path]) -> nn.Module:
    return load_torch(tiny_classifier(), TASK)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), groups=st.integers(1, 6), levels=st.integers(1, 9))
def test_no_other_choice_of_two_keeps_more_of_a_group(seed: int, rows: int, groups: int, levels: int) -> None:
    """Few levels make ties, among them groups that are zero altogether."""
    size = np.random.default_rng(seed).integers(-levels, levels + 1, (rows, groups, 4)).astype(np.float32)
    mask = mask24(np.abs(size).reshape(rows, -1)).reshape(size.shape)
    assert (mask.sum(axis=-1) == 2).all()
    kept = (np.abs(size) * mask).sum(axis=-1)
    best = np.max([np.abs(size[..., list(choice)]).sum(axis=-1) for choice in CHOICES], axis=0)
    np.testing.assert_array_equal(kept, best)
    squares = (size.astype(np.float64) ** 2).reshape(rows, -1)
    share = (squares * mask.reshape(rows, -1)).sum() / squares.sum() if squares.any() else 1.0
    assert energy_kept(size.reshape(rows, -1), mask.reshape(rows, -1)) == pytest.approx(share)


def test_of_equal_weights_the_first_two_stay_and_every_weight_that_is_left_belongs_to_its_own_mask() -> None:
    assert mask24(np.ones((1, 4))).tolist() == [[True, True, False, False]]
    weight = np.random.default_rng(0).normal(size=(8, 16))
    sparse = weight * mask24(np.abs(weight))
    np.testing.assert_array_equal(mask24(np.abs(sparse)), mask24(np.abs(weight)))


@pytest.mark.parametrize(
    ("weight", "sparse"),
    [
        ([[1, 0, 0, 2]], True),
        ([[0, 0, 0, 2]], True),
        ([[1, 0, 3, 2]], False),
        ([[0, 1, 2, 0, 0, 1, 2, 0]], True),
        ([[0, 0, 1, 1, 1, 1, 0, 0]], True),
        ([[0, 1, 1, 1, 1, 0, 0, 0]], False),
        ([[1, 0, 0, 2, 0, 0]], False),
        ([[0, 0, 0, 0]], False),
        ([1, 0, 0, 2], False),
    ],
)
def test_pattern(weight: list[object], sparse: bool) -> None:
    assert is_sparse24(np.array(weight)) is sparse


def test_linear_layers_of_the_encoder_become_sparse_and_nothing_else_changes(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decisions = {it.path: it for it in sparsify(model)}
    sparse = {path for path, it in decisions.items() if it.sparse}
    assert sparse == set(sparse_linears(model))
    parts = ("attention.self.query", "attention.self.key", "attention.self.value")
    parts += ("attention.output.dense", "intermediate.dense", "output.dense")
    assert sparse == {f"bert.encoder.layer.{layer}.{part}" for layer in (0, 1) for part in parts}
    assert {it.reason.partition(" ")[0] for it in decisions.values() if not it.sparse} == {"an", "outside"}
    for name, tensor in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        if path in sparse and kind == "weight":
            mask = tensor != 0
            assert torch.equal(tensor[mask], before[name][mask])
            assert mask.float().mean() == 0.5
            assert not torch.signbit(tensor[~mask]).any(), "a zero has no sign"
            share = (tensor.double().square().sum() / before[name].double().square().sum()).item()
            assert decisions[path].energy == pytest.approx(share, abs=1e-9)
        else:
            assert torch.equal(tensor, before[name]), name
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert share_of_zeros(model) == pytest.approx(zeros / sum(p.numel() for p in model.parameters()))


def test_widths_that_sparse_kernels_do_not_take_stay_dense(model: nn.Module) -> None:
    first, second = encoder_layers(model)
    keep_units(first, [2], range(64))
    keep_units(second, range(4), range(40))
    reasons = {it.path.removeprefix("bert.encoder.layer."): it.reason for it in sparsify(model)}
    assert reasons["0.attention.self.query"] == "8 outputs are no multiple of 32"
    assert reasons["1.output.dense"] == "40 inputs are no multiple of 32"
    assert {path for path, reason in reasons.items() if not reason} == {
        "0.intermediate.dense",
        "0.output.dense",
        *(f"1.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")),
    }


def test_by_inputs_the_outputs_change_least_where_inputs_are_not_correlated(model: nn.Module) -> None:
    """The oracle zeroes each of the six pairs of a group and compares the change of the output on orthogonal inputs."""
    path, rng = "bert.encoder.layer.0.attention.self.query", np.random.default_rng(2)
    inputs = np.linalg.qr(rng.normal(size=(40, 32)))[0] * rng.exponential(size=32)
    weight = model.get_submodule(path).weight.detach().double().numpy().copy()
    sparsify(model, sizes=lambda paths: {path: np.sqrt((inputs**2).mean(axis=0)) for path in paths if "query" in path})
    kept = model.get_submodule(path).weight.detach().numpy() != 0
    for output, group in itertools.product(range(3), range(8)):
        at = np.arange(4) + 4 * group
        lost = np.square(inputs[:, at] @ np.where(kept[output, at], 0, weight[output, at])).sum()
        gone = [np.where(np.isin(np.arange(4), pair), weight[output, at], 0) for pair in CHOICES]
        assert lost == pytest.approx(min(np.square(inputs[:, at] @ it).sum() for it in gone))


def test_every_layer_of_a_pruned_model_whose_widths_fit(tiny_classifier: Callable[..., Path]) -> None:
    pruned = load_torch(tiny_classifier(pruned=True), TASK)
    assert all(it.sparse for it in sparsify(pruned, multiple=8) if "encoder.layer" in it.path)


def test_excluded_layers_stay_dense_and_a_glob_that_matches_nothing_is_an_error(model: nn.Module) -> None:
    sparsify(model, exclude=["*.layer.0.*", "*.query"])
    assert {path.split(".")[3] for path in sparse_linears(model)} == {"1"}
    assert len(sparse_linears(model)) == 5
    with pytest.raises(RecipeError, match="matches no linear layer"):
        sparsify(model, exclude=["classifier"])
    with pytest.raises(UsageError, match="No linear layer") as caught:
        sparsify(model, multiple=128)
    assert "32 inputs are no multiple of 128" in caught.value.value


def test_vision_transformer(tiny_images: Callable[..., Path]) -> None:
    vit = load_torch(tiny_images("vit"), ImageClassification(("bad", "fine", "good")))
    decisions = sparsify(vit)
    assert sum(it.sparse for it in decisions) == 12
    assert {it.reason for it in decisions if not it.sparse} == {
        "a convolution that cuts an image into patches",
        "outside the encoder's layers (pooler, classifier)",
    }


def test_every_step_of_adamw_leaves_zeros_zero_and_the_rest_as_if_the_zeros_were_not_there() -> None:
    """The oracle holds the two weights of each group that stay as a matrix of their own."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=False)
    mask = torch.from_numpy(mask24(linear.weight.detach().abs().numpy()))
    with torch.no_grad():
        linear.weight.mul_(mask)
    kept = linear.weight.detach()[mask].clone().requires_grad_()
    learners = [torch.optim.AdamW([weight], lr=0.05, weight_decay=0.1, fused=True) for weight in (linear.weight, kept)]
    with zeros_kept(linear) as paths:
        assert paths == ("",)
        for _ in range(20):
            inputs, targets = torch.randn(16, 8), torch.randn(16, 6)
            whole = torch.zeros(6, 8).masked_scatter(mask, kept)
            for weight, learner in zip((linear.weight, whole), learners, strict=True):
                learner.zero_grad()
                (inputs @ weight.T - targets).square().mean().backward()
                parameters = learner.param_groups[0]["params"]
                torch.nn.utils.clip_grad_norm_(parameters, 0.05)
                learner.step()
            assert not linear.weight[~mask].any()
            torch.testing.assert_close(linear.weight.detach()[mask], kept.detach())
    before = linear.weight.detach().clone()
    (linear(inputs) - targets).square().mean().backward()
    learners[0].step()
    assert linear.weight[~mask].any(), "outside the context zeros learn again"
    assert not torch.equal(before, linear.weight)


def test_a_broken_pattern_is_an_error() -> None:
    linear = nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        linear.weight.mul_(torch.from_numpy(mask24(linear.weight.detach().abs().numpy())))
    with pytest.raises(RunError, match="no longer are"), zeros_kept(linear), torch.no_grad():
        linear.weight.add_(1)
    require_sparse(linear, [])
    with zeros_kept(linear) as paths:
        assert paths == ()


def products(weights: dict[str, np.ndarray], nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    made = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], made))


def test_graphs_are_read_along_the_axis_that_is_summed() -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(8, 16)).astype(np.float32)
    weight = dense * mask24(np.abs(dense))  # (outputs, inputs)
    integers, scales = np.rint(weight / 0.05).astype(np.int8), np.full(8, 0.05, np.float32)
    zeros = np.zeros(8, np.int8)
    weights = {"kn": weight.T, "nk": weight, "dense": dense.T, "q": integers.T, "s": scales, "z": zeros}
    weights |= {"wrong": np.ascontiguousarray(weight), "half": weight.T.astype(np.float16), "one": zeros + 1}
    nodes = [
        helper.make_node("MatMul", ["x", "kn"], ["a"], "matmul"),
        helper.make_node("Gemm", ["x", "nk"], ["b"], "gemm", transB=1),
        helper.make_node("Gemm", ["x", "kn"], ["c"], "gemm plain"),
        helper.make_node("MatMul", ["x", "dense"], ["d"], "dense"),
        helper.make_node("MatMul", ["x", "wrong"], ["e"], "2:4 along the outputs"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["qw"], axis=1),
        helper.make_node("MatMul", ["x", "qw"], ["f"], "integers"),
        helper.make_node("DequantizeLinear", ["q", "s", "one"], ["shifted"], axis=1),
        helper.make_node("MatMul", ["x", "shifted"], ["g"], "zero point"),
        helper.make_node("Cast", ["half"], ["float"], to=1),
        helper.make_node("MatMul", ["x", "float"], ["h"], "cast"),
        helper.make_node("Transpose", ["nk"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["i"], "transposed"),
        helper.make_node("MatMul", ["a", "b"], ["y"], "attention"),
    ]
    found = sparse_weights(products(weights, nodes))
    assert found.sparse == ("matmul", "gemm", "gemm plain", "integers", "cast", "transposed")
    assert found.dense == ("dense", "2:4 along the outputs")
