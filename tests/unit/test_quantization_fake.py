from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compress.artifact import Artifact
from compress.models.loading import load_torch
from compress.quantization.fake import PACE, FakeEmbedding, FakeLinear, LearnedRange, LearnedStep, fake_weight
from compress.quantization.fake_layers import (
    insert_fakes,
    learned_ranges,
    match_layers,
    remove_fakes,
    rounded_weights,
    unlike_training,
)
from compress.quantization.products import Product
from compress.quantization.ranges import Range
from compress.quantization.rules import place, rules_for
from compress.quantization.writing import Int8Format, quantize_weight, write_int8
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
RNG = np.random.default_rng(0)
VALUES = RNG.normal(0, 2, (3, 5, 8)).astype(np.float32)
RANGES = (Range(-3.1, 4.2), Range(0.0, 2.0), Range(-1.5, 0.0), Range(-0.17, 7.0))


def quantize_dequantize(values: np.ndarray, chosen: Range) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear are defined to compute, in float32."""
    scale = np.float32(chosen.scale)
    integers = np.clip(np.rint(values / scale) + chosen.zero_point, 0, 255)
    return (integers - chosen.zero_point).astype(np.float32) * scale


@pytest.mark.parametrize("chosen", RANGES)
def test_forward_is_quantize_then_dequantize(chosen: Range) -> None:
    learned = LearnedRange(chosen)
    got = learned(torch.from_numpy(VALUES)).detach().numpy()
    np.testing.assert_array_equal(got, quantize_dequantize(VALUES, chosen))
    assert len(np.unique(got)) <= 256
    assert float(learned(torch.zeros(1, 1)).detach()) == 0.0


def test_symmetric_range_has_no_zero_point() -> None:
    chosen = Range(-1.0, 2.0)
    got = LearnedRange(chosen, "int8")(torch.from_numpy(VALUES)).detach().numpy()
    scale = np.float32(2.0 / 127)
    np.testing.assert_array_equal(got, np.clip(np.rint(VALUES / scale), -128, 127).astype(np.float32) * scale)


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("chosen", RANGES)
def test_a_learned_range_is_read_back_as_the_graph_will_hold_it(chosen: Range, activation: str) -> None:
    learned = LearnedRange(chosen, activation)  # type: ignore[arg-type]
    learned.growth.data.fill_(0.3 * PACE)
    read, scale = learned.read(), float(learned.scale.detach())
    assert scale == pytest.approx(
        np.exp(0.3) * (chosen.scale if activation == "uint8" else chosen.symmetric_scale), rel=1e-6
    )
    if activation == "uint8":
        assert (np.float32(read.scale), read.zero_point) == (np.float32(scale), chosen.zero_point)
    else:
        assert np.float32(read.symmetric_scale) == np.float32(scale)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [7, 8])
def test_weights_round_as_the_writer_rounds_them(bits: int, per_channel: bool) -> None:
    weight = RNG.normal(size=(6, 10)).astype(np.float32)
    weight[2] = 0
    integers, scale = quantize_weight(weight.T, bits, per_channel=per_channel)
    got = fake_weight(torch.from_numpy(weight), bits, per_channel=per_channel)
    np.testing.assert_array_equal(got.numpy(), (integers.astype(np.float32) * scale).T)


def test_weight_gradient_passes_the_rounding_unchanged() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    upstream = torch.arange(24.0).reshape(4, 6)
    (fake_weight(weight, 8) * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, upstream)


def test_gradients_of_the_range_by_hand() -> None:
    values = torch.tensor([[-9.0, -0.6, 0.0, 1.3, 2.2, 90.0]], requires_grad=True)
    scale, low, high = torch.tensor(0.5, requires_grad=True), -4, 6
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    (LearnedStep.apply(values, scale, low, high) * upstream).sum().backward()
    assert values.grad is not None
    assert scale.grad is not None
    assert values.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 5.0, 0.0]]
    slope = 1 * -4 + 2 * (-1 + 1.2) + 3 * 0 + 4 * (3 - 2.6) + 5 * (4 - 4.4) + 6 * 6
    assert float(scale.grad) == pytest.approx(slope / np.sqrt(6 * high), rel=1e-5)


def test_gradient_of_the_scale_is_the_slope_of_its_definition() -> None:
    """LSQ holds the rounding error, in steps, still: ``clip(v / s) * s + error * s`` then has a slope."""
    values, low, high, s = VALUES[0].astype(np.float64), -20, 30, 0.11
    error = np.where((values / s > low) & (values / s < high), np.rint(values / s) - values / s, 0)

    def surrogate(scale: float) -> float:
        return float((np.clip(values / scale, low, high) * scale + error * scale).sum())

    difference = (surrogate(s + 1e-7) - surrogate(s - 1e-7)) / 2e-7
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    LearnedStep.apply(torch.from_numpy(values), scale, low, high).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(difference / np.sqrt(8 * high), rel=1e-4)


def test_training_a_range_finds_the_least_error() -> None:
    """Descent on the squared error shrinks a range that is four times too wide to about what it should be."""
    values = torch.from_numpy(RNG.normal(0, 1, (64, 32)).astype(np.float32))
    learned = LearnedRange(Range(-64.0, 64.0))
    optimizer = torch.optim.Adam(learned.parameters(), lr=2e-3)
    first = float((learned(values) - values).detach().square().mean())
    for _ in range(100):
        optimizer.zero_grad()
        (learned(values) - values).square().mean().backward()
        optimizer.step()
    assert float((learned(values) - values).detach().square().mean()) < first / 10
    assert learned.read().high < 16


def test_a_table_has_a_scale_for_each_column() -> None:
    table = nn.Embedding(5, 4, padding_idx=0)
    integers, scale = quantize_weight(table.weight.detach().numpy(), 8)
    fake = FakeEmbedding(table)
    ids = torch.tensor([[1, 4], [0, 1]])
    rows = (integers.astype(np.float32) * scale)[ids.numpy()]
    np.testing.assert_array_equal(fake(ids).detach().numpy(), rows)
    fake(ids).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 0.0, 1.0]
    np.testing.assert_array_equal(fake.rounded().detach().numpy(), integers.astype(np.float32) * scale)


@pytest.fixture
def tiny(tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact]) -> tuple[nn.Module, object]:
    return load_torch(tiny_classifier(), TASK), onnx.load(tiny_exported().file())


def integers_of(exported: onnx.ModelProto) -> list[Product]:
    placed = place(exported, rules_for("onnxruntime"))
    return [it.product for it in placed if it.precision == "int8" and it.product is not None]


def test_layers_are_found_by_weight_even_where_names_say_nothing(tiny: tuple[nn.Module, onnx.ModelProto]) -> None:
    model, exported = tiny
    named = match_layers(exported, integers_of(exported), model)
    assert len(named.linears) == 13
    assert all(node.rpartition("/")[0] == path for node, path in named.paths.items())
    for i, node in enumerate(exported.graph.node):
        node.name = f"n{i}"
    bare = match_layers(exported, integers_of(exported), model)
    assert list(bare.paths.values()) == list(named.paths.values())
    with torch.no_grad():
        model.get_submodule(named.linears and named.paths[named.linears[0].node]).weight += 1
    less = match_layers(exported, integers_of(exported), model)
    assert len(less.linears) == 12


def test_layers_that_read_one_tensor_share_one_range(tiny: tuple[nn.Module, onnx.ModelProto]) -> None:
    model, exported = tiny
    layers = match_layers(exported, integers_of(exported), model)
    names = set(model.state_dict())
    insert_fakes(model, layers, {product.input: Range(-2.0, 3.0) for product in layers.linears}, Int8Format())
    attention = model.get_submodule("bert.encoder.layer.0.attention.self")
    ranges = [attention.get_submodule(name).input_range for name in ("query", "key", "value")]
    assert len(set(map(id, ranges))) == 1
    added = set(model.state_dict()) - names
    tensors = {product.input for product in layers.linears}
    assert (len(added), all(name.endswith("learned.growth") for name in added)) == (len(tensors), True)
    twin = copy.deepcopy(model)
    again = twin.get_submodule("bert.encoder.layer.0.attention.self")
    assert again.key.input_range is again.query.input_range is not ranges[0]


def test_a_layer_that_runs_twice_has_one_range_that_covers_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)

    model = Twice()
    weight = model.inner.weight.detach().numpy().T
    products = [Product(f"inner/{i}", "MatMul", "linear", f"x{i}", "w", 16, 16) for i in (0, 1)]
    nodes = [onnx.helper.make_node("MatMul", [it.input, "w"], [f"y{it.input}"], name=it.node) for it in products]
    graph = onnx.helper.make_graph(
        nodes, "g", [], [], [onnx.numpy_helper.from_array(np.ascontiguousarray(weight), "w")]
    )
    layers = match_layers(onnx.helper.make_model(graph), products, model)
    insert_fakes(model, layers, {"x0": Range(-1.0, 1.0), "x1": Range(0.0, 3.0)}, Int8Format())
    assert isinstance(model.inner, FakeLinear)
    assert type(model.outer) is nn.Linear
    read = learned_ranges(model, layers)
    assert read["inner/0"] == read["inner/1"]
    assert read["inner/0"].high == pytest.approx(3.0, abs=0.02)
    assert read["inner/0"].low == pytest.approx(-1.0, abs=0.02)


def test_fakes_come_out_and_leave_the_trained_parameters(tiny: tuple[nn.Module, onnx.ModelProto]) -> None:
    model, exported = tiny
    kinds = [type(module) for module in model.modules()]
    parameters = dict(model.named_parameters())
    layers = match_layers(exported, integers_of(exported), model)
    insert_fakes(model, layers, {product.input: Range(-2.0, 3.0) for product in layers.linears}, Int8Format())
    assert sum(isinstance(module, FakeLinear) for module in model.modules()) == 13
    remove_fakes(model)
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_a_graph_unlike_training_is_found_out(tiny: tuple[nn.Module, onnx.ModelProto]) -> None:
    model, exported = tiny
    how = Int8Format(weight_bits=7)
    layers = match_layers(exported, integers_of(exported), model)
    chosen = {product.input: Range(-2.0, 3.0) for product in layers.linears}
    insert_fakes(model, layers, chosen, how)
    weights, learned = rounded_weights(model, layers), learned_ranges(model, layers)
    placements = place(exported, rules_for("onnxruntime"))
    ranges = {product.input: learned[product.node] for product in layers.linears}
    assert unlike_training(write_int8(exported, placements, ranges, how), layers, weights, learned) == []
    first = layers.linears[0]
    wider = ranges | {first.input: Range(-2.0, 3.1)}
    readers = [it.node for it in layers.linears if it.input == first.input]
    assert unlike_training(write_int8(exported, placements, wider, how), layers, weights, learned) == readers
    eight = write_int8(exported, placements, ranges, Int8Format(weight_bits=8))
    assert unlike_training(eight, layers, weights, learned) == [it.node for it in layers.linears]
