"""Which examples every artifact got right: what a later comparison needs to pair two runs. It holds no text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from compress.disk import write_atomically
from compress.errors import UsageError
from compress.pipeline.folder import as_json
from compress.pipeline.measuring import Measured
from compress.pipeline.running import RunState
from compress.pipeline.scores import score_of
from compress.reading import read_json

OUTCOMES_FILE = "outcomes.json"
LARGEST_OUTCOMES = 256 * 2**20
"""Bytes: a million examples of a few dozen artifacts, where an outcome is no more than right or wrong."""
_Digits = Annotated[str, StringConstraints(pattern=r"^[01]+$")]
_Numbers = Annotated[list[float], Field(min_length=1)]


class Outcomes(BaseModel):
    """One contribution to the metric per example, in the order of the split: ``"1101..."``, or a list of numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    split: str
    digest: str = Field(description="sha256 over the rows of the split, in order")
    metric: str
    rows: dict[str, dict[str, _Digits | _Numbers]] = Field(description="step -> target -> outcomes")

    def of(self, step: str, target: str) -> np.ndarray | None:
        """Return (n,) float64, or None where the run has no such row."""
        found = self.rows.get(step, {}).get(target)
        if found is None:
            return None
        return np.array([float(value) for value in found], dtype=np.float64)


def outcomes_of(state: RunState, measured: Measured) -> Outcomes | None:
    """Collect the outcomes of every row that has a score on all examples; None if there is none."""
    rows: dict[str, dict[str, str | list[float]]] = {}
    metric = ""
    for m in measured.measurements:
        score = score_of(state, m, measured.answers)
        if score is not None and m.examples is None:
            metric = score.metric
            rows.setdefault(m.subject, {})[m.target] = _compact(score.outcomes)
    if not rows:
        return None
    return Outcomes(split=measured.split, digest=state.data[measured.split].digest, metric=metric, rows=rows)


def write_outcomes(state: RunState, measured: Measured, folder: Path) -> None:
    """Write ``outcomes.json`` beside the report, if there is anything to write."""
    found = outcomes_of(state, measured)
    if found is not None:
        write_atomically(folder / OUTCOMES_FILE, as_json(found.model_dump(mode="json")))


def read_outcomes(place: Path) -> Outcomes | None:
    """Read the outcomes beside a report: of a run folder, or of the folder of a ``report.json``.

    Raises:
        UsageError: the file is there and is not what a run writes.
    """
    path = (place if place.is_dir() else place.parent) / OUTCOMES_FILE
    if not path.is_file():
        return None
    try:
        return Outcomes.model_validate(read_json(path, LARGEST_OUTCOMES))
    except ValueError as error:
        raise UsageError(
            "The outcomes of a run cannot be read.",
            value=f"{path}: {str(error).splitlines()[0]}",
            fix="Delete the file to compare without pairing, or run the recipe again.",
        ) from error


def _compact(outcomes: np.ndarray) -> str | list[float]:
    if np.isin(outcomes, (0.0, 1.0)).all():
        return "".join("1" if value else "0" for value in outcomes)
    return [float(f"{value:.9g}") for value in outcomes]
