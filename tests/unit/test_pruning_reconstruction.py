"""Reconstruction against numpy's least squares, and its promises in every family."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from compress.data.encoded import Encoded
from compress.errors import UsageError
from compress.models.depth import drop_layers
from compress.models.families import encoder_layers
from compress.models.structure import keep_units
from compress.pruning.positions import token_weights
from compress.pruning.reconstruction import reconstruct
from compress.pruning.stream import Stream, Sublayer, sublayers

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("bert", "distilbert", "electra", "roberta", "vit")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def dense(family: str) -> PreTrainedModel:
    torch.manual_seed(2)
    options: dict[str, object] = {"num_labels": 3, "initializer_range": 0.3}
    if family == "vit":
        image = {"image_size": 8, "patch_size": 4, "num_channels": 1}
        return AutoModelForImageClassification.from_config(
            AutoConfig.for_model("vit", **SIZES, **image, **options)
        ).eval()
    sizes: dict[str, int] = (
        {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24} if family == "distilbert" else SIZES
    )
    config = AutoConfig.for_model(family, vocab_size=50, max_position_embeddings=16, pad_token_id=0, **sizes, **options)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def images() -> Encoded:
    rng = np.random.default_rng(5)
    return Encoded({"pixel_values": [rng.normal(size=(1, 8, 8)).astype(np.float32) for _ in range(24)]}, {}, None, 5)


@pytest.fixture
def inputs(request: pytest.FixtureRequest, tiny_encoded: Encoded, images: Encoded) -> Encoded:
    return images if request.getfixturevalue("family") == "vit" else tiny_encoded


def cut(model: PreTrainedModel, *keep: tuple[list[int], range]) -> PreTrainedModel:
    pruned = copy.deepcopy(model)
    for layer, (heads, neurons) in zip(encoder_layers(pruned), keep, strict=True):
        keep_units(layer, heads, neurons)
    return pruned


def observed(model: PreTrainedModel, examples: Encoded, index: int, part: Sublayer) -> dict[str, np.ndarray]:
    """What one example shows at a sub-layer: inputs and stream (tokens, features), and its tokens' weights."""
    batch = {name: torch.from_numpy(array) for name, array in examples.batch([index]).items()}
    last = part.layer.module is encoder_layers(model)[-1].module
    with torch.no_grad(), part.observed() as seen:
        try:
            model(**batch)
        except Exception as ended:
            assert type(ended).__name__ == "_SeenError"  # noqa: PT017
    shown = {name: tensor[0].double().numpy() for name, tensor in seen.items()}
    return shown | {"weights": token_weights(model, batch, len(shown["stream"]), last)[0].double().numpy()}


def error_after(pruned: PreTrainedModel, model: PreTrainedModel, examples: Encoded, which: int) -> float:
    """Mean squared difference of the streams after a sub-layer, by the tokens' weights."""
    total = weight = 0.0
    for index in range(len(examples)):
        new = observed(pruned, examples, index, sublayers(pruned)[which])
        old = observed(model, examples, index, sublayers(model)[which])
        total += float((new["weights"][:, None] * (new["stream"] - old["stream"]) ** 2).sum())
        weight += float(new["weights"].sum())
    return total / weight


