"""The results of one target as columns: values with their ±, arrows, marks; a row that failed says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from compress.report import numbers
from compress.report.columns import Grid, Head, widest_that_fits
from compress.report.model import Report, Row, TargetRecord
from compress.report.sections_results import STATUS, absence, baselines_of, mark_of, references, rows_of

LEGEND = "±: the longer arm of the 95 % interval"
BETTER, WORSE, EQUAL = "↑", "↓", "≈"


@dataclass(frozen=True)
class _Detail:
    """How much of a row is shown."""

    gap: int = 2
    other_spread: bool = True
    """± of the speed-ups over all baselines but the last."""
    accuracy_spread: bool = True
    second_clock: bool = True
    memory: bool = True
    size: bool = True
    others: bool = True
    spread: bool = True


_DETAILS = (
    _Detail(),
    _Detail(memory=False),
    _Detail(memory=False, other_spread=False),
    _Detail(memory=False, other_spread=False, accuracy_spread=False),
    _Detail(1, other_spread=False, accuracy_spread=False, memory=False),
    _Detail(memory=False, other_spread=False, accuracy_spread=False, second_clock=False),
    _Detail(1, memory=False, other_spread=False, accuracy_spread=False, second_clock=False),
    _Detail(1, memory=False, other_spread=False, accuracy_spread=False, second_clock=False, others=False),
    _Detail(1, memory=False, other_spread=False, accuracy_spread=False, second_clock=False, others=False, size=False),
    _Detail(1, False, False, False, False, False, False, False),
)


def target_grid(report: Report, target: TargetRecord, width: int) -> Grid:
    """Return the rows of a target in as much detail as ``width`` cells allow; rows that did not run are among them."""
    return widest_that_fits([_grid(report, target, detail) for detail in _DETAILS], width)


def legend(report: Report) -> str:
    """Say what headings and marks mean."""
    baselines = [f"vs {name}: speed-up over {_place(report, name)}" for name in report.baselines]
    counts = sorted({row.accuracy.n for row in report.rows if row.accuracy})
    on = f"on {' / '.join(map(numbers.count, counts))} {report.data.evaluated} examples" if counts else "not measured"
    marks = [
        f"{mark} {meaning}"
        for mark, meaning in _MARKS.items()
        if any(mark_of(report, row) == mark for row in report.rows)
    ]
    reference = ", ".join(sorted(references(report)))
    words = [
        *marks,
        *(["* Pareto: none is faster and as accurate"] if any(row.pareto for row in report.rows) else []),
        "size: graph and weights on disk, 1 MB = 1,000,000 bytes",
        f"accuracy: {on}",
        *([f"Δ: paired difference from {reference}, {_ARROWS}"] if reference else []),
        "p50: median time of one input, batch 1, model only",
        *(["e2e: the same with tokenization and decoding"] if any(row.end_to_end for row in report.rows) else []),
        *baselines,
        f"{EQUAL} beside a speed-up: no difference"
        if any(s.text == "no difference" for row in report.rows for s in row.speedups.values())
        else "",
        LEGEND,
        f"{numbers.MISSING}: not measured",
    ]
    return "; ".join(filter(None, words)) + "."


_ARROWS = f"{BETTER} better, {WORSE} worse, {EQUAL} within its interval"
_STYLES = {"→": "bold green", "✗": "red", "?": "yellow"}
_MARKS = {"→": "ships", "✗": "a gate failed", "?": "a gate is unresolved at this N"}


def _grid(report: Report, target: TargetRecord, detail: _Detail) -> Grid:
    rows = rows_of(report, target.name)
    names = baselines_of(report, rows)
    shown = names if detail.others else names[-1:]
    second = detail.second_clock and any(row.end_to_end for row in rows)
    memory = detail.memory and any(row.peak_rss_bytes is not None for row in rows if row.status == "ok")
    metric = next((row.accuracy for row in rows if row.accuracy), None)
    unit = "%" if metric is None or metric.unit == "percent" else ""
    way = BETTER if metric is None or metric.direction == "higher" else WORSE
    heads = [
        Head("step", right=False),
        *([Head("size", "MB")] if detail.size else []),
        Head(f"{metric.metric if metric else 'accuracy'} {way}", unit),
        Head("Δ", "points" if unit else ""),
        Head(f"p50 {WORSE}", "ms"),
        *([Head("e2e", "ms")] if second else []),
        *([Head("peak", "MB")] if memory else []),
        *(Head(_two_lines(f"vs {plain(name)}")) for name in shown),
    ]
    lines = []
    for row in rows:
        if row.status != "ok":
            continue
        cells = [
            _step(report, row),
            *([Text(numbers.megabytes(row.size_bytes))] if detail.size else []),
            _accuracy(row, detail.accuracy_spread),
            _difference(report, row, detail.spread),
            Text(numbers.milliseconds(row.latency.p50_ms if row.latency else None)),
            *([_end_to_end(row)] if second else []),
            *([Text(numbers.megabytes(row.peak_rss_bytes))] if memory else []),
            *(_speedup(row, name, detail.spread and (detail.other_spread or name == names[-1])) for name in shown),
        ]
        lines.append(tuple(cells))
    return Grid(tuple(heads), (*lines, *_refusals(report, target)), detail.gap)


def _refusals(report: Report, target: TargetRecord) -> Iterator[tuple[Text, ...]]:
    """Yield one line per row that did not run; rows with the same fate share one."""
    fates: dict[tuple[str, str], list[Row]] = {}
    for row in rows_of(report, target.name):
        if row.status != "ok":
            fates.setdefault((row.status, row.reason), []).append(row)
    for (status, reason), rows in fates.items():
        head = _step(report, rows[0]) if len(rows) == 1 else Text(f"  {len(rows)} steps", style="dim")
        words = f"{STATUS[status]}: {plain(reason) or 'no reason recorded'}"
        yield head, Text(words, style="dim" if status == "skipped" else "red")
    if not rows_of(report, target.name):
        yield Text("  no step", style="dim"), Text(f"skipped: {plain(absence(report, target))}", style="dim")


def plain(value: str) -> str:
    """Return text without control characters, which could drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in value)


