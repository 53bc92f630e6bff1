"""Parity between a step and its parent, and gates against the reference; both read validation outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compress.bench.statistics import paired_difference
from compress.errors import RecipeError, did_you_mean
from compress.recipe import GateRule
from compress.tasks.base import Score, Task

DEFAULT_DROP_POINTS = 1.0
"""Loss allowed on the main metric when a recipe declares no gate."""


@dataclass(frozen=True)
class Parity:
    """Outputs of a step compared with its parent's on the same inputs.

    Attributes:
        max_abs, mean_abs: difference of logits.
        cosine: mean cosine of centred logits per example (plain cosine for one output), weighted by their size in
            the reference: with two labels a cosine is 1 or -1, and an example near 0 would weigh like any other.
        agreement: share of examples with the same decision.
        tolerance: the rule in words; empty if none applies.
        ok: whether the rule holds.
    """

    samples: int
    max_abs: float
    mean_abs: float
    cosine: float
    agreement: float
    tolerance: str
    ok: bool


def check_parity(
    task: Task, reference: np.ndarray, outputs: np.ndarray, preserves: Literal["exact", "close", "task"]
) -> Parity:
    """Compare (n, labels) float32 logits.

    ``exact``: no difference above 1e-3 of the largest reference logit (at least 1e-3).
    ``close``: mean cosine at least 0.999 and the same decision on at least 98 %.
    ``task``: anything; gates judge it.
    """
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = outputs.reshape(len(outputs), -1).astype(np.float64)
    gap = np.abs(a - b)
    worst, mean = float(gap.max()), float(gap.mean())
    cosine, agreement = _mean_cosine(a, b), float(task.agree(reference, outputs).mean())
    finite = bool(np.isfinite(b).all())
    if preserves == "exact":
        limit = 1e-3 * max(1.0, float(np.abs(a).max()))
        return Parity(
            len(a), worst, mean, cosine, agreement, f"max difference <= {limit:.1e}", finite and worst <= limit
        )
    if preserves == "close":
        ok = finite and cosine >= 0.999 and agreement >= 0.98
        return Parity(len(a), worst, mean, cosine, agreement, "cosine >= 0.999, agreement >= 98 %", ok)
    return Parity(len(a), worst, mean, cosine, agreement, "", finite)


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict.

    Attributes:
        delta: candidate minus reference, in the metric's own unit; ``low`` and ``high`` its 95 % interval.
        verdict: ``pass`` or ``fail`` where the interval lies on one side of the limit, else ``unresolved``
            (this many examples cannot tell).
        delivered: whether the artifact is handed out: by the estimate, or under ``strict`` by the bound.
    """

    metric: str
    limit: str
    baseline: float
    value: float
    delta: float
    low: float
    high: float
    n: int
    verdict: Literal["pass", "fail", "unresolved"]
    delivered: bool


def check_gates(reference: Score, score: Score, gates: Mapping[str, GateRule] | None) -> list[GateResult]:
    """Judge a candidate's score on validation.

    Args:
        reference: of the recipe's model, on the same examples.
        score: of the candidate.
        gates: bounds by metric name; None = at most 1.0 point (or 2 % of an error metric) worse.

    Raises:
        RecipeError: a gate names a metric that the task does not have.
    """
    if gates is None:
        gates = {score.metric: _default_rule(reference)}
    unknown = [name for name in gates if name != score.metric]
    if unknown:
        raise RecipeError(
            f"A gate names the metric {unknown[0]!r}, which this task does not have.",
            fix=did_you_mean(unknown[0], [score.metric]),
        )
    difference = paired_difference(reference.outcomes, score.outcomes)
    sign = 1.0 if score.direction == "higher" else -1.0
    return [
        _judge(reference, score, sign, difference.value, difference.low, difference.high, rule)
        for rule in gates.values()
    ]


def _judge(
    reference: Score, score: Score, sign: float, delta: float, low: float, high: float, rule: GateRule
) -> GateResult:
    """Turn every bound of a rule into a bound on ``sign * delta`` (more is better) and judge the tightest."""
    scale = 100.0 if score.direction == "higher" else 1.0
    unit = " points" if score.direction == "higher" else ""
    bounds: list[tuple[float, str]] = []
    if rule.max_drop_points is not None:
        bounds.append((-rule.max_drop_points / 100.0, f"at most {rule.max_drop_points:.1f} points below the reference"))
    if rule.max_increase is not None:
        bounds.append((-rule.max_increase, f"at most {rule.max_increase:g} above the reference"))
    if rule.min is not None:
        bounds.append((sign * (rule.min - reference.value), f"at least {rule.min * scale:g}{unit and ' %'}"))
    if rule.max is not None:
        bounds.append((sign * (rule.max - reference.value), f"at most {rule.max:g}"))
    limit = max((bound for bound, _ in bounds), default=-np.inf)
    text = " and ".join(words for _, words in bounds) or "no bound"
    better, worst, best = (delta, low, high) if sign > 0 else (-delta, -high, -low)
    tolerance = 1e-9
    verdict: Literal["pass", "fail", "unresolved"] = "unresolved"
    if worst >= limit - tolerance:
        verdict = "pass"
    elif best < limit - tolerance:
        verdict = "fail"
    judged = worst if rule.strict else better
    return GateResult(
        metric=score.metric,
        limit=text + (" (strict: the interval's bound)" if rule.strict else ""),
        baseline=reference.value,
        value=score.value,
        delta=delta,
        low=low,
        high=high,
        n=len(score.outcomes),
        verdict=verdict,
        delivered=bool(judged >= limit - tolerance),
    )


def _default_rule(reference: Score) -> GateRule:
    if reference.direction == "higher":
        return GateRule(max_drop_points=DEFAULT_DROP_POINTS)
    return GateRule(max_increase=0.02 * abs(reference.value))


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape[1] > 1:
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(a, axis=1)
    norms = sizes * np.linalg.norm(b, axis=1)
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0), 1.0)
    return float(np.average(cosines, weights=sizes)) if sizes.any() else float(cosines.mean())
