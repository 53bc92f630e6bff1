"""Accuracy of a row: value, interval, paired difference from the reference."""

from __future__ import annotations

import numpy as np

from compress.bench.measurement import Measurement
from compress.bench.statistics import (
    PairedDifference,
    mean_interval,
    needed_n,
    paired_difference,
    wilson_interval,
)
from compress.pipeline.emulated import part_of
from compress.pipeline.running import RunState
from compress.report import model as report
from compress.tasks.base import Score

PERCENT = {"accuracy", "exact_match", "micro_f1"}
"""Metrics that are fractions and are shown in percent; others keep their unit."""


def score_of(state: RunState, measurement: Measurement, answers: np.ndarray | None) -> Score | None:
    """Return the score of a measured artifact on the exact target, if it gave outputs and the split has labels."""
    if measurement.outputs is None or answers is None:
        return None
    return state.task.score(measurement.outputs, part_of(answers, measurement))


def accuracy_of(score: Score) -> report.Accuracy:
    percent = score.metric in PERCENT
    n = len(score.outcomes)
    interval = wilson_interval(round(score.outcomes.sum()), n) if percent else mean_interval(score.outcomes)
    return report.Accuracy(
        metric=score.metric,
        unit="percent" if percent else "plain",
        direction=score.direction,
        value=score.value,
        low=interval.low,
        high=interval.high,
        n=n,
        right=round(score.outcomes.sum()) if percent else None,
    )


def difference(baseline: str, base: Score, score: Score) -> report.Difference:
    """Return ``score`` minus ``base``, paired on the same examples; ``baseline`` is the step that ``base`` is of."""
    percent = score.metric in PERCENT
    scale = 100.0 if percent else 1.0
    paired = paired_difference(base.outcomes, score.outcomes)
    return report.Difference(
        baseline=baseline,
        unit="percent" if percent else "plain",
        points=scale * paired.value,
        low=scale * paired.low,
        high=scale * paired.high,
        p_value=paired.p_value,
        text=_resolved(paired, base, score),
    )


def _resolved(paired: PairedDifference, base: Score, score: Score) -> str:
    if paired.low > 0 or paired.high < 0:
        return "a real difference"
    if paired.value == 0:
        return "no difference found"
    text = f"not resolvable at N = {paired.n:,}"
    if paired.only_a is None:
        return text
    discordant = float(np.mean(base.outcomes != score.outcomes))
    return f"{text}; about {needed_n(max(discordant, abs(paired.value)), paired.value):,} examples would"
