"""Image classification: pixels to inputs against torch's own resizing, fresh models, golden images, counting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.pictures import Picture
from compress.errors import DataError, ModelError, UsageError
from compress.tasks.image_classification import ImageClassification
from compress.tasks.preprocessing import PREPROCESSOR, read_preprocessor, resize

torch = pytest.importorskip("torch")

from compress.models.counting import count_macs, count_parameters  # noqa: E402
from compress.models.fresh_images import fresh_resnet, fresh_vit  # noqa: E402
from compress.models.golden import golden_batch, golden_torch  # noqa: E402
from compress.models.loading import load_torch  # noqa: E402
from compress.models.signature import torch_graph  # noqa: E402
from compress.models.source import take_in  # noqa: E402

TASK = ImageClassification(("bad", "fine", "good"))


@pytest.mark.parametrize("size", [(7, 5), (8, 16), (31, 29), (3, 64)])
@pytest.mark.parametrize(("resample", "mode"), [(2, "bilinear"), (3, "bicubic")])
def test_resizing_is_that_of_an_antialiased_filter(size: tuple[int, int], resample: int, mode: str) -> None:
    """Torch resizes uint8 as Pillow does, but for the last bit of its fixed-point weights."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 12, 3), dtype=np.uint8)
    found = resize(pixels, *size, resample)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None])
    wanted = torch.nn.functional.interpolate(tensor, size=size, mode=mode, antialias=True, align_corners=False)
    gaps = np.abs(found.astype(int) - wanted[0].permute(1, 2, 0).numpy())
    assert (found.dtype, found.shape) == (np.uint8, (*size, 3))
    assert gaps.max() <= 1
    assert gaps.mean() < 0.05


