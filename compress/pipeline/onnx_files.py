"""The ONNX file that a command names: a file, an artifact, or a step of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compress.artifact import MANIFEST, Artifact, open_artifact
from compress.errors import ModelError, UsageError
from compress.pipeline.folder import RUN_FILE, find_artifact, read_run, split_step
from compress.store import Store


def find_onnx(source: str, store: Store) -> Path:
    """Return the ONNX file of ``FILE``, of an artifact's ``DIR``, or of ``RUN[:STEP]``.

    Args:
        source: a run without a step is taken if it made one ONNX artifact only.
        store: where the steps of a run are.

    Raises:
        ModelError: there is no such file, or the artifact is of another kind.
        UsageError: the run has no such step, or several that could be meant.
    """
    folder, step = split_step(source)
    if not step and folder.is_file():
        return folder
    if not step and not folder.exists():
        raise ModelError("The model does not exist.", value=source, fix="Give an .onnx file, an artifact or RUN:STEP.")
    if step:
        artifact = find_artifact(folder, step, store)
    elif (folder / RUN_FILE).is_file() and not (folder / MANIFEST).is_file():
        artifact = only_step(folder, store, lambda it: it.kind == "onnx", "ONNX", "one that made an ONNX model")
    else:
        artifact = open_artifact(folder, verify=False)
    if artifact.kind != "onnx":
        raise ModelError(
            f"This takes ONNX models, and the artifact is of the kind {artifact.kind}.",
            value=source,
            fix="Give the ONNX artifact beside it; RUN:STEP names a step of a run.",
        )
    return artifact.file()


def only_step(run: Path, store: Store, fits: Callable[[Artifact], bool], what: str, hint: str) -> Artifact:
    """Return the artifact of a run that fits, if one only does.

    Args:
        what: names what fits: "ONNX".
        hint: which step to name where none fits.

    Raises:
        UsageError: none fits, or several do.
    """
    done = {id_: find_artifact(run, id_, store) for id_, it in read_run(run).steps.items() if it.status == "done"}
    found = {id_: artifact for id_, artifact in done.items() if fits(artifact)}
    if len(found) != 1:
        raise UsageError(
            f"The run has {len(found) or 'no'} {what} artifacts, and it takes one.",
            value=run,
            fix=f"Name a step as RUN:STEP{': ' + ', '.join(found) if found else f', {hint}'}.",
        )
    return next(iter(found.values()))
