"""Students beside pruned models: which of the two is the more accurate at the same latency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from compress.pipeline.lineage import family
from compress.pipeline.measuring import Measured
from compress.pipeline.running import RunState
from compress.pipeline.scores import difference, score_of
from compress.report import model as report
from compress.tasks.base import Score


class _Contender(NamedTuple):
    step: str
    family: report.Family
    ms: float
    """Mean time of one input."""
    score: Score


def student_matches(state: RunState, measured: Measured) -> Iterator[report.StudentMatch]:
    """Compare every student with the pruned model of the nearest latency, on every target.

    Contenders are the leaves of the recipe, whatever their gates say. Nearest is by the ratio of mean times over
    the same inputs. Students of a target come in the order of their latency, fastest first.
    """
    for target in measured.targets:
        found = sorted(_contenders(state, measured, target.name), key=lambda contender: contender.ms)
        pruned = [contender for contender in found if contender.family == "pruned"]
        for student in (contender for contender in found if contender.family == "student"):
            if pruned:
                yield _match(target.name, student, pruned)


def _contenders(state: RunState, measured: Measured, target: str) -> Iterator[_Contender]:
    leaves = set(state.plan.leaves)
    for m in measured.measurements:
        if m.target != target or m.subject not in leaves or m.status != "ok" or not m.samples_ms:
            continue
        score = score_of(state, m, measured.answers)
        if score is not None:
            yield _Contender(m.subject, family(state, m.subject), float(m.flat_ms.mean()), score)


def _match(target: str, student: _Contender, pruned: list[_Contender]) -> report.StudentMatch:
    nearest = min(pruned, key=lambda rival: abs(np.log(rival.ms / student.ms)))
    change = difference(nearest.step, nearest.score, student.score, nearest.step)
    return report.StudentMatch(
        target=target,
        student=student.step,
        pruned=nearest.step,
        slower=nearest.ms / student.ms - 1.0,
        difference=change,
        winner=_winner(change, student.score.direction),
    )


def _winner(change: report.Difference, direction: str) -> report.Family | None:
    """Return whose score is better beyond the interval; the difference is student minus pruned model."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return None
    return "student" if (change.low > 0) == (direction == "higher") else "pruned"
