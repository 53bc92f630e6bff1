"""Choose the artifact to ship: the fastest deliverable whose gates hold, if it beats the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from compress.pipeline.checking import GateResult
from compress.pipeline.measuring import Measured
from compress.pipeline.running import RunState
from compress.pipeline.scores import PERCENT
from compress.report import numbers
from compress.report.model import Deliverable, Difference, Row, Unit, Verdict

PRECISIONS = ("FP32", "TF32", "FP16", "BF16")
"""Words in the names of baselines."""


def choose(state: RunState, measured: Measured, rows: Sequence[Row]) -> Verdict:
    """Decide on the first target of the recipe on which a deliverable was measured."""
    deliverables = tuple(_deliverable(state, leaf) for leaf in state.plan.leaves)
    for name in (target.name for target in measured.targets):
        ready = [row for row in rows if row.target == name and row.deliverable and row.status == "ok" and row.latency]
        if ready:
            return _verdict(state, name, ready, deliverables, measured.split)
    return Verdict(
        headline="Nothing may ship: no deliverable both passed its gates and could be measured here.",
        reasons=tuple(d.text for d in deliverables),
        deliverables=deliverables,
    )


def _verdict(
    state: RunState, target: str, ready: Sequence[Row], deliverables: tuple[Deliverable, ...], split: str
) -> Verdict:
    """Of what is faster than the baseline, ship the fastest whose gates hold beyond doubt, else the fastest.

    The baseline is the last of those that the rows name: the strongest one (see ``baselines``). On a GPU it may be a
    deliverable itself, such as an engine in FP16. Then that one is kept if nothing is faster, and shipped by its
    speed over FP32 if there is nothing else.
    """
    names = list(dict.fromkeys(name for row in ready for name in row.speedups))
    baseline = names[-1] if names else ""
    reduced = _precision(baseline) != "FP32"
    kept = next((row for row in ready if reduced and _is_baseline(row, baseline)), None)
    compared = [row for row in ready if baseline in row.speedups and row is not kept]
    if kept is not None and not compared and len(names) > 1:
        baseline, compared, kept = names[0], [kept], None
    faster = [row for row in compared if (row.speedups[baseline].low or row.speedups[baseline].ratio) > 1.0]
    if not faster:
        why = tuple(f"{row.step}: {_speed(row, baseline)}." for row in compared)
        why += tuple(f"{row.step}: {finding}" for row in compared for finding in row.findings)
        step = kept.step if kept is not None else None
        headline = _keep(compared, baseline, target)
        return Verdict(step=step, target=target, headline=headline, reasons=why, deliverables=deliverables)
    proven = [row for row in faster if _proven(state, row)]
    best = max(proven or faster, key=lambda row: _ratio(row, baseline))
    headline = f"Ship {best.step}: {_ratio(best, baseline):.2f} times as fast as {baseline} on {target}"
    if best.difference is not None and best.difference.unit == "percent":
        metric = best.accuracy.metric if best.accuracy else "accuracy"
        headline += f", {numbers.points(best.difference.points)} points of {metric}"
    if size := _size(state, best.step):
        headline += f", {size}"
    reasons = [_rank(state, best, proven, faster, target)]
    reasons += [
        f"{row.step} is faster still ({_ratio(row, baseline):.2f} times), but on this validation split "
        f"its gate is not proven."
        for row in faster
        if proven and row not in proven and _ratio(row, baseline) > _ratio(best, baseline)
    ]
    reasons.append(f"Speed: {_speed(best, baseline)}{_steadiness(best)}.")
    if best.difference is not None:
        reasons.append(f"Accuracy on {split}: {_accuracy(best.difference)}.")
    return Verdict(
        step=best.step, target=target, headline=headline + ".", reasons=tuple(reasons), deliverables=deliverables
    )


def _is_baseline(row: Row, name: str) -> bool:
    """Say whether a row is the baseline of that name itself."""
    against = row.speedups[name].against if name in row.speedups else None
    return against is not None and (against.step, against.target) == (row.step, row.target)


def _precision(baseline: str) -> str:
    return next((word for word in baseline.split() if word in PRECISIONS), "FP32")


def _keep(compared: Sequence[Row], baseline: str, target: str) -> str:
    """Say that nothing is faster than the baseline; on a GPU by how much the nearest is slower."""
    if not compared:
        return f"No verdict: no baseline was measured beside the deliverables on {target}."
    precision = _precision(baseline)
    if precision == "FP32":
        advice = "Keep FP32" if all(row.integers for row in compared) else "Keep the uncompressed model"
        return f"{advice}: no deliverable is faster than {baseline} on {target}."
    nearest = max(compared, key=lambda row: _ratio(row, baseline))
    which = nearest.step if len(compared) == 1 else f"{nearest.step}, the fastest of {len(compared)} deliverables,"
    high = nearest.speedups[baseline].high
    if (high or _ratio(nearest, baseline)) < 1.0:
        more = 1 / _ratio(nearest, baseline) - 1
        slower = numbers.share(more, 0 if more >= 0.01 else 1)
        return f"Keep {precision}: {which} is {slower} slower than {baseline} on {target}."
    return f"Keep {precision}: {which} is no faster than {baseline} on {target}."


def _proven(state: RunState, row: Row) -> bool:
    gates = state.outcomes[row.step].gates
    return bool(gates) and all(gate.verdict == "pass" for gate in gates)


def _rank(state: RunState, best: Row, proven: Sequence[Row], faster: Sequence[Row], target: str) -> str:
    if len(proven) > 1:
        return f"It is the fastest of the {len(proven)} deliverables on {target} whose gates hold at this N."
    if proven:
        return f"It is the only faster deliverable on {target} whose gates hold at this N."
    if not state.outcomes[best.step].gates:
        return f"It is the fastest of {len(faster)} on {target}; no gate was declared for it."
    return f"No gate is resolved at this N; by the estimates it is the fastest of {len(faster)} on {target}."


def _ratio(row: Row, baseline: str) -> float:
    return row.speedups[baseline].ratio if baseline in row.speedups else 0.0


def _speed(row: Row, baseline: str) -> str:
    """Return ``2.59 times as fast as torch FP32 [2.55, 2.63]: faster``."""
    it = row.speedups[baseline]
    ends = numbers.interval(it.low, it.high)
    return f"{it.ratio:.2f} times as fast as {baseline} {ends or '(one round: no interval)'}" + (
        f": {it.text}" if it.text else ""
    )


def _steadiness(row: Row) -> str:
    """Say how sure the times are: over how many launches and rounds, and whether these were steady."""
    it = row.latency
    if it is None:
        return ""
    launches = f"{it.launches} launches" if it.launches > 1 else "1 launch, whose spread is not in the interval"
    verdict = f", {it.stability}" if it.stability else ""
    return f"; {it.rounds} rounds over {it.inputs} inputs in {launches}{verdict}"


def _accuracy(it: Difference) -> str:
    """Return ``−0.40 points [−1.30, +0.50] against the reference on the same examples; not resolvable at ...``."""
    size = f"{numbers.points(it.points, it.unit)}{' points' if it.unit == 'percent' else ''}"
    ends = numbers.points_interval(it.low, it.high, it.unit)
    return f"{size} {ends} against the reference on the same examples; {it.text}"


def _size(state: RunState, step: str) -> str:
    artifact, reference = state.artifact(step), state.artifact(state.plan.reference)
    if artifact is None or reference is None or not artifact.size_bytes:
        return ""
    return f"{artifact.size_bytes / 1e6:.1f} MB instead of {reference.size_bytes / 1e6:.1f}"


def _deliverable(state: RunState, leaf: str) -> Deliverable:
    outcome = state.outcomes[leaf]
    if outcome.status != "done":
        return Deliverable(step=leaf, text=f"{outcome.status}: {outcome.reason}")
    if not outcome.gates:
        return Deliverable(step=leaf, text=f"no gate was judged ({outcome.parity_reason or 'none declared'})")
    worst = min(outcome.gates, key=lambda gate: ("fail", "unresolved", "pass").index(gate.verdict))
    return Deliverable(step=leaf, verdict=worst.verdict, text="; ".join(_words(gate) for gate in outcome.gates))


def _words(gate: GateResult) -> str:
    unit: Unit = "percent" if gate.metric in PERCENT else "plain"
    scale, word = (100.0, " points") if unit == "percent" else (1.0, "")
    interval = numbers.points_interval(scale * gate.low, scale * gate.high, unit)
    handed = "delivered" if gate.delivered else "not delivered"
    return (
        f"{gate.metric} {numbers.points(scale * gate.delta, unit)}{word} {interval} on validation "
        f"(limit: {gate.limit}): {gate.verdict}, {handed}"
    )
