"""The folder of a run: what ``mcompress run --out DIR`` leaves behind.

::

    run.json               steps with their store keys and digests, written after each step; finished once all is there
    recipe.resolved.yaml   every default spelled out, variables unexpanded
    deliverables/<step>/   the artifacts to ship
    measurements.json      raw samples
    outcomes.json          which examples of the evaluated split each artifact got right
    report.json|md|html

Every file appears whole (``compress.disk``), and one run at a time writes here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from compress.artifact import Artifact, open_artifact
from compress.disk import lock_folder, make_folder, remove_partials, write_atomically
from compress.errors import ModelError, UsageError, did_you_mean
from compress.reading import read_json
from compress.resources import require_space
from compress.store import Store

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.resolved.yaml"
DELIVERABLES = "deliverables"
RESULTS = ("measurements.json", "outcomes.json", "report.json", "report.md", "report.html")


class StepRecord(BaseModel):
    """What ``run.json`` remembers of a step."""

    model_config = ConfigDict(extra="forbid")

    status: str
    key: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    digest: str | None = None
    cached: bool = False
    seconds: float = 0.0
    delivered: bool = False
    reason: str = ""


class RunRecord(BaseModel):
    """``run.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    name: str
    recipe_digest: str
    finished: bool = False
    steps: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], StepRecord] = {}


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second run writes into it; made if missing, and removed if it stays empty.

    Raises:
        UsageError: another run holds it, or it cannot be made.
    """
    _refuse_file(out)
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "The folder of the run cannot be made.", value=f"{out}: {error.strerror}", fix="Choose another --out."
        ) from error
    try:
        handle = lock_folder(out)
    except OSError:  # a file system without locks
        handle = -1
    if handle is None:
        raise UsageError(
            "Another run is writing into this folder.", value=out, fix="Wait for it, or choose another --out."
        )
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
        for path in made:
            try:
                path.rmdir()
            except OSError:  # it holds something now
                break


def check_place(out: Path, name: str) -> RunRecord | None:
    """Say which run the folder holds so far; None if there is nothing yet.

    Raises:
        UsageError: the folder holds another recipe's run, or things that are not a run.
    """
    _refuse_file(out)
    previous = out / RUN_FILE
    if previous.is_file():
        try:
            old = read_run(out)
        except ModelError as error:
            raise UsageError(
                "The folder holds a run whose run.json is damaged.",
                value=previous,
                fix="Remove the folder, or choose another --out; finished steps are in the store.",
            ) from error
        if old.name != name:
            raise UsageError(
                f"The folder already holds a run of {old.name!r}.", value=out, fix="Choose another --out for this one."
            )
        return old
    if out.is_dir() and any(not path.name.endswith(".partial") for path in out.iterdir()):
        raise UsageError("--out is not empty and holds no run.", value=out, fix="Choose another folder.")
    return None


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError("--out names a file.", value=out, fix="Name a folder.")


def prepare(out: Path, name: str, recipe_text: str, recipe_digest: str) -> RunRecord:
    """Make the folder, or take up the one that ``check_place`` found.

    What an earlier run left there (deliverables, samples, report) is removed: this one makes its own.
    """
    known = check_place(out, name) is not None
    record = RunRecord(name=name, recipe_digest=recipe_digest)
    save(out, record)
    remove_partials(out)
    if known:
        shutil.rmtree(out / DELIVERABLES, ignore_errors=True)
        for file in RESULTS:
            (out / file).unlink(missing_ok=True)
    write_atomically(out / RECIPE_FILE, recipe_text)
    return record


def finish(out: Path) -> None:
    """Put on record that everything a run leaves is there."""
    record = read_run(out)
    record.finished = True
    save(out, record)


def save(out: Path, record: RunRecord) -> None:
    write_atomically(out / RUN_FILE, record.model_dump_json(indent=1) + "\n")


def read_run(out: Path) -> RunRecord:
    """Read ``run.json``.

    Raises:
        ModelError: the folder is not a run.
    """
    path = out / RUN_FILE
    if not path.is_file():
        raise ModelError("This folder is not a run: it has no run.json.", value=out, fix="Give a `run --out` folder.")
    try:
        return RunRecord.model_validate(read_json(path))
    except ValueError as error:
        raise ModelError("run.json cannot be read.", value=path, fix="Run the recipe again.") from error


def deliver(artifact: Artifact, out: Path) -> None:
    """Copy an artifact into place with one rename.

    Raises:
        StorageError: there is not enough space.
    """
    require_space(out.parent, sum(record.bytes for record in artifact.manifest.files.values()), f"{out.name!r}")
    make_folder(out, lambda partial: shutil.copytree(artifact.path, partial))


def split_step(source: str) -> tuple[Path, str]:
    """Return folder and step of ``RUN:STEP``; the step of a plain folder is empty."""
    place, colon, step = source.rpartition(":")
    return (Path(place), step) if colon and not Path(source).is_dir() else (Path(source), "")


def find_artifact(run: Path, step: str, store: Store) -> Artifact:
    """Return the artifact of a step of a run: from its deliverables, else from the store.

    Raises:
        UsageError: the run has no such step, or the step made nothing.
    """
    record = read_run(run)
    if step not in record.steps:
        raise UsageError(f"The run has no step {step!r}.", value=run, fix=did_you_mean(step, record.steps))
    folder = run / DELIVERABLES / step
    if folder.is_dir():
        return open_artifact(folder)
    outcome = record.steps[step]
    found = store.find(outcome.key) if outcome.key else None
    if found is None:
        lost = outcome.status == "done"
        why = f"the store {store.root} does not have it" if lost else outcome.reason or outcome.status
        raise UsageError(
            f"The artifact of step {step!r} is not there: {why}.",
            value=run,
            fix="Run the recipe again; finished steps are taken from the store that MCOMPRESS_HOME names.",
        )
    return open_artifact(found)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
