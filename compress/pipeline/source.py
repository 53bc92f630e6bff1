"""Take the recipe's own model into the store as the first artifact."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import __version__
from compress.artifact import Artifact, Golden, Graph, PassRecord, create_artifact, hash_json, open_artifact
from compress.bench.launch import without_folders
from compress.disk import size_of
from compress.errors import CompressError, ModelError
from compress.models.files import hash_files
from compress.passes.base import Progress, library_versions
from compress.reading import Unreadable, local_path
from compress.recipe import Recipe
from compress.store import Store
from compress.tasks.base import task_from


@dataclass(frozen=True)
class Source:
    """The recipe's model in the store: its payload folder and its task options."""

    path: Path
    options: Mapping[str, Any]
    cached: bool

    @property
    def trained(self) -> bool:
        """Whether it has a head for the task; a pretrained encoder's options name no labels."""
        return bool(self.options["labels"]) or self.options["problem"] == "regression"


def resolve_source(recipe: Recipe, store: Store, emit: Progress) -> Source | None:
    """Take the model in, or find it in the store; None when the recipe has no model.

    Raises:
        ModelError: the model is missing, is a pickle checkpoint, or does not match its config.
    """
    if recipe.model is None:
        return None
    place = place_of(recipe.expand(recipe.model))
    if not place.exists():
        from compress.models.source import fetch

        emit(f"fetching {recipe.model}")
        place = fetch(recipe.expand(recipe.model))
    key = hash_json(
        {
            "mcompress": __version__,
            "files": _hash_source(place),
            "task": recipe.task,
            "problem": recipe.problem,
            "labels": recipe.labels,
            "max_length": recipe.max_length,
            "versions": library_versions(("transformers", "tokenizers")),
        }
    )
    emit(f"[0] model: {recipe.model}")
    size = size_of(place) if place.is_dir() else place.stat().st_size
    path, cached = store.get_or_build(
        key, f"{recipe.name}:model", lambda payload: _take_in(place, payload, recipe), space=2 * size
    )
    artifact = open_artifact(path)
    return Source(path, artifact.manifest.task, cached)


def place_of(model: str) -> Path:
    """Return where a recipe's model would lie, were it a file or a folder here.

    Raises:
        ModelError: nothing can lie there, or it may not be looked at.
    """
    try:
        return local_path(model)
    except Unreadable as error:
        raise ModelError("The model cannot be read.", value=f"{model}: {error}", fix="Correct `model:`.") from error


@contextmanager
def _first_run() -> Iterator[None]:
    """Turn what a runtime or a tokenizer raises when a new model answers for the first time into a refusal."""
    try:
        yield
    except (CompressError, MemoryError):
        raise
    except Exception as error:  # torch, ONNX Runtime and tokenizers raise types of their own
        lines = without_folders(str(error)).strip().splitlines()
        raise ModelError(
            "The model cannot answer the built-in examples.",
            value=": ".join([type(error).__name__, *lines[:1]]),
            fix="Check that it runs where it comes from, with the tokenizer and config.json that lie beside it.",
        ) from error


def _finite(golden: Golden) -> Golden:
    import numpy as np

    if not np.isfinite(golden.outputs["logits"]).all():
        raise ModelError(
            "The model answers with numbers that are not finite (NaN or infinity).",
            value="logits of the built-in examples",
            fix="Take an earlier checkpoint; training diverged, or its weights overflow.",
        )
    return golden


def _take_in(place: Path, payload: Path, recipe: Recipe) -> Artifact:
    if place.suffix == ".onnx":
        from compress.export.golden import check_longest, golden_onnx
        from compress.export.onnx_source import read_onnx, take_in_onnx
        from compress.export.signature import count_weights, read_graph, traits_of

        options = take_in_onnx(place, payload, recipe.task, recipe.labels, recipe.max_length, recipe.problem)
        with _first_run():
            golden = _finite(golden_onnx(payload, task_from(options)))
            check_longest(payload, task_from(options))
        file = payload / "model.onnx"
        return _record(
            payload,
            "onnx",
            options,
            traits=traits_of(read_onnx(file)),
            graph=read_graph(file),
            parameters=count_weights(file),
            golden=golden,
        )
    from compress.models.counting import count_macs, count_parameters
    from compress.models.golden import golden_torch
    from compress.models.loading import load_torch
    from compress.models.signature import torch_graph
    from compress.models.source import take_in

    options = take_in(str(place), payload, recipe.task, recipe.labels, recipe.max_length, recipe.problem)
    task = task_from(options)
    model = load_torch(payload, task)
    with _first_run():
        golden = _finite(golden_torch(payload, task))
    return _record(
        payload,
        "torch",
        options,
        graph=torch_graph(payload, task),
        parameters=count_parameters(model),
        macs=count_macs(model),
        golden=golden,
    )


def _record(payload: Path, kind: str, options: Mapping[str, Any], *, graph: Graph, **fields: Any) -> Artifact:
    return create_artifact(
        payload,
        kind=kind,
        task=dict(options),
        graphs={"model": graph},
        made_by=PassRecord(name="model", version=1, config={}),
        versions=library_versions(("transformers", "tokenizers")),
        **fields,
    )


def _hash_source(place: Path) -> dict[str, str]:
    """Return the sha256 of every file that is taken in, by its place relative to the model's folder.

    Raises:
        ModelError: a look at the files is enough to refuse them.
    """
    if place.is_dir():
        from compress.models.checkpoint import look_through

        look_through(place)
        return hash_files(place)
    from compress.export.onnx_source import files_read

    folder, files = place.parent, files_read(place)
    out = {}
    for path in files:
        with path.open("rb") as file:
            out[Path(os.path.relpath(path, folder)).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return out
