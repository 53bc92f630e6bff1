"""Channel groups, their scores and their removal, against autograd, masking and brute force."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.encoded import Encoded
from compress.errors import DataError, ModelError, RecipeError
from compress.tasks.image_classification import ImageClassification

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

from compress.models.counting import count_macs, count_parameters  # noqa: E402
from compress.models.loading import load_torch, save_torch  # noqa: E402
from compress.models.structure import STRUCTURE, Structure  # noqa: E402
from compress.pruning.channels import MacsTable, channel_groups, masked_channels, remove_channels  # noqa: E402
from compress.pruning.convolution import (  # noqa: E402
    choose_channels,
    prune_channels,
    recalibrate_batchnorm,
    score_channels,
)

TASK = ImageClassification(("bad", "fine", "good"))


@pytest.fixture
def model(tiny_images: Callable[..., Path]) -> Any:
    return load_torch(tiny_images("resnet"), TASK)


@pytest.fixture(scope="module")
def examples() -> Encoded:
    rng = np.random.default_rng(0)
    images = list(rng.normal(size=(12, 1, 16, 16)).astype(np.float32))
    return Encoded({"pixel_values": images}, {}, np.arange(12) % 3)


def pixels(examples: Encoded) -> Any:
    return torch.from_numpy(examples.batch(range(len(examples)))["pixel_values"])


def logits(model: Any, examples: Encoded) -> Any:
    with torch.no_grad():
        return model.eval()(pixel_values=pixels(examples)).logits


def test_groups_follow_the_residual_connections(model: Any) -> None:
    groups = {group.root.removeprefix("resnet."): group for group in channel_groups(model)}
    widths = sorted(group.width for group in groups.values())
    assert widths == [16, 16, 24, 24, 24]
    stem = groups["embedder.embedder.convolution"]
    assert len(stem.outputs) == 4
    assert len(stem.inputs) == 3
    made = [name for group in groups.values() for name in group.outputs]
    assert len(made) == len(set(made))
    assert "classifier.1" not in made
    assert "classifier.1" in {name for group in groups.values() for name in group.inputs}


def test_macs_are_those_of_the_definition(model: Any) -> None:
    table = MacsTable(model, channel_groups(model))
    dense = [group.width for group in channel_groups(model)]
    stem = 8 * 8 * 16 * 1 * 7 * 7
    first = 2 * (4 * 4 * 16 * 16 * 9)
    second = 2 * 2 * (24 * 16 + 24 * 16 * 9 + 3 * 24 * 24 * 9)
    assert count_macs(model) == table.total(dense) == stem + first + second + 24 * 3


def test_a_pruned_network_equals_the_masked_one(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    rng = np.random.default_rng(3)
    kept = {group.root: sorted(rng.choice(group.width, 8, replace=False).tolist()) for group in groups}
    masks = []
    for group in groups:
        mask = torch.zeros(1, group.width)
        mask[0, kept[group.root]] = 1
        masks.append(mask)
    with masked_channels(model, groups, masks):
        wanted = logits(model, examples)
    remove_channels(model, kept)
    assert {group.width for group in channel_groups(model)} == {8}
    torch.testing.assert_close(logits(model, examples), wanted, atol=1e-5, rtol=1e-5)
    table = MacsTable(model, channel_groups(model))
    assert count_macs(model) == table.total([8] * len(groups))


def test_fisher_and_taylor_are_those_of_autograd_one_example_at_a_time(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    found = {name: score_channels(model, TASK, examples, groups, name, 5) for name in ("fisher", "taylor")}
    wanted = {name: [np.zeros(group.width) for group in groups] for name in found}
    for i in range(len(examples)):
        masks = [torch.ones(1, group.width, requires_grad=True) for group in groups]
        with masked_channels(model, groups, masks):
            outputs = model(pixel_values=pixels(examples)[i : i + 1]).logits
        TASK.loss(outputs, torch.from_numpy(examples.targets[i : i + 1])).backward()
        for k, mask in enumerate(masks):
            gradient = mask.grad[0].double().numpy()
            wanted["fisher"][k] += gradient**2 / 2 / len(examples)
            wanted["taylor"][k] += np.abs(gradient) / len(examples)
    for name, scores in found.items():
        for a, b in zip(scores, wanted[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)


def test_the_mask_gradient_is_the_slope_of_the_loss(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    step, one = 1e-2, examples.select([4])
    targets = torch.from_numpy(one.targets)

    def loss(group: int, channel: int, shift: float) -> float:
        masks = [torch.ones(1, g.width, dtype=torch.float64) for g in groups]
        masks[group][0, channel] += shift
        with masked_channels(double, groups, masks), torch.no_grad():
            return float(TASK.loss(double(pixel_values=pixels(one).double()).logits, targets))

    double = copy.deepcopy(model).double()
    scores = score_channels(model, TASK, one, groups, "taylor")
    for group, channel in ((0, 3), (2, 5), (4, 0)):
        slope = (loss(group, channel, step) - loss(group, channel, -step)) / (2 * step)
        assert scores[group][channel] == pytest.approx(abs(slope), rel=0.05, abs=1e-6)


def test_magnitude_counts_the_weights_that_make_and_read_a_channel(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    scores = score_channels(model, TASK, examples, groups, "magnitude")
    last = next(i for i, group in enumerate(groups) if "classifier.1" in group.inputs)
    total = model.classifier[1].weight[:, 0].square().sum()
    for name in groups[last].outputs:
        weight = model.get_submodule(name).weight
        total = total + (weight[0].square().sum() if weight.dim() == 4 else 0)
    readers = [name for name in groups[last].inputs if name != "classifier.1"]
    total = total + sum(model.get_submodule(name).weight[:, 0].square().sum() for name in readers)
    assert scores[last][0] == pytest.approx(float(total.detach()), rel=1e-5)


@pytest.mark.parametrize("importance", ["fisher", "taylor", "magnitude"])
def test_pruning_meets_the_budget_on_the_grid_and_keeps_the_best(
    model: Any, examples: Encoded, importance: str
) -> None:
    groups = channel_groups(model)
    scores = score_channels(model, TASK, examples, groups, importance)
    before = model.get_submodule(groups[0].root).weight.detach().clone()
    done = prune_channels(model, TASK, examples, keep_macs=0.5, importance=importance)
    assert done.macs_after == count_macs(model) <= 0.5 * done.macs_before
    assert all(width % 8 == 0 and width >= 8 for width in done.after.values())
    assert done.before == {group.root: group.width for group in groups}
    best = np.sort(np.argsort(-scores[0], kind="stable")[: done.after[groups[0].root]])
    assert torch.equal(model.get_submodule(groups[0].root).weight, before[best.tolist()])
    assert done.notes()["kept_macs"] == done.macs_after / done.macs_before


def test_a_looser_budget_keeps_at_least_as_much(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    table, scores = MacsTable(model, groups), score_channels(model, TASK, examples, groups)
    total = table.total([group.width for group in groups])
    chosen = [choose_channels(table, scores, share * total, 8) for share in (0.3, 0.5, 0.7, 0.9, 1.0)]
    for small, large in itertools.pairwise(chosen):
        assert all(a <= b for a, b in zip(small, large, strict=True))
    assert chosen[-1] == [group.width for group in groups]


def test_one_step_is_the_best_of_all_steps(model: Any, examples: Encoded) -> None:
    groups = channel_groups(model)
    table, scores = MacsTable(model, groups), score_channels(model, TASK, examples, groups)
    dense = [group.width for group in groups]
    ratios = []
    for i, width in enumerate(dense):
        smaller = [width - 8 if i == j else other for j, other in enumerate(dense)]
        ratios.append(np.sort(scores[i])[:8].sum() / (table.total(dense) - table.total(smaller)))
    chosen = choose_channels(table, scores, table.total(dense) - 1, 8)
    assert [b - a for a, b in zip(chosen, dense, strict=True)] == [8 * (i == np.argmin(ratios)) for i in range(5)]


def test_impossible_requests_are_refused(model: Any, examples: Encoded) -> None:
    with pytest.raises(RecipeError, match="smaller than a network") as caught:
        prune_channels(model, TASK, examples, keep_macs=0.01)
    assert "reachable" in str(caught.value.value)
    with pytest.raises(RecipeError, match="Unknown importance"):
        prune_channels(model, TASK, examples, keep_macs=0.5, importance="fischer")


def test_networks_with_other_parts_are_refused(model: Any, tiny_images: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="cannot be pruned safely") as caught:
        channel_groups(load_torch(tiny_images("vit"), TASK))
    assert "weights of its own" in caught.value.value
    model.resnet.encoder.stages[0].layers[0].layer[0].convolution.groups = 2
    with pytest.raises(ModelError, match="cannot be pruned safely"):
        channel_groups(model)


def test_batchnorm_statistics_are_the_averages_over_batches(model: Any, examples: Encoded) -> None:
    norm = model.resnet.embedder.embedder.normalization
    convolution = model.resnet.embedder.embedder.convolution
    with torch.no_grad():
        batches = convolution(pixels(examples)).split(4)
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variance = torch.stack([batch.var(dim=(0, 2, 3), unbiased=True) for batch in batches]).mean(dim=0)
    before = copy.deepcopy(dict(model.named_parameters()))
    assert recalibrate_batchnorm(model, examples, 4) == 8
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert (norm.momentum, model.training, norm.training) == (0.1, False, False)
    with pytest.raises(DataError, match="fewer than two"):
        recalibrate_batchnorm(model, examples.select([0]))


def test_a_pruned_network_survives_saving(
    model: Any, examples: Encoded, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    prune_channels(model, TASK, examples, keep_macs=0.4)
    save_torch(model, tmp_path, tokenizer_from=tiny_images("resnet"))
    wanted = logits(model, examples)
    np.save(tmp_path / "pixels.npy", pixels(examples).numpy())
    code = (
        "import sys, numpy, torch; from pathlib import Path; from compress.models.loading import load_torch\n"
        "from compress.tasks.image_classification import ImageClassification\n"
        "folder = Path(sys.argv[1]); torch.set_num_threads(1)\n"
        "model = load_torch(folder, ImageClassification(('bad', 'fine', 'good')))\n"
        "out = model(pixel_values=torch.from_numpy(numpy.load(folder / 'pixels.npy'))).logits\n"
        "numpy.save(folder / 'logits.npy', out.detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), wanted.numpy())
    again = load_torch(tmp_path, TASK)
    assert count_parameters(again) == count_parameters(model)
    assert not any(path.suffix in {".bin", ".pt"} for path in tmp_path.iterdir())
    structure = Structure.read(tmp_path)
    assert structure is not None
    wrong = structure.model_copy(update={"channels": {"resnet.nowhere": (8, 8)}})
    wrong.write(tmp_path)
    assert (tmp_path / STRUCTURE).is_file()
    with pytest.raises(ModelError, match="does not belong"):
        load_torch(tmp_path, TASK)