@pytest.mark.parametrize("size", [(16, 29), (16, 5), (7, 12), (33, 12)])
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_resizing_is_that_of_pillow(size: tuple[int, int], resample: int) -> None:
    """One axis at a time: which one goes first differs between versions of Pillow."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 12, 3), dtype=np.uint8)
    wanted = np.asarray(image.fromarray(pixels).resize(size[::-1], resample))
    assert np.abs(resize(pixels, *size, resample).astype(int) - wanted).max() <= 1


def test_nearest_repeats_pixels() -> None:
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    np.testing.assert_array_equal(resize(pixels, 4, 4, 0)[..., 0], np.arange(4).reshape(2, 2).repeat(2, 0).repeat(2, 1))


def write(folder: Path, **settings: Any) -> Path:
    (folder / PREPROCESSOR).write_text(json.dumps(settings))
    return folder


def test_levels_are_rescaled_normalised_and_converted(tmp_path: Path) -> None:
    means = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    prepare = read_preprocessor(write(tmp_path, size={"height": 2, "width": 2}, **means), 3)
    pixels = np.full((2, 2, 3), (0, 51, 255), dtype=np.uint8)
    values = prepare(pixels)
    assert (values.dtype, values.shape) == (np.float32, (3, 2, 2))
    np.testing.assert_allclose(values[:, 0, 0], [-0.2, 0.0, 1.0], atol=1e-6)
    assert prepare(pixels[..., :1]).shape == (3, 2, 2)
    grey = read_preprocessor(write(tmp_path, size=2, do_normalize=False, do_rescale=False), 1)
    assert grey(pixels)[0, 0, 0] == round(0.587 * 51 + 0.114 * 255)


def test_centre_crops_and_old_processors(tmp_path: Path) -> None:
    crop = {"size": {"shortest_edge": 4}, "crop_size": 2, "do_center_crop": True, "do_normalize": False}
    prepare = read_preprocessor(write(tmp_path, **crop), 1)
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8, 1)
    np.testing.assert_allclose(prepare(pixels)[0] * 255, [[11, 12], [19, 20]], atol=1e-4)
    old = read_preprocessor(write(tmp_path, size=224, crop_pct=0.875), 3)
    assert (old.shape, old.shortest) == ((3, 224, 224), 256)
    for settings in (
        {"size": {"shortest_edge": 4}},
        {"size": {"shortest_edge": 2}, "crop_size": 4, "do_center_crop": True},
        {"size": 4, "do_resize": False},
        {"size": {"height": 4, "width": 4}, "do_center_crop": True, "crop_size": 2},
    ):
        with pytest.raises(ModelError, match="same size"):
            read_preprocessor(write(tmp_path, **settings), 3)
    with pytest.raises(ModelError, match="filter"):
        read_preprocessor(write(tmp_path, size=4, resample=1), 3)
    (tmp_path / PREPROCESSOR).unlink()
    with pytest.raises(ModelError, match="has no preprocessor"):
        read_preprocessor(tmp_path, 3)


@pytest.mark.parametrize(("family", "tokens"), [("resnet", 1), ("vit", 17)])
def test_the_signature_and_the_length_are_the_models(
    tiny_images: Callable[..., Path], family: str, tokens: int
) -> None:
    folder = tiny_images(family)
    side = 8 if family == "vit" else 16
    (spec,) = torch_graph(folder, TASK).inputs
    assert (spec.name, spec.dtype, spec.shape) == ("pixel_values", "float32", ("batch", 1, side, side))
    encoded = TASK.encode(folder, [{"image": np.zeros((5, 9), dtype=np.uint8), "label": "good"}])
    assert (encoded.lengths.tolist(), encoded.targets.tolist()) == ([tokens], [2])
    with pytest.raises(DataError, match="A row has no image"):
        TASK.encode(folder, [{"text": "a cat"}])


def test_more_than_one_label_is_refused() -> None:
    with pytest.raises(UsageError, match="exactly one label"):
        ImageClassification.parse({"labels": ["a"], "problem": "multi_label"})


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_golden_images_are_small_and_exactly_what_the_model_saw(tiny_images: Callable[..., Path], family: str) -> None:
    folder = tiny_images(family)
    golden = golden_torch(folder, TASK)
    values = np.array(golden.inputs["pixel_values"], dtype=np.float32)
    np.testing.assert_array_equal(values, golden_batch(folder, TASK)["pixel_values"])
    assert len(values) == 8
    assert len(golden.model_dump_json()) < 40_000
    with torch.no_grad():
        logits = load_torch(folder, TASK)(pixel_values=torch.from_numpy(values)).logits
    np.testing.assert_allclose(np.array(golden.outputs["logits"]), logits.numpy(), atol=1e-6)
    assert np.ptp(logits.numpy(), axis=0).max() > 1e-3, "different images, different logits"


def test_macs_of_a_vision_transformer_are_those_of_the_definition(tiny_images: Callable[..., Path]) -> None:
    model = load_torch(tiny_images("vit"), TASK)
    tokens, hidden, neurons = 17, 32, 64
    layer = tokens * (4 * hidden**2 + 2 * hidden * neurons) + 2 * tokens**2 * hidden
    assert count_macs(model) == 16 * 2 * 2 * hidden + 2 * layer + hidden * 3
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_fresh_models_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def build(name: str, seed: int) -> bytes:
        folder = tmp_path / name
        folder.mkdir()
        fresh_vit(
            TASK,
            folder,
            image_size=8,
            num_channels=3,
            patch_size=4,
            layers=1,
            hidden=16,
            heads=2,
            intermediate=8,
            seed=seed,
        )
        return (folder / "model.safetensors").read_bytes()

    assert build("a", 0) == build("b", 0) != build("c", 1)
    with pytest.raises(UsageError, match="do not divide"):
        fresh_vit(
            TASK,
            tmp_path,
            image_size=9,
            num_channels=1,
            patch_size=2,
            layers=1,
            hidden=16,
            heads=2,
            intermediate=8,
            seed=0,
        )
    with pytest.raises(UsageError, match="a width and a depth"):
        fresh_resnet(TASK, tmp_path, image_size=16, num_channels=1, stem=8, widths=(8,), depths=(1, 1), seed=0)


def test_a_users_image_classifier_is_taken_in(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "user"
    shutil.copytree(tiny_images("resnet"), source)
    config = json.loads((source / "config.json").read_text())
    del config["image_size"]
    (source / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    options = take_in(str(source), tmp_path / "out", "image-classification", {"bad": "worse"})
    assert options["labels"] == ["worse", "fine", "good"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_size"] == 16
    task = ImageClassification.parse(options)
    first, second = (golden_torch(folder, task).outputs for folder in (source, tmp_path / "out"))
    assert first == second


def test_a_preprocessor_of_another_size_is_refused(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "user"
    shutil.copytree(tiny_images("vit"), source)
    settings = json.loads((source / PREPROCESSOR).read_text())
    write(source, **(settings | {"size": {"height": 16, "width": 16}}))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="another size"):
        take_in(str(source), tmp_path / "out", "image-classification")


def test_rows_may_hold_pictures_paths_or_pixels(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.save(tmp_path / "a.npy", pixels)
    cells = (pixels, pixels.tolist(), Picture.of_pixels(pixels), str(tmp_path / "a.npy"), tmp_path / "a.npy")
    encoded = TASK.encode(tiny_images("vit"), [{"image": cell} for cell in cells])
    for values in encoded.inputs["pixel_values"]:
        np.testing.assert_array_equal(values, encoded.inputs["pixel_values"][0])
