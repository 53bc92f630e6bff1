"""Sections about time: both clocks, percentiles, distributions, what starting costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compress.report import numbers
from compress.report.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Heading,
    Section,
    Strip,
    Strips,
    Table,
    TableRow,
    Tone,
)
from compress.report.model import Latency, Lengths, Report, Row
from compress.report.sections_results import baselines_of, gaps, measured, refusal, rows_of, ships, speedup_cell

_STEP = Column("step", "step", numeric=False)
_TONES: dict[str | None, Tone] = {"stable": "plain", "drifting": "warn", "noisy": "warn"}
_SAMPLES = 101


def timing(report: Report) -> Section:
    """Time of one input on every target: two clocks side by side, percentiles, where the samples lie."""
    blocks: list[Block] = []
    first = report.verdict.target or next((row.target for row in report.rows if row.latency), "")
    for target in report.targets:
        rows = rows_of(report, target.name)
        timed = [row for row in rows if row.latency]
        if not measured(report, target) or not any(row.latency for row in rows):
            continue
        blocks += [Heading(target.name, _protocol(timed)), _clocks(report, rows, legend=not blocks)]
        blocks.extend(figure for figure in [distribution(report, target.name)] if figure)
        blocks += _percentiles(timed, opened=target.name == first)
    intro = (
        "One input after another, batch 1, one in flight, each variant alone in fresh processes. Model only is the "
        "call of the runtime; end to end adds preprocessing, copies and decoding. Compare within a table only: "
        "milliseconds do not travel."
    )
    return Section("timing", "Latency", tuple(blocks), intro)


def _protocol(rows: Sequence[Row]) -> str:
    latencies = [row.latency for row in rows if row.latency]
    if not latencies:
        return "latency not measured"
    it = latencies[0]
    launches = f", {it.launches} launches" if it.launches > 1 else ""
    words = f"{numbers.count(it.inputs)} real inputs{_lengths(it.tokens)}, {it.rounds} rounds{launches}"
    warmups = [found.warmup_s for found in latencies if found.warmup_s is not None]
    if not warmups:
        return words
    span = dict.fromkeys(numbers.fixed(value, 1) for value in (min(warmups), max(warmups)))
    return f"{words}, each after {' to '.join(span)} s of warm-up"


def _lengths(it: Lengths | None) -> str:
    if it is None:
        return ""
    if it.least == it.most:
        return f" of {numbers.count(it.most)} token{'s' if it.most != 1 else ''}"
    return f" of {numbers.count(it.least)} to {numbers.count(it.most)} tokens (median {it.median:g})"


def _clocks(report: Report, rows: list[Row], *, legend: bool) -> Table:
    both = any(row.end_to_end for row in rows)
    steady = any(row.latency and row.latency.stability for row in rows)
    baseline = next(reversed(baselines_of(report, rows)), "")
    clock = "model only: " if both else ""
    columns = [
        _STEP,
        Column("p50", "p50", "model, ms" if both else "ms", f"{clock}median"),
        Column("p90", "p90", "model, ms" if both else "ms", f"{clock}90 % took at most this"),
        Column("mean", "mean", "model, ms" if both else "ms"),
    ]
    device = any(row.latency and row.latency.device_ms for row in rows)
    if device:
        columns.append(
            Column("device", "GPU", "kernels, ms", "median of the kernels alone, by CUDA events, in own runs")
        )
    if both:
        columns += [
            Column("e2e50", "p50", "end to end, ms"),
            Column("e2emean", "mean", "end to end, ms"),
            Column("overhead", "overhead", "ms", "mean end to end minus mean of the model alone"),
        ]
        if baseline:
            columns.append(Column("e2espeed", f"vs {baseline}", "end to end", "ratio of total times end to end"))
    columns.append(Column("cv", "CV", "", "standard deviation of the rounds over their mean"))
    if steady:
        columns.append(Column("stability", "rounds", numeric=False))
    lines = tuple(_clock_row(row, len(columns), device, both, steady, baseline) for row in rows)
    notes = _shared((row.step, row.latency.stability_text) for row in rows if row.latency and _unsteady(row.latency))
    return Table(tuple(columns), lines, (*notes, *gaps(lines)), legend)


def _unsteady(latency: Latency) -> bool:
    return latency.stability in ("drifting", "noisy") and bool(latency.stability_text)


def _clock_row(row: Row, width: int, device: bool, both: bool, steady: bool, baseline: str) -> TableRow:
    if row.status != "ok":
        return TableRow((Cell(row.step), refusal(row, width - 1)))
    it, whole = row.latency, row.end_to_end
    cells = [
        Cell(row.step),
        Cell(numbers.milliseconds(it.p50_ms if it else None)),
        _ninety(it),
        Cell(numbers.milliseconds(it.mean_ms if it else None)),
    ]
    if device:
        cells.append(Cell(numbers.milliseconds(it.device_ms if it else None)))
    if both:
        cells += [
            Cell(numbers.milliseconds(whole.latency.p50_ms if whole else None)),
            Cell(numbers.milliseconds(whole.latency.mean_ms if whole else None)),
            Cell(numbers.milliseconds(whole.overhead_ms if whole else None)),
        ]
        if baseline:
            cells.append(speedup_cell(whole.speedups.get(baseline) if whole else None))
    cells.append(Cell(numbers.share(it.cv if it else None, 1)))
    if steady:
        verdict = it.stability if it else None
        cells.append(Cell(verdict or numbers.MISSING, tone=_TONES.get(verdict, "muted")))
    return TableRow(tuple(cells))


def _ninety(it: Latency | None) -> Cell:
    """Return the 90th percentile; one that is hidden has its reason in the table of percentiles."""
    hidden = it is not None and any(p.q == 90 and p.value_ms is None for p in it.percentiles)
    return Cell("hidden", tone="muted") if hidden else Cell(numbers.milliseconds(it.p90_ms if it else None))


def _percentiles(rows: Sequence[Row], *, opened: bool) -> list[Block]:
    """The model's percentiles, open on the target of the verdict, then those end to end."""
    model = [(row.step, row.latency) for row in rows if row.latency and row.latency.percentiles]
    whole = [
        (row.step, row.end_to_end.latency) for row in rows if row.end_to_end and row.end_to_end.latency.percentiles
    ]
    blocks: list[Block] = []
    if model and opened:
        blocks.append(_percentile_table(model))
    elif model:
        blocks.append(Fold("Percentiles, model only", (_percentile_table(model),)))
    if whole:
        blocks.append(Fold("Percentiles end to end", (_percentile_table(whole),)))
    return blocks