def _step(report: Report, row: Row) -> Text:
    mark = mark_of(report, row)
    text = Text.assemble((mark or " ", _STYLES.get(mark, "")), " ", (plain(row.step), "bold" if mark == "→" else ""))
    return text.append("*", style="dim") if row.pareto else text


def _accuracy(row: Row, spread: bool) -> Text:
    score = row.accuracy
    if score is None:
        return Text(numbers.MISSING, style="dim")
    text = Text(numbers.metric(score.value, score.unit))
    return text.append(_dim(numbers.metric_spread(score.value, score.low, score.high, score.unit))) if spread else text


def _difference(report: Report, row: Row, spread: bool) -> Text:
    change = row.difference
    if change is None or change.baseline == row.step:
        return Text("reference" if row.step in references(report) else numbers.MISSING, style="dim")
    lower = row.accuracy is not None and row.accuracy.direction == "lower"
    arrow, style = EQUAL, "dim"
    if change.low is not None and change.high is not None and (change.low > 0 or change.high < 0):
        better = (change.low > 0) != lower
        arrow, style = (BETTER, "green") if better else (WORSE, "red")
    text = Text(numbers.points(change.points, change.unit))
    if spread:
        text.append(_dim(numbers.points_spread(change.points, change.low, change.high, change.unit)))
    return text.append(f" {arrow}", style=style)


def _speedup(row: Row, name: str, spread: bool) -> Text:
    speedup = row.speedups.get(name)
    if speedup is None:
        return Text(numbers.MISSING, style="dim")
    slower = speedup.text == "slower" or (speedup.ratio < 1 and (speedup.high is None or speedup.high < 1))
    text = Text(numbers.ratio(speedup.ratio), style="red" if slower else "")
    if spread:
        text.append(_dim(numbers.spread(speedup.ratio, speedup.low, speedup.high)))
    if speedup.text == "no difference":
        text.append(f" {EQUAL}", style="dim")
    return text


def _end_to_end(row: Row) -> Text:
    return Text(numbers.milliseconds(row.end_to_end.latency.p50_ms if row.end_to_end else None))


def _dim(text: str) -> Text:
    return Text(f" {text}" if text else "", style="dim")


def _two_lines(title: str) -> str:
    """Break a heading near its middle."""
    words = title.split()
    if len(words) < 3:
        return title
    cut = min(range(1, len(words)), key=lambda i: max(len(" ".join(words[:i])), len(" ".join(words[i:]))))
    return f"{' '.join(words[:cut])}\n{' '.join(words[cut:])}"


def _place(report: Report, name: str) -> str:
    recorded = [row.speedups[name].against for row in report.rows if name in row.speedups]
    places = dict.fromkeys(f"{where.step} on {where.target}" for where in recorded if where)
    default = f"{report.baselines[name].step} on {report.baselines[name].target}"
    return plain(" or ".join(places) or default)
