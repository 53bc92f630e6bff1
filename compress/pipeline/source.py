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
from compress.models.loading import read_config
from compress.models.remote_code import CUSTOM_CODE, RISK, Code, code_of, read_code
from compress.passes.base import Progress, library_versions
from compress.reading import Unreadable, local_path
from compress.recipe import Recipe
from compress.store import Store
from compress.tasks.base import task_from
from compress.trust import trusting


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
    place = _located(recipe, emit)
    key = hash_json(
        {
            "mcompress": __version__,
            "files": _hash_source(place, own_code=recipe.names_code),
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


def _located(recipe: Recipe, emit: Progress) -> Path:
    """Return where the model lies; one of the hub is downloaded first."""
    name = recipe.expand(recipe.model or "")
    place = place_of(name)
    if place.exists():
        return place
    from compress.models.source import fetch

    emit(f"fetching {recipe.model}")
    return fetch(name, own_code=recipe.names_code)


@contextmanager
def trusting_source(recipe: Recipe, emit: Progress) -> Iterator[None]:
    """Let the code of the recipe's model run inside this context, if the recipe names it, and say so.

    Trusted are the files as they are now: one that changes afterwards is refused.

    Raises:
        RecipeError: the recipe names another model.
        ModelError: the code is not as it should be, or the model is not there.
    """
    digests = []
    if recipe.names_code and (place := _located(recipe, emit)).is_dir():
        code = read_code(place, read_config(place))
        if code is not None:
            digests.append(code.digest)
            emit(f"[0] the model's own code is run: {', '.join(code.sources)}. {RISK}")
    with trusting(digests):
        yield


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
    from compress.models.counting import count_parameters, known_macs
    from compress.models.golden import golden_of, golden_torch
    from compress.models.loading import load_torch
    from compress.models.signature import torch_graph
    from compress.models.source import take_in

    own_code = recipe.names_code
    options = take_in(
        str(place), payload, recipe.task, recipe.labels, recipe.max_length, recipe.problem, own_code=own_code
    )
    task = task_from(options)
    model = load_torch(payload, task)
    code = code_of(model)
    with _first_run():
        golden = _finite(golden_torch(payload, task))
        if code is not None:  # whose config.json may say anything of how long a text may be
            golden_of(model, task.encode(payload, [{"text": "the " * task.max_length}]).batch([0]))
    return _record(
        payload,
        "torch",
        options,
        traits=() if code is None else (CUSTOM_CODE,),
        notes={} if code is None else _code_notes(code, place),
        graph=torch_graph(payload, task),
        parameters=count_parameters(model),
        macs=known_macs(model),
        golden=golden,
    )


def _code_notes(code: Code, place: Path) -> dict[str, Any]:
    """Return what is put on record of an author's code; a folder of the hub's cache has the name of its commit."""
    commit = {"code_commit": place.name} if place.parent.name == "snapshots" else {}
    return {"code": f"of the model's author; run with the user's rights: {', '.join(code.sources)}", **commit}


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


def _hash_source(place: Path, *, own_code: bool = False) -> dict[str, str]:
    """Return the sha256 of every file that is taken in, by its place relative to the model's folder.

    Raises:
        ModelError: a look at the files is enough to refuse them.
    """
    if place.is_dir():
        from compress.models.checkpoint import look_through

        code = read_code(place, look_through(place, own_code=own_code))
        return hash_files(place) | ({} if code is None else code.hashes)
    from compress.export.onnx_source import files_read

    folder, files = place.parent, files_read(place)
    out = {}
    for path in files:
        with path.open("rb") as file:
            out[Path(os.path.relpath(path, folder)).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return out
