"""Restore the most sensitive nodes to float32 until a quantized model keeps its accuracy.

Nodes are ranked by what each loses alone. Which shortest prefix of the ranking has to stay in float32 is found by
bisection, since every answer costs a quantization and an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compress.bench.statistics import Interval
from compress.quantization.sensitivity import Sensitivity

Measure = Callable[[frozenset[str]], Interval]
"""Names of the nodes that stay in float32 -> loss of the metric in points, with its interval; positive = worse."""

Verdict = Literal["pass", "fail", "unresolved"]
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class DropGate:
    """How much a model may lose.

    Attributes:
        max_drop_points: the limit, points.
        strict: whether the whole interval must keep it, not only the estimate.
    """

    max_drop_points: float
    strict: bool = False

    def verdict(self, drop: Interval) -> Verdict:
        """Say on which side of the limit the interval lies; ``unresolved`` where it contains the limit."""
        limit = self.max_drop_points + _TOLERANCE
        return "pass" if drop.high <= limit else "fail" if drop.low > limit else "unresolved"

    def holds(self, drop: Interval) -> bool:
        """Say whether a model with this loss may ship."""
        return (drop.high if self.strict else drop.value) <= self.max_drop_points + _TOLERANCE


@dataclass(frozen=True)
class ExclusionStep:
    """One quantization that was measured.

    Attributes:
        restored: how many nodes stayed in float32.
        names: which, most sensitive first.
        macs_share: their part of the multiply-accumulates of all linear layers, 0 to 1.
        drop: loss of the metric, points, with its interval.
        verdict: of the interval.
        holds: whether the gate lets it through.
    """

    restored: int
    names: tuple[str, ...]
    macs_share: float
    drop: Interval
    verdict: Verdict
    holds: bool


@dataclass(frozen=True)
class Exclusion:
    """The result of the search.

    Attributes:
        holds: whether a measured prefix keeps the gate; False = not even all of the ranked nodes in float32 do.
        excluded: node -> reason, as ``place`` takes it; every ranked node where none keeps the gate.
        drop: as measured with exactly these nodes in float32.
        trail: every step in the order in which it was measured.
        conclusion: the result in a sentence.
    """

    holds: bool
    excluded: Mapping[str, str]
    drop: Interval
    trail: tuple[ExclusionStep, ...]
    conclusion: str


def exclude_by_sensitivity(
    ranking: Sequence[Sensitivity], measure: Measure, gate: DropGate, *, unrestored: Interval | None = None
) -> Exclusion:
    """Find the shortest prefix of a ranking that must stay in float32 for a gate to hold.

    Besides the model with nothing restored, at most ``ceil(log2(n)) + 1`` models are measured. That the prefix is the
    shortest one is certain only where restoring more never loses more. Where the loss goes up and down, the prefix
    that is returned was measured and holds, the one that is a node shorter was measured and does not, but a still
    shorter one may hold, and where none was found to hold, one that was not measured may.

    Args:
        ranking: most sensitive first.
        measure: quantizes with these nodes in float32 and evaluates, on validation.
        gate: what the loss may be.
        unrestored: what ``measure`` gave with nothing restored, if that is known; it is not measured again.
    """
    search = _Search(ranking, measure, gate)
    if search.step(0, unrestored).holds:
        return search.result(0)
    fails, holds = 0, len(ranking) + 1
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if search.step(middle).holds:
            holds = middle
        else:
            fails = middle
    return search.result(holds)


def exclusion_reasons(rows: Sequence[Sensitivity]) -> dict[str, str]:
    """Return node -> why it stays in float32: ``sensitivity 4.1 dB``."""
    return {row.node: f"sensitivity {row.sqnr_db:.1f} dB" for row in rows}


class _Search:
    """What was measured so far, by the number of nodes restored."""

    def __init__(self, ranking: Sequence[Sensitivity], measure: Measure, gate: DropGate) -> None:
        self._ranking, self._measure, self._gate = ranking, measure, gate
        self._steps: dict[int, ExclusionStep] = {}

    def step(self, count: int, drop: Interval | None = None) -> ExclusionStep:
        """Measure one prefix, unless its drop is given."""
        rows = self._ranking[:count]
        names = tuple(row.node for row in rows)
        drop = self._measure(frozenset(names)) if drop is None else drop
        share = sum(row.macs_share for row in rows)
        step = ExclusionStep(count, names, share, drop, self._gate.verdict(drop), self._gate.holds(drop))
        self._steps[count] = step
        return step

    def result(self, count: int) -> Exclusion:
        """Return the prefix of a length that was found to hold; one longer than the ranking = none does."""
        holds = count <= len(self._ranking)
        chosen = self._steps[min(count, len(self._ranking))]
        excluded = exclusion_reasons(self._ranking[: chosen.restored])
        return Exclusion(holds, excluded, chosen.drop, tuple(self._steps.values()), self._sentence(chosen))

    def _sentence(self, step: ExclusionStep) -> str:
        loss = f"{step.drop.value:+.2f} points [{step.drop.low:+.2f}, {step.drop.high:+.2f}]"
        limit = f"at most {self._gate.max_drop_points:g} may be lost"
        total = len(self._ranking)
        if not step.holds:
            return f"Even with all {total} ranked nodes in float32 the loss is {loss}; {limit}."
        if not step.restored:
            return f"Nothing has to stay in float32: the loss is {loss}; {limit}."
        share = f"{100 * step.macs_share:.1f} % of the MACs"
        return f"{step.restored} of {total} nodes stay in float32 ({share}): the loss is {loss}; {limit}."
