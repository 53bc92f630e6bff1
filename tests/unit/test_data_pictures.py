"""Images as rows: pixels, files, folders, digests, and the built-in digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.config import DataConfig
from compress.data.digest import rows_digest
from compress.data.encoded import Encoded
from compress.data.pictures import Picture, read_picture
from compress.data.sources import load_data, read_rows
from compress.errors import DataError, MissingCapabilityError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def load(data: dict[str, Any], **options: Any) -> Any:
    return load_data(DataConfig.model_validate(data), text_columns=("image",), **options)


def test_a_picture_is_its_content(tmp_path: Path) -> None:
    first, second = (Picture.of_pixels(pixels) for pixels in (GREY, GREY[..., None]))
    assert first == second
    assert first != Picture.of_pixels(GREY + 1)
    assert first.pixels().shape == (8, 8, 1)
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, GREY)
    one, other = (read_picture(name, tmp_path, "row") for name in ("a.npy", "b.npy"))
    assert one == other
    np.testing.assert_array_equal(one.pixels(), first.pixels())
    assert str(tmp_path) not in repr(one)
    assert rows_digest([{"image": one}]) == rows_digest([{"image": other}]) != rows_digest([{"image": first}])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.5, "neither a path nor pixels"),
        ([[0.5, 1.0]], "whole numbers"),
        ([[0, 256]], "whole numbers"),
        ([[[1, 2]]], "uint8"),
        ("missing.npy", "cannot be read"),
    ],
)
def test_cells_that_hold_no_image_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_picture(value, tmp_path, "file.jsonl, line 2")


def test_empty_cells_are_empty_and_transparency_is_dropped() -> None:
    assert read_picture(" ", None, "row") is None
    assert Picture.of_pixels(np.zeros((2, 2, 4), dtype=np.uint8)).pixels().shape == (2, 2, 3)


def test_files_that_need_pillow_say_so_or_open(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    picture = read_picture("a.png", tmp_path, "row")
    try:
        import PIL  # noqa: F401
    except ImportError:
        with pytest.raises(MissingCapabilityError, match="Pillow"):
            picture.pixels()
    else:
        with pytest.raises(DataError, match="not an image"):
            picture.pixels()


def test_pillow_files_give_their_pixels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture("a.png", tmp_path, "row").pixels()[..., 0], GREY)


def write_folder(root: Path, kinds: dict[str, int], start: int = 0) -> None:
    for kind, count in kinds.items():
        (root / kind).mkdir(parents=True)
        for i in range(count):
            np.save(root / kind / f"{i}.npy", GREY + start + i + 10 * len(kind))


def test_a_folder_of_classes_is_a_table_and_its_splits_are_its_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", {"cat": 3, "horse": 2})
    write_folder(tmp_path / "set" / "validation", {"cat": 1, "horse": 1}, start=100)
    path = str(tmp_path / "set")
    data = load({"train": path, "validation": path, "calibration": {"samples": 2}})
    assert [row["label"] for row in data["train"].rows] == ["cat"] * 3 + ["horse"] * 2
    assert data.labels == ("cat", "horse")
    assert len(data["validation"]) == 2
    assert read_rows(tmp_path / "set" / "train", text_columns=("image",))[0]["image"].pixels().shape == (8, 8, 1)
    with pytest.raises(DataError, match="no images in sub-folders"):
        load({"train": str(tmp_path / "set" / "train" / "cat")})


def test_a_table_names_images_relative_to_itself(tmp_path: Path) -> None:
    write_folder(tmp_path / "files", {"cat": 2})
    (tmp_path / "train.csv").write_text("file,label\nfiles/cat/0.npy,cat\nfiles/cat/1.npy,cat\n")
    data = load({"train": str(tmp_path / "train.csv"), "columns": {"image": "file"}})
    assert [int(row["image"].pixels()[0, 0, 0]) for row in data["train"].rows] == [30, 31]
    (tmp_path / "bad.csv").write_text("image,label\n,cat\n")
    with pytest.raises(DataError, match="A row has no image"):
        load({"train": str(tmp_path / "bad.csv")})


def test_equal_images_in_two_splits_are_an_overlap(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 3})
    write_folder(tmp_path / "validation", {"cat": 1})
    data = {"train": str(tmp_path / "train"), "validation": str(tmp_path / "validation")}
    with pytest.raises(DataError, match="more than one split"):
        load(data)
    dropped = load(data | {"on_overlap": "drop_from_train"})
    assert len(dropped["train"]) == 2


def test_the_built_in_digits() -> None:
    data = load({"builtin": {"name": "digits"}})
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1199,
        "validation": 299,
        "test": 299,
        "calibration": 256,
    }
    assert data.labels == tuple("0123456789")
    assert not data.synthetic
    assert [overlap.count for overlap in data.overlaps] == [0, 0, 0]
    again = load({"builtin": {"name": "digits"}})
    assert {n: s.digest for n, s in again.splits.items()} == {n: s.digest for n, s in data.splits.items()}
    small = load({"builtin": {"name": "digits", "rows": 240}})
    assert {len(small[name]) for name in ("validation", "test")} == {40}
    assert len(small["train"]) == 160
    counts = np.unique([row["label"] for row in small["train"].rows], return_counts=True)[1]
    assert counts.min() >= 14


def test_the_digits_are_those_of_scikit_learn() -> None:
    sets = pytest.importorskip("sklearn.datasets")
    digits = sets.load_digits()
    wanted = sorted(
        (tuple(np.rint(i.ravel() * 255 / 16).astype(int)), t) for i, t in zip(*digits_of(digits), strict=True)
    )
    data = load({"builtin": {"name": "digits"}})
    rows = [row for name in ("train", "validation", "test") for row in data[name].rows]
    found = sorted((tuple(map(int, row["image"].pixels().ravel())), int(row["label"])) for row in rows)
    gaps = [np.abs(np.array(a[0]) - np.array(b[0])).max() for a, b in zip(found, wanted, strict=True)]
    assert max(gaps) <= 1
    assert [a[1] for a in found] == [b[1] for b in wanted]


def digits_of(digits: Any) -> tuple[Any, Any]:
    return digits.images, digits.target


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        ({"builtin": {"name": "digits"}}, ("text",), "not for this task"),
        ({"builtin": {"name": "support-tickets"}}, ("image",), "not for this task"),
    ],
)
def test_built_in_sets_are_refused_for_the_wrong_task(data: Any, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(DataConfig.model_validate(data), text_columns=columns)


def test_more_digits_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="1797"):
        DataConfig.model_validate({"builtin": {"name": "digits", "rows": 1798}})


def test_fixed_shapes_are_stacked_saved_and_loaded(tmp_path: Path) -> None:
    images = list(np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32))
    encoded = Encoded({"pixel_values": images}, {}, np.arange(5), tokens=17)
    assert encoded.fixed
    assert encoded.lengths.tolist() == [17] * 5
    batch = encoded.batch([4, 0])["pixel_values"]
    assert (batch.shape, batch.dtype) == ((2, 1, 4, 4), np.float32)
    np.testing.assert_array_equal(batch[0], images[4])
    assert [len(indices) for indices in encoded.batches(2, by_length=True)] == [2, 2, 1]
    chosen = encoded.select([3, 1])
    assert (chosen.tokens, list(chosen.targets)) == (17, [3, 1])
    encoded.save(tmp_path / "e.npz")
    again = Encoded.load(tmp_path / "e.npz")
    assert (again.tokens, again.fixed, len(again)) == (17, True, 5)
    np.testing.assert_array_equal(again.batch(range(5))["pixel_values"], encoded.batch(range(5))["pixel_values"])
    np.testing.assert_array_equal(again.targets, encoded.targets)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert set(file.files) == {"fixed/pixel_values", "tokens", "targets"}
