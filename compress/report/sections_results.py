"""Sections that show what was measured: results per target with their Pareto plot, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compress.report import numbers
from compress.report.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Heading,
    Point,
    Section,
    Table,
    TableRow,
    Tag,
    Tone,
)
from compress.report.model import Latency, Percentile, Report, Row, Speedup, TargetRecord, Unit

STATUS = {"skipped": "skipped", "failed": "failed", "oom": "out of memory"}
_STEP = Column("step", "step", numeric=False)


def results(report: Report) -> Section:
    """The main table and the Pareto plot of every target that could be measured, then those that could not."""
    blocks: list[Block] = []
    for target, table in tables(report):
        blocks += [Heading(target.name, describe(target)), table]
        blocks.extend(figure for figure in [pareto(report, target.name)] if figure)
    if any(not measured(report, target) for target in report.targets):
        blocks += [Heading("Targets that were not measured"), absent_targets(report)]
    intro = (
        f"Accuracy is that of the exact artifact on the exact target, on {report.data.evaluated}. "
        "Brackets are 95 % intervals. "
        "Speed-ups compare total time over the same real inputs, measured side by side in this run."
    )
    return Section("results", "Results", tuple(blocks), intro)


def tables(report: Report) -> list[tuple[TargetRecord, Table]]:
    """Return every target that was tried here, with its main table."""
    tried = [target for target in report.targets if measured(report, target)]
    return [(target, results_table(report, target.name, legend=target is tried[0])) for target in tried]


def results_table(report: Report, target: str, *, legend: bool = True) -> Table:
    """One line per step: size, accuracy, difference, latency, speed-up over each baseline."""
    rows = rows_of(report, target)
    names = baselines_of(report, rows)
    columns = [
        _STEP,
        Column("size", "size", "MB", "graph and weights on disk; 1 MB = 1,000,000 bytes"),
        Column(
            "accuracy", _metric_name(rows), _metric_unit(rows), f"on {_count_of(rows)} {report.data.evaluated} examples"
        ),
        Column("difference", "Δ", _difference_unit(rows), f"paired difference from {_baseline_of(rows)}"),
        Column("p50", "p50", "ms", "median time of one input at its real length, batch 1"),
        *(
            Column(f"speedup:{name}", f"vs {name}", meaning=f"speed-up over {_compared_with(report, rows, name)}")
            for name in names
        ),
        Column("status", "evidence", meaning="measured here, or a stand-in (proxy, emulated, ingested)", numeric=False),
    ]
    lines = tuple(_result_row(report, row, names, len(columns)) for row in rows)
    return Table(tuple(columns), lines, (*footnotes(rows), *gaps(lines)), legend)


def _result_row(report: Report, row: Row, names: Sequence[str], width: int) -> TableRow:
    step = Cell(row.step, tags=tags_of(report, row))
    strong = ships(report, row)
    if row.status != "ok":
        return TableRow((step, refusal(row, width - 1)), strong)
    cells = [
        step,
        Cell(numbers.megabytes(row.size_bytes)),
        accuracy_cell(row),
        difference_cell(row, is_reference=row.step in references(report)),
        Cell(numbers.milliseconds(row.latency.p50_ms if row.latency else None)),
        *(speedup_cell(row.speedups.get(name)) for name in names),
        Cell(row.evidence, tone="muted"),
    ]
    return TableRow(tuple(cells), strong)


def accuracy(report: Report) -> Section:
    """Counts, paired differences, p-values and agreement of every row that ran."""
    ran = [row for row in report.rows if row.status == "ok"]
    calibrated = any(row.accuracy and row.accuracy.calibration_error is not None for row in ran)
    error = Column(
        "ece", "calibration error", "%", "mean gap between confidence and accuracy over 15 bins; lower is better"
    )
    several = len({row.difference.baseline for row in ran if row.difference}) > 1
    baseline = "the baseline step" if several else _baseline_of(ran)
    against = Column("against", "against", "", "baseline step of the difference", numeric=False)
    columns = (
        _STEP,
        Column("target", "target", numeric=False),
        Column("right", "right", "of n"),
        Column("accuracy", _metric_name(ran), _metric_unit(ran)),
        Column("difference", "Δ", _difference_unit(ran), f"paired difference from {baseline}"),
        *([against] if several else []),
        Column("p", "p", "", "probability of such a difference if both were equally good"),
        Column("agreement", "agreement", "", "share of predictions equal to those of the recipe's model"),
        *([error] if calibrated else []),
        Column("reading", "reading", numeric=False),
    )
    keys, compared = [column.key for column in columns], references(report)
    lines = tuple(_accuracy_row(row, keys, is_reference=row.step in compared) for row in ran)
    intro = (
        "Both models answered the same examples, so differences are paired: far tighter than two separate intervals."
    )
    return Section("accuracy", f"Accuracy on {report.data.evaluated}", (Table(columns, lines, gaps(lines)),), intro)


def _accuracy_row(row: Row, keys: Sequence[str], *, is_reference: bool) -> TableRow:
    step, target = Cell(row.step), Cell(row.target, tone="muted")
    if row.accuracy is None:
        return TableRow(
            (step, target, Cell(f"not measured: {_why(row, 'accuracy')}", tone="muted", span=len(keys) - 2))
        )
    score, change = row.accuracy, row.difference
    n = numbers.count(score.n)
    return TableRow(
        (
            step,
            target,
            Cell(f"n = {n}" if score.right is None else f"{numbers.count(score.right)} of {n}"),
            accuracy_cell(row),
            difference_cell(row, is_reference=is_reference),
            *([Cell(change.baseline if change else numbers.MISSING)] if "against" in keys else []),
            Cell(numbers.p_value(change.p_value if change else None)),
            Cell(numbers.share(row.agreement)),
            *([_ece_cell(row)] if "ece" in keys else []),
            Cell((change.text if change else "reference" if is_reference else "") or numbers.MISSING),
        )
    )


def _ece_cell(row: Row) -> Cell:
    error = row.accuracy.calibration_error if row.accuracy else None
    return Cell(numbers.MISSING if error is None else numbers.fixed(100 * error, 2))


def pareto(report: Report, target: str) -> Figure | None:
    """The plot of a target, or None if fewer than two rows have both coordinates."""
    eight_bits = {step.id for step in report.steps if "int8" in step.traits}
    baseline = next(reversed(baselines_of(report, rows_of(report, target))), "")
    points = tuple(
        Point(
            label=row.step,
            x=row.latency.p50_ms,
            y=row.accuracy.value,
            low=row.accuracy.low,
            high=row.accuracy.high,
            size_bytes=row.size_bytes,
            pareto=row.pareto,
            ships=ships(report, row),
            family=row.family or "",
            int8=row.step in eight_bits,
            speedup=numbers.ratio(row.speedups[baseline].ratio) if baseline in row.speedups else "",
            x_low=_median(row.latency).low_ms,
            x_high=_median(row.latency).high_ms,
        )
        for row in rows_of(report, target)
        if row.status == "ok" and row.latency and row.accuracy
    )
    if len(points) < 2:
        return None
    rows = rows_of(report, target)
    frontier = [point for point in points if point.pareto]
    kept = ", ".join(f"{p.label} ({p.speedup})" if p.speedup else p.label for p in frontier) or "none"
    over = f" (speed-ups over {baseline})" if any(p.speedup for p in frontier) else ""
    beaten = ", ".join(p.label for p in points if not p.pareto) or "none"
    name, unit = _metric_name(rows), _metric_unit(rows)
    words = f"Pareto frontier of {target}{over}: {kept}. Dominated (another one is faster and as accurate): {beaten}."
    return Figure(
        title=f"{name} against latency on {target}",
        x_title="p50 latency, ms",
        y_title=f"{name}, {unit}" if unit else name,
        percent=unit == "%",
        points=points,
        summary=words,
    )


def _median(latency: Latency) -> Percentile:
    """Return the median with its interval, if that was recorded."""
    return next((it for it in latency.percentiles if it.q == 50), Percentile(q=50))


def absent_targets(report: Report) -> Table:
    columns = (Column("target", "target", numeric=False), Column("reason", "why not", numeric=False))
    missing = [target for target in report.targets if not measured(report, target)]
    lines = (TableRow((Cell(t.name), Cell(f"not measured: {absence(report, t)}", tone="muted"))) for t in missing)
    return Table(columns, tuple(lines))


def absence(report: Report, target: TargetRecord) -> str:
    """Say why a target has no measured row."""
    reasons = dict.fromkeys(row.reason for row in rows_of(report, target.name) if row.reason)
    return target.reason or "; ".join(reasons) or "no step of the recipe runs on it"


def describe(target: TargetRecord) -> str:
    """Return one line: runtime, device, threads, memory limit, evidence, description."""
    threads = "all cores" if target.threads is None else f"{target.threads} thread{'s' if target.threads > 1 else ''}"
    parts = [target.runtime, target.device, threads]
    if target.isa is not None:
        parts.append(f"instructions up to {target.isa}")
    if target.memory_bytes is not None:
        parts.append(f"{numbers.fixed(target.memory_bytes / 1e6, 0)} MB memory limit")
    parts.append(target.evidence)
    machine = f" on {target.environment.cpu}, {target.environment.os}" if target.environment else ""
    return ", ".join(parts) + machine + (f". {target.description}" if target.description else "")


def rows_of(report: Report, target: str) -> list[Row]:
    return [row for row in report.rows if row.target == target]


def baselines_of(report: Report, rows: Iterable[Row]) -> list[str]:
    """Return the baselines that any of the rows is compared with, in order; all there are if none is."""
    present = {name for row in rows for name in row.speedups}
    return [name for name in report.baselines if name in present] or list(report.baselines)


def ships(report: Report, row: Row) -> bool:
    verdict = report.verdict
    return verdict.step == row.step and verdict.target in (row.target, None)


def references(report: Report) -> frozenset[str]:
    """Return the steps that differences of accuracy start from."""
    return frozenset(row.difference.baseline for row in report.rows if row.difference)


def tags_of(report: Report, row: Row) -> tuple[Tag, ...]:
    """Return the marks of a row: ship, Pareto, gate failed."""
    tags = [Tag("ship", "good")] if ships(report, row) else []
    gates = [gate for step in report.steps if step.id == row.step for gate in step.gates]
    if any(gate.verdict == "fail" for gate in gates):
        tags.append(Tag("gate failed", "bad"))
    elif any(gate.verdict == "unresolved" for gate in gates):
        tags.append(Tag("gate unresolved", "warn"))
    if row.pareto:
        tags.append(Tag("Pareto", "muted"))
    return tuple(tags)


def mark_of(report: Report, row: Row) -> str:
    """Return the same in one character: → ships, ✗ a gate failed, ? a gate is unresolved; or none."""
    tones = {tag.tone for tag in tags_of(report, row)}
    return next((mark for tone, mark in (("good", "→"), ("bad", "✗"), ("warn", "?")) if tone in tones), "")


def accuracy_cell(row: Row) -> Cell:
    score = row.accuracy
    if score is None:
        return Cell(numbers.MISSING, tone="muted")
    return Cell(
        numbers.metric(score.value, score.unit),
        numbers.metric_interval(score.low, score.high, score.unit),
    )


def difference_cell(row: Row, *, is_reference: bool = False) -> Cell:
    """Return a difference with its interval; the model that the others are compared with says so."""
    change = row.difference
    if change is None or change.baseline == row.step:
        return Cell("reference" if is_reference else numbers.MISSING, tone="muted")
    return Cell(
        numbers.points(change.points, change.unit), numbers.points_interval(change.low, change.high, change.unit)
    )


def difference_cell_of(points: float | None, unit: Unit, low: float | None = None, high: float | None = None) -> Cell:
    """Return a difference with its interval; marked where all of the interval is a loss."""
    tone: Tone = "bad" if high is not None and high < 0 else "plain"
    return Cell(numbers.points(points, unit), numbers.points_interval(low, high, unit), tone)


def speedup_cell(speedup: Speedup | None) -> Cell:
    """Return a ratio with its interval; a slowdown is marked."""
    if speedup is None:
        return Cell(numbers.MISSING, tone="muted")
    slower = speedup.ratio < 1 and (speedup.high is None or speedup.high < 1)
    unclear = (Tag(speedup.text, "muted"),) if speedup.text == "no difference" else ()
    tone: Tone = "bad" if slower else "plain"
    return Cell(numbers.ratio(speedup.ratio), numbers.interval(speedup.low, speedup.high), tone, unclear)


def measured(report: Report, target: TargetRecord) -> bool:
    return any(row.status in ("ok", "oom", "failed") for row in rows_of(report, target.name))


def refusal(row: Row, span: int) -> Cell:
    tone: Tone = "muted" if row.status == "skipped" else "bad"
    return Cell(f"{STATUS[row.status]}: {row.reason or 'no reason recorded'}", tone=tone, span=span)


def footnotes(rows: list[Row]) -> tuple[str, ...]:
    """Say what is missing and what to beware of; a sentence that several rows share is said once."""
    steps: dict[str, list[str]] = {}
    for row in rows:
        missing = [f"{what.replace('_', ' ')} not measured: {why}" for what, why in row.not_measured.items()]
        others = [warning for warning in row.warnings if warning not in row.not_measured.values()]
        for sentence in dict.fromkeys([*missing, *_twin(row), *others]):
            steps.setdefault(sentence, []).append(row.step)
    every = len({row.step for row in rows})
    return tuple(
        f"{'every row' if 1 < every == len(names) else ', '.join(names)}: {sentence}"
        for sentence, names in steps.items()
    )


def _twin(row: Row) -> tuple[str, ...]:
    """Say how an emulated row's answers compare with the same artifact's on this machine."""
    twin = row.twin
    if twin is None:
        return ()
    where = f"emulated ({row.isa})" if row.isa else "emulated"
    return (f"{where}: same answer as on {twin.target} for {twin.same} of {twin.n}, outputs within {twin.max_abs:.2g}",)


def gaps(lines: Iterable[TableRow]) -> tuple[str, ...]:
    """Return the footnote that explains a dash, if there is one."""
    dashes = any(cell.text == numbers.MISSING for line in lines for cell in line.cells)
    return (f"{numbers.MISSING}: not measured, or without meaning in this row.",) if dashes else ()


def _compared_with(report: Report, rows: list[Row], name: str) -> str:
    """Say what a baseline is: as the rows recorded it, else as the report did."""
    recorded = [row.speedups[name].against for row in rows if name in row.speedups]
    places = {f"{where.step} on {where.target}": None for where in recorded if where} or {
        f"{report.baselines[name].step} on {report.baselines[name].target}": None
    }
    return " or ".join(places)


def _why(row: Row, what: str) -> str:
    return row.not_measured.get(what, "no reason recorded")


def metric_title(report: Report) -> tuple[str, str]:
    """Return name and unit of the report's metric."""
    return _metric_name(list(report.rows)), _metric_unit(list(report.rows))


def _metric_name(rows: list[Row]) -> str:
    return next((row.accuracy.metric for row in rows if row.accuracy), "accuracy")


def _metric_unit(rows: list[Row]) -> str:
    return next(("%" if row.accuracy.unit == "percent" else "" for row in rows if row.accuracy), "%")


def _difference_unit(rows: list[Row]) -> str:
    return next(("points" if row.difference.unit == "percent" else "" for row in rows if row.difference), "points")


def _count_of(rows: list[Row]) -> str:
    counts = sorted({row.accuracy.n for row in rows if row.accuracy})
    return " / ".join(numbers.count(n) for n in counts) or "no"


def _baseline_of(rows: list[Row]) -> str:
    return ", ".join(sorted({row.difference.baseline for row in rows if row.difference})) or "the recipe's model"
