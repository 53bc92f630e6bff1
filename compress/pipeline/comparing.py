"""Compare two runs row by row: accuracy (paired where the examples match), speed-ups, sizes, memory.

Milliseconds of two sessions are never compared: clocks, neighbours and machines differ. A speed-up is a ratio
measured side by side within one session, and so is the only speed that can be carried from one run to another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from compress.artifact import MANIFEST
from compress.bench.statistics import Interval, paired_difference
from compress.errors import UsageError
from compress.pipeline.outcomes import Outcomes, read_outcomes
from compress.report import numbers
from compress.report.compare import Change, Comparison, Finding, Metric, RowChange
from compress.report.files import read_report
from compress.report.model import Accuracy, Report, Row, Speedup

_ROUNDING = 1e-9


def compare_runs(first: Path, second: Path, margins: Mapping[str, float], *, strict: bool = False) -> Comparison:
    """Compare two runs: folders, or report.json files.

    Raises:
        UsageError: a folder is an artifact, or holds no report.
    """
    for place in (first, second):
        if place.is_dir() and (place / MANIFEST).is_file() and not (place / "report.json").is_file():
            raise UsageError(
                "This is an artifact, not a run: there is nothing measured in it to compare.",
                value=place,
                fix="Measure artifacts side by side with `mcompress bench A B --data FILE`.",
            )
    a, b = read_report(first), read_report(second)
    return compare_reports(a, b, margins, strict=strict, outcomes=(read_outcomes(first), read_outcomes(second)))


def compare_reports(
    a: Report,
    b: Report,
    margins: Mapping[str, float],
    *,
    strict: bool = False,
    outcomes: tuple[Outcomes | None, Outcomes | None] = (None, None),
) -> Comparison:
    """Compare report ``b`` with the earlier report ``a``.

    Args:
        a: the reference.
        b: the newcomer.
        margins: metric -> how much worse a row may get: accuracy in points (a plain metric: in its own unit),
            a speed-up as a share of its time (0.1 = takes 10 % more), everything else as a share. A metric without
            a margin is not judged.
        strict: whether what breaks its margin by the estimate alone fails the comparison too.
        outcomes: of both runs, where they are known.

    Returns:
        Rows in the order of ``a``, then those that only ``b`` has. A row that was measured in ``a`` and is
        missing or not ok in ``b`` is a regression.
    """
    pairs, pairing = _pairs(a, b, outcomes)
    before = {(row.step, row.target): row for row in a.rows}
    after = {(row.step, row.target): row for row in b.rows}
    keys = dict.fromkeys([*before, *after])
    rows = [_row(key, before.get(key), after.get(key), margins, pairs) for key in keys]
    regressions = [f"{row.step} on {row.target}: {line}" for row in rows for line in _lines(row, "regression")]
    unresolved = [f"{row.step} on {row.target}: {line}" for row in rows for line in _lines(row, "unresolved")]
    return Comparison(
        before=a.title,
        after=b.title,
        split=b.data.evaluated,
        margins=dict(margins),
        strict=strict,
        rows=tuple(rows),
        regressions=tuple(regressions),
        unresolved=tuple(unresolved),
        warnings=tuple(_warnings(a, b)),
        pairing=pairing,
        ok=not regressions and not (strict and unresolved),
    )


def difference_interval(a: Interval, b: Interval) -> Interval:
    """Return b - a of two independent estimates, each with its interval.

    ``(b - a) -/+ sqrt(arm_b^2 + arm_a^2)`` with the arms that point that way (MOVER, Zou and Donner 2008; for two
    Wilson intervals it is Newcombe's 1998 hybrid score interval).
    """
    value = b.value - a.value
    down = math.hypot(b.value - b.low, a.high - a.value)
    up = math.hypot(b.high - b.value, a.value - a.low)
    return Interval(value, value - down, value + up)


def _row(
    key: tuple[str, str],
    a: Row | None,
    b: Row | None,
    margins: Mapping[str, float],
    pairs: tuple[Outcomes, Outcomes] | None,
) -> RowChange:
    lost = a is not None and a.status == "ok" and (b is None or b.status != "ok")
    reason = "" if b is None or b.status == "ok" else b.reason
    if lost:
        reason = reason or ("the row is missing" if b is None else "no reason recorded")
    changes = tuple(_changes(key, a, b, margins, pairs)) if a and b and b.status == "ok" else ()
    findings = {change.finding for change in changes}
    finding: Finding = "ok"
    if lost or "regression" in findings:
        finding = "regression"
    elif "unresolved" in findings:
        finding = "unresolved"
    return RowChange(
        step=key[0],
        target=key[1],
        status_before=a.status if a else None,
        status_after=b.status if b else None,
        reason=reason,
        finding=finding,
        changes=changes,
    )


def _lines(row: RowChange, finding: Finding) -> Iterator[str]:
    if row.finding == "regression" == finding and row.status_after != "ok":
        yield row.reason if row.status_after is None else f"{row.status_after}: {row.reason}"
    yield from (change.text for change in row.changes if change.finding == finding)


def _changes(
    key: tuple[str, str], a: Row, b: Row, margins: Mapping[str, float], pairs: tuple[Outcomes, Outcomes] | None
) -> Iterator[Change]:
    if a.accuracy and b.accuracy and a.accuracy.metric == b.accuracy.metric:
        yield _accuracy(key, a.accuracy, b.accuracy, margins.get("accuracy"), pairs)
    for name in dict.fromkeys([*a.speedups, *b.speedups]):
        yield _speed("speedup", name, a.speedups.get(name), b.speedups.get(name), margins)
    first = a.end_to_end.speedups if a.end_to_end else {}
    second = b.end_to_end.speedups if b.end_to_end else {}
    for name in dict.fromkeys([*first, *second]):
        yield _speed("end_to_end", name, first.get(name), second.get(name), margins)
    yield _amount("size", "size", a.size_bytes, b.size_bytes, margins)
    yield _amount("parameters", "weights", a.parameters, b.parameters, margins)
    yield _amount("peak_rss", "peak RSS", a.peak_rss_bytes, b.peak_rss_bytes, margins)


def _accuracy(
    key: tuple[str, str], a: Accuracy, b: Accuracy, margin: float | None, pairs: tuple[Outcomes, Outcomes] | None
) -> Change:
    scale = 100.0 if b.unit == "percent" else 1.0
    found = tuple(outcomes.of(*key) for outcomes in pairs) if pairs else (None, None)
    low: float | None = None
    high: float | None = None
    paired = found[0] is not None and found[1] is not None and found[0].shape == found[1].shape
    if found[0] is not None and found[1] is not None and paired:
        difference = paired_difference(found[0], found[1])
        low, high = scale * difference.low, scale * difference.high
    elif None not in (a.low, a.high, b.low, b.high):
        apart = difference_interval(_interval(a.value, a.low, a.high), _interval(b.value, b.low, b.high))
        low, high = scale * apart.low, scale * apart.high
    points = scale * (b.value - a.value)
    up = b.direction == "higher"
    worse = -points if up else points
    certain = low is None or high is None or (high < 0 if up else low > 0)
    word = "points" if b.unit == "percent" else b.metric
    limit = "" if margin is None else f" (limit {numbers.points(margin, b.unit).lstrip('+')})"
    span = numbers.points_interval(low, high, b.unit)
    finding = _finding(worse, margin, certain)
    return Change(
        metric="accuracy",
        name=b.metric,
        unit=b.unit,
        before=a.value,
        after=b.value,
        change=points,
        low=low,
        high=high,
        paired=paired,
        margin=margin,
        finding=finding,
        text=""
        if finding in ("ok", "not judged")
        else f"{b.metric} {numbers.points(points, b.unit)} {word}{f' {span}' if span else ''}{limit}",
    )


def _speed(metric: Metric, baseline: str, a: Speedup | None, b: Speedup | None, margins: Mapping[str, float]) -> Change:
    """Compare two ratios by their logarithms, so that the interval is that of their ratio."""
    clock = "end-to-end speed" if metric == "end_to_end" else "speed"
    fields = {"metric": metric, "name": f"{clock} over {baseline}", "baseline": baseline}
    margin = margins.get(metric)
    if a is None or b is None:
        return Change(**fields, before=a.ratio if a else None, after=b.ratio if b else None, margin=margin)
    low: float | None = None
    high: float | None = None
    if a.low is not None or b.low is not None:
        logs = [
            Interval(math.log(s.ratio), _log(s.low, s.ratio), _log(s.high, s.ratio))  # an exact 1 has no interval
            for s in (a, b)
        ]
        apart = difference_interval(*logs)
        low, high = math.expm1(apart.low), math.expm1(apart.high)
    slower = a.ratio / b.ratio - 1
    finding = _finding(slower, margin, certain=high is None or high < 0)
    text = ""
    if finding not in ("ok", "not judged"):
        limit = f" (limit {numbers.share(margin, 1)})" if margin is not None else ""
        what = "slower" if metric == "speedup" else "slower end to end"
        text = f"{numbers.share(slower, 1)} {what}: {numbers.ratio(a.ratio)} → {numbers.ratio(b.ratio)} over {baseline}"
        text += limit
    return Change(
        **fields,
        before=a.ratio,
        after=b.ratio,
        change=b.ratio / a.ratio - 1,
        low=low,
        high=high,
        margin=margin,
        finding=finding,
        text=text,
    )


def _log(bound: float | None, ratio: float) -> float:
    """Return the logarithm of a bound; that of the ratio where there is none, or none that a ratio can have."""
    return math.log(bound if bound is not None and bound > 0 else ratio)


def _amount(metric: Metric, name: str, a: int | None, b: int | None, margins: Mapping[str, float]) -> Change:
    """Compare what is known exactly, or of which no spread is known: more is worse."""
    margin = margins.get(metric)
    share = b / a - 1 if a and b is not None else None
    finding = _finding(share, margin, certain=True) if share is not None else "not judged"
    text = ""
    if finding == "regression":
        text = f"{name} {numbers.fixed(100 * (share or 0), 1, signed=True)} % (limit {numbers.share(margin, 1)})"
    return Change(metric=metric, name=name, before=a, after=b, change=share, margin=margin, finding=finding, text=text)


def _finding(worse: float, margin: float | None, certain: bool) -> Finding:
    if margin is None:
        return "not judged"
    if worse <= margin + _ROUNDING:
        return "ok"
    return "regression" if certain else "unresolved"


def _interval(value: float, low: float | None, high: float | None) -> Interval:
    return Interval(value, value if low is None else low, value if high is None else high)


def _pairs(
    a: Report, b: Report, outcomes: tuple[Outcomes | None, Outcomes | None]
) -> tuple[tuple[Outcomes, Outcomes] | None, str]:
    first, second = outcomes
    if first is None or second is None:
        absent = "either run" if first is second else "the first run" if first is None else "the second run"
        return None, f"Accuracies are not paired: {absent} has no outcomes.json; intervals are those of two samples."
    if (first.digest, first.metric) != (second.digest, second.metric):
        return None, "Accuracies are not paired: the runs answered different examples."
    return (first, second), f"Accuracies are paired: both runs answered the same {b.data.evaluated} examples."


def _warnings(a: Report, b: Report) -> Iterator[str]:
    names = [report.data.evaluated for report in (a, b)]
    if names[0] != names[1]:
        yield f"Accuracies are on {names[0]} in the first run and on {names[1]} in the second."
    digests = [
        next((s.digest for s in report.data.splits if s.name == report.data.evaluated), None) for report in (a, b)
    ]
    if digests[0] != digests[1]:
        yield f"The {names[1]} splits differ: differences of accuracy say little."
    if a.subject.digest != b.subject.digest:
        yield "The runs start from different models."
    if a.environment.cpu != b.environment.cpu:
        yield f"Different CPUs ({a.environment.cpu}; {b.environment.cpu}): speed-ups need not carry over."
    targets = {target.name: target for target in a.targets}
    changed = [t.name for t in b.targets if t.name in targets and _limits(t) != _limits(targets[t.name])]
    if changed:
        yield f"Targets with other limits than before: {', '.join(changed)}."


def _limits(target: object) -> tuple[object, ...]:
    return tuple(getattr(target, name) for name in ("runtime", "device", "threads", "memory_bytes"))