@pytest.mark.parametrize("which", [0, 1])
def test_the_first_sublayer_that_changed_gets_the_least_squares_solution(tiny_encoded: Encoded, which: int) -> None:
    damp = 0.1
    model = dense("bert")
    pruned = cut(model, ([0, 1, 2, 3], range(9)) if which else ([1, 3], range(24)), ([0, 1, 2, 3], range(24)))
    part = sublayers(pruned)[which]
    weight, bias = part.projection.weight.detach().double().numpy(), part.projection.bias.detach().double().numpy()
    new = [observed(pruned, tiny_encoded, i, part) for i in range(len(tiny_encoded))]
    old = [observed(model, tiny_encoded, i, sublayers(model)[which]) for i in range(len(tiny_encoded))]
    x = np.concatenate([one["inputs"] for one in new])
    error = np.concatenate([after["stream"] - now["stream"] for now, after in zip(new, old, strict=True)])
    ridge = np.sqrt(damp * (x**2).mean() * len(x)) * np.eye(x.shape[1])
    rows = np.block([[x, np.ones((len(x), 1))], [ridge, np.zeros((x.shape[1], 1))]])
    change = np.linalg.lstsq(rows, np.concatenate([error, np.zeros((x.shape[1], 16))]), rcond=None)[0]
    reconstruct(pruned, model, tiny_encoded, 5, damp=damp)
    np.testing.assert_allclose(part.projection.weight.detach(), weight + change[:-1].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(part.projection.bias.detach(), bias + change[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_removed_changes_nothing(family: str, inputs: Encoded) -> None:
    model = dense(family)
    same = copy.deepcopy(model)
    reconstruct(same, model, inputs, 5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_shrink_in_every_family_with_sublayers_gone(family: str, inputs: Encoded) -> None:
    model = dense(family)
    pruned = cut(model, ([0, 2], range(0)), ([], range(10)))
    fitted = copy.deepcopy(pruned)
    seen: list[tuple[int, int]] = []
    reconstruct(fitted, model, inputs, 5, count=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for which in range(4):
        assert error_after(fitted, model, inputs, which) < 0.9 * error_after(pruned, model, inputs, which)
    changed = {
        name for name, tensor in pruned.state_dict().items() if not torch.equal(tensor, fitted.state_dict()[name])
    }
    projections = {id(parameter) for part in sublayers(pruned) for parameter in part.projection.parameters()}
    assert changed == {name for name, parameter in pruned.named_parameters() if id(parameter) in projections}


def test_a_bias_that_stands_alone_becomes_the_mean_of_what_is_missing(tiny_encoded: Encoded) -> None:
    model = dense("bert")
    pruned = cut(model, ([], range(24)), ([0, 1, 2, 3], range(24)))
    parts = sublayers(pruned)[0], sublayers(model)[0]
    shown = [
        [observed(which, tiny_encoded, i, part)["stream"] for i in range(len(tiny_encoded))]
        for which, part in zip((pruned, model), parts, strict=True)
    ]
    wanted = parts[0].projection.bias.detach().numpy() + (np.concatenate(shown[1]) - np.concatenate(shown[0])).mean(0)
    reconstruct(pruned, model, tiny_encoded, 5)
    np.testing.assert_allclose(parts[0].projection.bias.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_the_batch_size_changes_nothing_and_neither_does_padding(tiny_encoded: Encoded) -> None:
    model = dense("bert")
    results = []
    for batch_size in (1, 7, 24):
        pruned = cut(model, ([0, 2], range(9)), ([1], range(10)))
        reconstruct(pruned, model, tiny_encoded, batch_size)
        results.append(torch.cat([part.projection.weight.detach().flatten() for part in sublayers(pruned)]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-4)


def test_a_stream_that_advances_equals_a_whole_pass(tiny_encoded: Encoded) -> None:
    model = dense("roberta")
    with torch.no_grad():
        stream = Stream(model, tiny_encoded, 24)
        stream.advance()
        got = stream.observe(stream.sublayers()[1], 0)["stream"]
        order = tiny_encoded.batches(24, by_length=True)[0]
        for row, index in enumerate(order):
            whole = observed(model, tiny_encoded, int(index), sublayers(model)[3])["stream"]
            np.testing.assert_allclose(got[row, : len(whole)], whole, rtol=1e-4, atol=1e-5)


def test_models_of_different_depth_are_refused(tiny_encoded: Encoded) -> None:
    model = dense("bert")
    shallow = copy.deepcopy(model)
    drop_layers(shallow, [0])
    with pytest.raises(UsageError, match="same layers"):
        reconstruct(shallow, model, tiny_encoded, 5)
