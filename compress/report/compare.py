"""Compare two reports row by row: accuracy in points, sizes, and speed-ups against each report's own baseline.

Milliseconds of two sessions are never compared: clocks, neighbours and machines differ. A speed-up is a ratio
measured side by side within one session, and so is the only speed that can be carried from one report to another.
"""

from __future__ import annotations

from pydantic import Field

from compress.report import numbers
from compress.report.model import Accuracy, Frozen, Report, Row, Speedup, Unit


class SpeedupChange(Frozen):
    """The speed-up over one baseline in both reports."""

    before: float | None = Field(None, description="ratio in the first report")
    after: float | None = Field(None, description="ratio in the second report")
    relative: float | None = Field(None, description="after / before - 1; negative is slower")


class RowChange(Frozen):
    """One step on one target in both reports; a status is null where the report has no such row."""

    step: str
    target: str
    status_before: str | None = None
    status_after: str | None = None
    unit: Unit = "percent"
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    points: float | None = Field(None, description="after minus before: percentage points, or the metric's unit")
    size_before: int | None = Field(None, description="bytes")
    size_after: int | None = Field(None, description="bytes")
    parameters_before: int | None = None
    parameters_after: int | None = None
    speedups: dict[str, SpeedupChange] = Field(default_factory=dict, description="name of the baseline -> change")
    regressions: tuple[str, ...] = ()


class Comparison(Frozen):
    """What became of every row; ``ok`` is false if any of them regressed."""

    before: str = Field(description="title of the first report")
    after: str = Field(description="title of the second report")
    rows: tuple[RowChange, ...]
    regressions: tuple[str, ...]
    warnings: tuple[str, ...] = Field(description="why the two may not be comparable")
    ok: bool


def compare_reports(a: Report, b: Report, max_drop_points: float, max_slowdown: float) -> Comparison:
    """Compare report ``b`` with the earlier report ``a``.

    Args:
        a: the reference.
        b: the newcomer.
        max_drop_points: accuracy that a row may lose, percentage points (a plain metric: in its own unit).
        max_slowdown: how much slower a row may get, as a fraction of its time (0.1 = 10 %), by its speed-up
            over each baseline that both reports have.

    Returns:
        Rows in the order of ``a``, then those that only ``b`` has. A row that was measured in ``a`` and is
        missing or not ok in ``b`` is a regression.
    """
    before = {(row.step, row.target): row for row in a.rows}
    after = {(row.step, row.target): row for row in b.rows}
    keys = dict.fromkeys([*before, *after])
    rows = tuple(_change(key, before.get(key), after.get(key), max_drop_points, max_slowdown) for key in keys)
    regressions = tuple(f"{row.step} on {row.target}: {line}" for row in rows for line in row.regressions)
    return Comparison(
        before=a.title,
        after=b.title,
        rows=rows,
        regressions=regressions,
        warnings=tuple(_warnings(a, b)),
        ok=not regressions,
    )


def _change(key: tuple[str, str], a: Row | None, b: Row | None, max_drop: float, max_slowdown: float) -> RowChange:
    score_a, score_b = a.accuracy if a else None, b.accuracy if b else None
    unit = (score_b or score_a or Accuracy(value=0, n=0)).unit
    points = (score_b.value - score_a.value) * (100 if unit == "percent" else 1) if score_a and score_b else None
    names = dict.fromkeys([*(a.speedups if a else ()), *(b.speedups if b else ())])
    speedups = {
        name: _speedup(a.speedups.get(name) if a else None, b.speedups.get(name) if b else None) for name in names
    }
    lines = [
        *_lost(a, b),
        *_dropped(score_b, points, max_drop),
        *(line for name, change in speedups.items() for line in _slowed(name, change, max_slowdown)),
    ]
    return RowChange(
        step=key[0],
        target=key[1],
        status_before=a.status if a else None,
        status_after=b.status if b else None,
        unit=unit,
        accuracy_before=score_a.value if score_a else None,
        accuracy_after=score_b.value if score_b else None,
        points=points,
        size_before=a.size_bytes if a else None,
        size_after=b.size_bytes if b else None,
        parameters_before=a.parameters if a else None,
        parameters_after=b.parameters if b else None,
        speedups=speedups,
        regressions=tuple(lines),
    )


def _speedup(a: Speedup | None, b: Speedup | None) -> SpeedupChange:
    return SpeedupChange(
        before=a.ratio if a else None,
        after=b.ratio if b else None,
        relative=b.ratio / a.ratio - 1 if a and b else None,
    )


def _lost(a: Row | None, b: Row | None) -> list[str]:
    if a is None or a.status != "ok" or (b is not None and b.status == "ok"):
        return []
    return ["the row is missing" if b is None else f"{b.status}: {b.reason}".rstrip(": ")]


def _dropped(score: Accuracy | None, points: float | None, limit: float) -> list[str]:
    if score is None or points is None:
        return []
    worse = -points if score.direction == "higher" else points
    if worse <= limit + 1e-9:
        return []
    word = "points" if score.unit == "percent" else score.metric
    return [
        f"{score.metric} {numbers.points(points, score.unit)} {word} (limit {numbers.points(limit, score.unit)[1:]})"
    ]


def _slowed(name: str, change: SpeedupChange, limit: float) -> list[str]:
    if change.before is None or change.after is None or change.before / change.after - 1 <= limit + 1e-9:
        return []
    slower = numbers.share(change.before / change.after - 1, 1)
    before, after = numbers.ratio(change.before), numbers.ratio(change.after)
    return [f"{slower} slower: {before} → {after} over {name} (limit {numbers.share(limit, 1)})"]


def _warnings(a: Report, b: Report) -> list[str]:
    tests = [next((s.digest for s in report.data.splits if s.name == "test"), None) for report in (a, b)]
    lines = []
    if tests[0] != tests[1]:
        lines.append("The test splits differ: differences of accuracy say little.")
    if a.subject.digest != b.subject.digest:
        lines.append("The reports start from different models.")
    if a.environment.cpu != b.environment.cpu:
        lines.append(f"Different CPUs ({a.environment.cpu}; {b.environment.cpu}): speed-ups need not carry over.")
    targets = {target.name: target for target in a.targets}
    changed = [t.name for t in b.targets if t.name in targets and _limits(t) != _limits(targets[t.name])]
    if changed:
        lines.append(f"Targets with other limits than before: {', '.join(changed)}.")
    return lines


def _limits(target: object) -> tuple[object, ...]:
    return tuple(getattr(target, name) for name in ("runtime", "device", "threads", "memory_bytes"))
