"""Choose a built-in recipe for a model and a folder of data, so that one command is enough to begin."""

from __future__ import annotations

from pathlib import Path

import yaml

from compress.errors import DataError, ModelError, UsageError
from compress.pipeline.source import place_of
from compress.recipe import read_recipe

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev", "val"), "test": ("test",)}


def pick_recipe(model: str, data: Path, *, own_code: bool = False) -> str:
    """Return the text of a recipe: the built-in one that fits the model, with its paths filled in.

    An ``.onnx`` file can only be quantized, cast and built; a torch model is also pruned and distilled, unless its
    classes are its author's.

    Args:
        model: folder, ``.onnx`` file or hub id.
        data: the folder of data.
        own_code: whether the model is named as one that needs its author's code.

    Raises:
        UsageError: ``model`` is a recipe.
        ModelError: the model is a folder or file that does not exist.
        DataError: the folder lacks a train or a validation file.
    """
    place = place_of(model)
    if place.suffix in {".yaml", ".yml"}:
        raise UsageError(
            "--data goes with a model; a recipe names its data itself.",
            value=model,
            fix="Leave --data out, or set the recipe's variables with --var NAME=VALUE.",
        )
    looks_local = model.startswith((".", "/", "~")) or place.suffix == ".onnx"
    if looks_local and not place.exists():
        raise ModelError("The model does not exist.", value=model, fix="Give a folder, an .onnx file or a hub id.")
    usual = "classifier-int8" if own_code else "classifier-cpu"
    text = read_recipe("onnx-int8" if place.suffix == ".onnx" else usual)
    recipe = yaml.safe_load(text)
    recipe["model"] = str(place) if place.exists() else model
    others = {key: value for key, value in recipe["data"].items() if key not in _SPLITS}
    recipe["data"] = {**_find_splits(data), **others}
    head = [line for line in text.splitlines() if line.startswith("#")]
    return "\n".join([*head, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)])


def file_of(data: Path, split: str) -> Path | None:
    """Return the file of a split in a folder, by the names that ``--data`` understands; None if there is none."""
    paths = (data / f"{name}{suffix}" for name in _SPLITS[split] for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _find_splits(folder: Path) -> dict[str, dict[str, str]]:
    if not folder.is_dir():
        raise DataError(
            "--data is not a folder.", value=folder, fix="Give a folder with train.csv, validation.csv, test.csv."
        )
    found = {}
    for split in _SPLITS:
        path = file_of(folder, split)
        if path is not None:
            found[split] = {"path": str(path)}
    for split in ("train", "validation"):
        if split not in found:
            raise DataError(
                f"The data folder has no {split} file.",
                value=folder,
                fix=f"Name it {_SPLITS[split][0]}.csv (or .tsv, .jsonl, .parquet), or write a recipe.",
            )
    return found
