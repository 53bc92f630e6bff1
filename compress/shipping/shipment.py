"""What is to be shipped, and where it comes from: a run, one step of it, or an artifact folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compress.artifact import MANIFEST, Artifact, open_artifact
from compress.errors import IntegrityError, ModelError, UsageError
from compress.pipeline.folder import DELIVERABLES, RECIPE_FILE, RUN_FILE, find_artifact, read_run, split_step
from compress.report.files import JSON_NAME, read_report
from compress.report.model import Report
from compress.report.model import Step as ReportStep
from compress.store import Store

RECORD = "record"
"""Folder of an export that holds the report and the recipe."""
LAYOUT = "layout"
"""What made the manifest of a model that a layout renamed or converted."""
RECORDED = ("report.html", "report.md", JSON_NAME, RECIPE_FILE)


@dataclass(frozen=True)
class Shipment:
    """An artifact, and what is known of it.

    Attributes:
        artifact: verified.
        step: id of the step that made it; None where no report knows it.
        report: of the run; None for an artifact folder that carries none.
        siblings: step -> artifact: of the same run and kind, from the same model, whose gates did not fail, and the
            float model that the artifact was made from.
        lost: step -> why a sibling cannot be had.
        record: name in ``record/`` -> the file that is copied there.
        name: of the run's recipe, or of the folder.
    """

    artifact: Artifact
    name: str
    step: str | None = None
    report: Report | None = None
    siblings: Mapping[str, Artifact] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Path] = field(default_factory=dict)

    @property
    def max_length(self) -> int | None:
        """Longest input, tokens; None for a task without texts."""
        found = self.artifact.manifest.task.get("max_length")
        return found if isinstance(found, int) and found > 0 else None


def open_shipment(source: str, store: Store) -> Shipment:
    """Open ``RUN``, ``RUN:STEP`` or an artifact folder.

    Raises:
        UsageError: the run ships nothing and no step is named, or has no such step.
        ModelError: the folder is neither a run nor an artifact.
        IntegrityError: a file was changed.
    """
    place, step = split_step(source)
    if not step and (place / MANIFEST).is_file():
        return _of_artifact(place)
    if not (place / RUN_FILE).is_file():
        raise ModelError(
            "This folder is neither a run nor an artifact.",
            value=place,
            fix="Give a `run --out` folder, RUN:STEP, or a folder with an artifact.json.",
        )
    run = read_run(place)
    report = read_report(place) if (place / JSON_NAME).is_file() else None
    if not step:
        step = _shipped_step(place, report)
    artifact = find_artifact(place, step, store)
    siblings, lost = _siblings(place, step, report, store)
    return Shipment(
        artifact,
        name=run.name,
        step=step,
        report=report,
        siblings=siblings,
        lost=lost,
        record=_recorded(place),
    )


def _of_artifact(folder: Path) -> Shipment:
    artifact, record = open_artifact(folder), folder / RECORD
    report = read_report(record) if (record / JSON_NAME).is_file() else None
    laid = artifact.manifest.made_by.name == LAYOUT  # then its parent is what was measured
    digest = artifact.manifest.parents.get("model") if laid else artifact.digest
    made = next((step for step in report.steps if step.digest == digest), None) if report else None
    return Shipment(
        artifact,
        name=folder.resolve().name,
        step=made.id if made else None,
        report=report if made else None,
        record=_recorded(record),
    )


def _recorded(folder: Path) -> dict[str, Path]:
    """Find report and recipe in a folder; a link out of it is none of them."""
    paths = {name: folder / name for name in RECORDED}
    home = folder.resolve()
    return {name: path for name, path in paths.items() if path.is_file() and path.resolve().is_relative_to(home)}


def _shipped_step(run: Path, report: Report | None) -> str:
    if report is None:
        raise UsageError("The run has no report yet.", value=run, fix="Name a step: `mcompress export RUN:STEP DIR`.")
    if report.verdict.step is None:
        raise UsageError("The report ships nothing.", value=run, fix="Name a step: `mcompress export RUN:STEP DIR`.")
    return report.verdict.step


def _siblings(run: Path, step: str, report: Report | None, store: Store) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Find what else a run made of the same model, and may be handed out beside a step's artifact; and what is lost."""
    known = {made.id: made for made in report.steps} if report else {}
    if report is None or step not in known:
        return {}, {}
    delivered = {path.name for path in (run / DELIVERABLES).glob("*") if path.is_dir()}
    root, chain = _float_root(step, known)
    found, lost = {}, {}
    for made in report.steps:
        wanted = made.id in delivered or made.id in chain
        if made.id != step and made.kind == known[step].kind and wanted and _float_root(made.id, known)[0] == root:
            try:
                found[made.id] = find_artifact(run, made.id, store)
            except (UsageError, IntegrityError) as error:  # collected from the store since, or damaged
                lost[made.id] = error.what.rstrip(".")
    return found, lost


def _float_root(step: str, known: Mapping[str, ReportStep]) -> tuple[str, list[str]]:
    """Return the step of another kind that a step's ancestors of its own kind come from, and those ancestors."""
    kind, chain = known[step].kind, []
    while step in known and known[step].kind == kind and step not in chain:
        chain.append(step)
        step = known[step].parents.get("model", "")
    return step, chain
