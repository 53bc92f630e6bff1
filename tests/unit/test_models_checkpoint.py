"""A user's model folder is looked through before anything opens it."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.errors import ModelError
from compress.models.checkpoint import LARGEST_HEADER, look_through, read_header
from compress.models.files import model_files
from compress.reading import Unreadable

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: object, data: int = 32, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def test_a_header_that_holds(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "w", GOOD)) == {"a": 6, "b": 4}


def changed(**entries: object) -> dict[str, Any]:
    return {**GOOD, "b": {**GOOD["b"], **entries}}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (changed(data_offsets=[20, 28]), "begins at byte 20, not at 24"),
        (changed(data_offsets=[0, 8]), "begins at byte 0, not at 8"),
        (changed(data_offsets=[32, 40]), "begins at byte 32, not at 24"),
        (changed(data_offsets=[24, 1 << 50], shape=[(1 << 49) - 12]), "in a file that has 32 for them"),
        (changed(data_offsets=[24, 20]), "has -4 bytes"),
        (changed(dtype="F32"), "has 8 bytes for 4 elements of F32"),
        (changed(dtype="F128"), "unknown type \"F128\""),
        (changed(dtype=["F16"]), "unknown type"),
        (changed(shape=[1 << 62, 1 << 62]), "has 8 bytes for"),
        (changed(shape=[-4]), "a shape or a place that is none"),
        (changed(shape=[4.0]), "a shape or a place that is none"),
        (changed(shape=[True, 4]), "a shape or a place that is none"),
        (changed(data_offsets=[24]), "a shape or a place that is none"),
        ({**GOOD, "b": 3}, "unknown type null"),
        ([1], "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 5000, "nested too deeply"),
        (b'{"a":1,"a":2}', "stands twice"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, header: object, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_header(write(tmp_path / "w", header))


def test_lengths_that_lie(tmp_path: Path) -> None:
    for length in (10_000, 1 << 30, 1 << 63):
        with pytest.raises(Unreadable, match="the header is said to have"):
            read_header(write(tmp_path / "w", GOOD, length=length))
    (tmp_path / "w").write_bytes(b"")
    with pytest.raises(Unreadable, match="the file has 0"):
        read_header(tmp_path / "w")


def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """The file is sparse: nothing of that size is on the disk, and nothing comes into memory."""
    with (tmp_path / "w").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate((1 << 30) + 8)
    with pytest.raises(Unreadable, match=f"a header of 1,073,741,824 bytes; at most {LARGEST_HEADER:,}"):
        read_header(tmp_path / "w")


@pytest.fixture
def folder(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_classifier("bert"), tmp_path / "user"))


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_whole_folder_is_accepted(folder: Path, tiny_classifier: Callable[..., Path]) -> None:
    assert look_through(folder)["model_type"] == "bert"
    for family in ("roberta", "distilbert"):
        look_through(tiny_classifier(family))
    look_through(tiny_classifier("bert", pruned=True))


def test_image_folders_are_accepted(tiny_images: Callable[..., Path]) -> None:
    for family in ("resnet", "vit"):
        look_through(tiny_images(family))


def test_a_pickle_is_never_opened_whatever_lies_beside_it(folder: Path) -> None:
    """Transformers would fall back to pytorch_model.bin where only other safetensors files lie."""
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")  # noqa: PTH104
    shutil.copy(folder / "pytorch_model.bin", folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="pickle checkpoint"):
        look_through(folder)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": "pytorch_model.bin"}}, "names a file"),
        ({"weight_map": {"a": "../model.safetensors"}}, "names a file"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names a file"),
        ({"weight_map": {"a": "absent.safetensors"}}, "names a file"),
        ({"weight_map": {}}, "names a file"),
        ({"weight_map": {"a": 3}}, "index of the weights cannot be read"),
        ({"weight_map": [1]}, "index of the weights cannot be read"),
        ([], "index of the weights cannot be read"),
    ],
)
def test_an_index_names_shards_of_its_folder_only(folder: Path, index: object, why: str) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=why):
        look_through(folder)


def test_shards_are_read(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from compress.models.loading import load_torch
    from compress.tasks.text_classification import TextClassification

    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    look_through(folder)
    load_torch(folder, TextClassification(("bad", "fine", "good")))
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    with pytest.raises(ModelError, match="hold the same tensor"):
        look_through(folder)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "needs remote code"),
        ({"attn_implementation": "someone/kernels"}, "implementation from elsewhere"),
        ({"_attn_implementation": "flash_attention_2"}, "implementation from elsewhere"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"vocab_size": 10**9}, "do not fit config.json"),
        ({"hidden_size": 2**30}, "do not fit config.json"),
        ({"num_hidden_layers": 10**6}, "do not fit config.json"),
        ({"num_labels": 10**9}, "do not fit config.json"),
        ({"num_labels": "3"}, "do not fit config.json"),
        ({"max_position_embeddings": 10**9}, "do not fit config.json"),
        ({"hidden_size": 0}, "not a whole number above 0"),
        ({"hidden_size": -32}, "not a whole number above 0"),
        ({"hidden_size": "32"}, "not a whole number above 0"),
        ({"hidden_size": 10**20}, "not a whole number above 0"),
        ({"hidden_size": None}, "not a whole number above 0"),
        ({"vocab_size": [50]}, "not a whole number above 0"),
        ({"num_attention_heads": 5}, "no multiple of"),
        ({"model_type": ["bert"]}, "not supported"),
    ],
)
def test_configs_that_are_refused_before_a_weight_is_read(folder: Path, values: dict[str, Any], why: str) -> None:
    edit(folder, **values)
    with pytest.raises(ModelError, match=why) as caught:
        look_through(folder)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"hidden_sizes": [16, 10**6]}, "do not fit config.json"),
        ({"depths": [1, 10**9]}, "do not fit config.json"),
        ({"embedding_size": 10**9}, "do not fit config.json"),
        ({"hidden_size": 10**9}, "do not fit config.json"),
    ],
)
def test_convolutional_configs_of_an_absurd_size(
    tiny_images: Callable[..., Path], tmp_path: Path, values: dict[str, Any], why: str
) -> None:
    copy = Path(shutil.copytree(tiny_images("resnet"), tmp_path / "net"))
    edit(copy, **values)
    with pytest.raises(ModelError, match=why):
        look_through(copy)


def test_an_adapter_and_a_distributed_checkpoint_are_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter, not a whole model"):
        look_through(folder)
    (folder / "adapter_config.json").unlink()
    shutil.copy(folder / "model.safetensors", folder / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match="distributed checkpoint"):
        look_through(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links_that_lead_outside_are_refused_and_those_of_a_hub_cache_are_not(folder: Path, name: str) -> None:
    cache = folder.parent / "models--x" / "blobs"
    revision = cache.parent / "snapshots" / "0123"
    cache.mkdir(parents=True)
    revision.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.move(file, cache / file.name)
        (revision / file.name).symlink_to(Path("../../blobs") / file.name)
        (folder / file.name).symlink_to(cache / file.name) if file.name == name else shutil.copy(
            cache / file.name, file
        )
    assert look_through(revision)
    with pytest.raises(ModelError, match="leads outside its folder") as caught:
        look_through(folder)
    assert name in caught.value.value
    assert str(folder.parent) not in str(caught.value)


def test_what_has_the_name_of_a_file_and_is_none(folder: Path) -> None:
    (folder / "notes.json").mkdir()
    with pytest.raises(ModelError, match="has the name of a file and is none"):
        model_files(folder)
    (folder / "notes.json").rmdir()
    os.mkfifo(folder / "notes.txt")
    with pytest.raises(ModelError, match="has the name of a file and is none"):
        model_files(folder)
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("notes.txt")
    with pytest.raises(ModelError, match=r"cannot be read|none"):
        model_files(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights can be taken on only by root")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    for place in (folder, *folder.parents[:3]):  # pytest's own folders, which are its user's alone
        place.chmod(0o755)
    (folder / "model.safetensors").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(ModelError, match="cannot be read"):
            look_through(folder)
    finally:
        os.seteuid(0)
