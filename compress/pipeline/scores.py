"""Accuracy of a row: value, interval, calibration, paired difference from the reference, and the same by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.bench.measurement import Measurement
from compress.bench.statistics import (
    PairedDifference,
    calibration_error,
    holm,
    mean_interval,
    needed_n,
    needed_n_of_mean,
    paired_difference,
    wilson_interval,
)
from compress.pipeline.emulated import part_of
from compress.pipeline.running import RunState
from compress.report import model as report
from compress.report.numbers import fixed
from compress.tasks.base import Score

PERCENT = {"accuracy", "exact_match", "micro_f1"}
"""Metrics that are fractions and are shown in percent; others keep their unit."""
ONE_LABEL = "accuracy"
"""The metric of tasks with exactly one label per example, which alone have classes and a calibration error."""
SIGNIFICANT = 0.05


def score_of(state: RunState, measurement: Measurement, answers: np.ndarray | None) -> Score | None:
    """Return the score of a measured artifact on the exact target, if it gave outputs and the split has labels."""
    if measurement.outputs is None or answers is None:
        return None
    return state.task.score(measurement.outputs, part_of(answers, measurement))


def accuracy_of(score: Score, outputs: np.ndarray | None = None) -> report.Accuracy:
    """Return a score with its interval; ``outputs``, (n, labels) logits, give the calibration error."""
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
        calibration_error=None if outputs is None else _calibration(score, outputs),
    )


def difference(baseline: str, base: Score, score: Score, name: str = "the reference") -> report.Difference:
    """Return ``score`` minus ``base``, paired on the same examples.

    Args:
        baseline: the step that ``base`` is of.
        name: how the verdict calls it.
    """
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
        text=_verdict(paired, base, score, name),
    )


def classes_of(
    labels: Sequence[str], answers: np.ndarray, score: Score | None, base: Score | None
) -> tuple[report.ClassSlice, ...]:
    """Return the examples of each true label: the share answered right, and against the reference.

    A class is called lower or higher only if McNemar's exact p stays below 0.05 after Holm's correction for the
    number of classes, so that many classes do not make chance findings. The interval of a single class is not
    corrected. Worst first: by the difference from the reference, else by the share.

    Args:
        labels: names, in the order of the ids in ``answers``.
        answers: (n,) true label ids.
        score: of the row; None, or any metric but accuracy, has no classes.
        base: of the reference; None where the row is the reference.
    """
    if score is None or score.metric != ONE_LABEL or answers.ndim != 1:
        return ()
    members = {label: answers == i for i, label in enumerate(labels)}
    members = {label: chosen for label, chosen in members.items() if chosen.any()}
    paired = [paired_difference(base.outcomes[m], score.outcomes[m]) for m in members.values()] if base else []
    adjusted = holm([it.p_value for it in paired])
    found = []
    for number, (label, chosen) in enumerate(members.items()):
        right, n = int(score.outcomes[chosen].sum()), int(chosen.sum())
        share = wilson_interval(right, n)
        piece = report.ClassSlice(label=label, n=n, right=right, value=share.value, low=share.low, high=share.high)
        if base is not None:
            it = paired[number]
            against = {
                "reference": float(base.outcomes[chosen].mean()),
                "points": 100.0 * it.value,
                "points_low": 100.0 * it.low,
                "points_high": 100.0 * it.high,
                "text": _class_verdict(it.value, adjusted[number], len(members)),
            }
            piece = piece.model_copy(update=against)
        found.append(piece)
    return tuple(sorted(found, key=lambda piece: (piece.points or 0.0, piece.value, piece.label)))


def _class_verdict(value: float, adjusted: float, classes: int) -> str:
    if value == 0:
        return "no difference found"
    way = "lower" if value < 0 else "higher"
    among = f"chance among {classes} classes" if classes > 1 else "chance"
    if adjusted < SIGNIFICANT:
        return f"{way} than the reference, beyond {among}"
    return f"{way} by the estimate, within {among}"


def _verdict(paired: PairedDifference, base: Score, score: Score, name: str) -> str:
    if paired.low > 0 or paired.high < 0:
        size = f"{100 * abs(paired.value):.2f} points" if score.metric in PERCENT else fixed(abs(paired.value), 4)
        return f"{size} {'higher' if paired.value > 0 else 'lower'} than {name}, beyond the interval"
    if paired.value == 0:
        return f"no difference found at N = {paired.n:,}"
    if paired.only_a is None:
        needed = needed_n_of_mean(float(np.std(score.outcomes - base.outcomes, ddof=1)), paired.value)
    else:
        discordant = float(np.mean(base.outcomes != score.outcomes))
        needed = needed_n(max(discordant, abs(paired.value)), paired.value)
    if needed <= paired.n:
        return f"at the edge of what N = {paired.n:,} resolves"
    return f"not resolvable at N = {paired.n:,}; about {needed:,} examples would"


def _calibration(score: Score, outputs: np.ndarray) -> float | None:
    """Return the expected calibration error of softmax probabilities; None where there are none."""
    if score.metric != ONE_LABEL or outputs.ndim != 2 or not np.isfinite(outputs).all():
        return None
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return calibration_error((shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1), score.outcomes)
