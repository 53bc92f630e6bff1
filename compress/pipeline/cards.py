"""Model cards beside artifacts: they are about the payload, and so are no part of it."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import Artifact, open_artifact
from compress.disk import write_atomically
from compress.pipeline.folder import DELIVERABLES
from compress.report.card import CARD_NAME, Folder, render_card
from compress.report.model import Report


def write_card(report: Report, step: str, artifact: Artifact) -> Path | None:
    """Write ``README.md`` into an artifact's folder; None where the payload has one, or the report has no such step.

    The manifest does not list the card, so digest and verification are those of the files that it is about.
    """
    if CARD_NAME in artifact.manifest.files or step not in {made.id for made in report.steps}:
        return None
    path, files = artifact.path / CARD_NAME, tuple(artifact.manifest.files)
    folder = Folder(artifact.kind, artifact.manifest.graphs["model"].file, files)
    write_atomically(path, render_card(report, step, folder))
    return path


def write_cards(report: Report, run: Path) -> None:
    """Write the card of every deliverable of a run."""
    folder = run / DELIVERABLES
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if place.is_dir() and not place.name.startswith("."):
            write_card(report, place.name, open_artifact(place, verify=False))