def _percentile_table(latencies: Sequence[tuple[str, Latency]]) -> Table:
    ranks = sorted({it.q for _, latency in latencies for it in latency.percentiles})
    columns = (_STEP, *(Column(f"q:{q:g}", f"p{q:g}", "ms") for q in ranks))
    lines, hidden = [], []
    for step, latency in latencies:
        known = {it.q: it for it in latency.percentiles}
        cells = [Cell(step)]
        for q in ranks:
            it = known.get(q)
            if it is None:
                cells.append(Cell(numbers.MISSING, tone="muted"))
            elif it.value_ms is None:
                cells.append(Cell("hidden", tone="muted"))
                hidden.append((step, f"p{q:g} is hidden: {it.reason or 'no reason recorded'}"))
            else:
                cells.append(Cell(numbers.milliseconds(it.value_ms), numbers.interval(it.low_ms, it.high_ms)))
        lines.append(TableRow(tuple(cells)))
    return Table(columns, tuple(lines), (*_shared(hidden), *gaps(lines)))


def distribution(report: Report, target: str) -> Strips | None:
    """Return where the samples of every row lie, or None where no row kept its quantiles."""
    strips: list[Strip] = []
    for row in rows_of(report, target):
        for latency, second in ((row.latency, False), (row.end_to_end.latency if row.end_to_end else None, True)):
            if latency and len(latency.quantiles_ms) == _SAMPLES:
                text = f"{numbers.milliseconds(latency.p50_ms)} ms"
                strips.append(Strip(row.step, latency.quantiles_ms, text, second, ships(report, row)))
    if not strips:
        return None
    fastest = min((s for s in strips if not s.second), key=lambda s: s.quantiles[50], default=strips[0])
    summary = (
        f"Distribution of all samples on {target}. Box: the middle half; line: from 1 to 99 %; stroke in the box and "
        f"number at the right: the median. Lowest median: {fastest.step}, {fastest.text}."
    )
    return Strips(
        title=f"Distribution of latency on {target}",
        x_title="time of one input, ms",
        strips=tuple(strips),
        summary=summary,
        plain="model only",
        hollow="end to end",
    )


def starting(report: Report) -> Section | None:
    """Costs paid once: making the artifact, opening it, the first inference."""
    rows = [row for row in report.rows if row.status == "ok" and (row.load_ms or row.first_ms)]
    if not rows:
        return None
    seconds = {step.id: step.seconds for step in report.steps}
    passes = {step.id: step.name for step in report.steps}
    columns = (
        _STEP,
        Column("target", "target", numeric=False),
        Column("made", "making it", "", "wall time of its last pass (export, quantize, build) when it was done"),
        Column("load", "load", "ms", "opening the artifact"),
        Column("first", "first run", "ms", "first inference after opening"),
    )
    lines = tuple(
        TableRow(
            (
                Cell(row.step),
                Cell(row.target, tone="muted"),
                Cell(numbers.duration(seconds.get(row.step)), passes.get(row.step, "")),
                Cell(numbers.fixed(row.load_ms, 1)),
                Cell(numbers.fixed(row.first_ms, 1)),
            )
        )
        for row in rows
    )
    return Section(
        "starting", "Cold costs", (Table(columns, lines, gaps(lines)),), "Paid once, before the first answer."
    )


def _shared(sentences: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return each sentence once, with the steps that it is about."""
    steps: dict[str, list[str]] = {}
    for step, sentence in sentences:
        steps.setdefault(sentence, []).append(step)
    return tuple(f"{', '.join(dict.fromkeys(names))}: {sentence}" for sentence, names in steps.items())
