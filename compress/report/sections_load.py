"""Sections about a device that is kept busy, its memory and its energy: sweeps, scenarios, phases, joules."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import numbers
from compress.report.blocks import (
    Block,
    Cell,
    Column,
    Heading,
    Layer,
    Line,
    Lines,
    Mark,
    Section,
    Stack,
    Stacks,
    Table,
    TableRow,
)
from compress.report.model import Memory, Report, Row, ScenarioResult, ThroughputPoint
from compress.report.sections_results import gaps, refusal, rows_of, ships

FEW = 6
"""Rows that a figure shows; the table beneath it has all of them."""
_STEP = Column("step", "step", numeric=False)
_PHASES = {"import": "at import", "load": "loaded", "first": "first run", "steady": "steady", "peak": "peak"}


def throughput(report: Report) -> Section | None:
    """Inputs per second on every target: as measured, swept over batches and streams, in scenarios."""
    blocks: list[Block] = []
    for target in report.targets:
        rows = rows_of(report, target.name)
        if any(row.throughput_per_s is not None or row.throughputs for row in rows):
            blocks += [Heading(target.name), *_swept(report, target.name, rows, legend=not blocks)]
    scenarios = [(row, it) for row in report.rows for it in row.scenarios]
    if scenarios:
        blocks += [
            Heading("Scenarios", "MLPerf-style, driven by LoadGen in shortened runs: not MLPerf results"),
            _scenarios(scenarios),
        ]
    intro = "Measured with the device kept busy: never one over the latency."
    return Section("throughput", "Throughput", tuple(blocks), intro) if blocks else None


def _swept(report: Report, target: str, rows: list[Row], *, legend: bool) -> list[Block]:
    figure = sweep(report, target)
    return [*([figure] if figure else []), _throughput_table(rows, legend=legend)]


def sweep(report: Report, target: str) -> Lines | None:
    """Return inputs per second over the batch size with one batch in flight, or None without a sweep."""
    rows = [row for row in rows_of(report, target) if len(_single(row)) > 1]
    shown = chosen(report, rows)
    if not shown:
        return None
    lines = tuple(Line(row.step, tuple(_mark(it) for it in _single(row)), ships(report, row)) for row in shown)
    peaks = "; ".join(f"{row.step} {_best(_single(row))}" for row in shown)
    return Lines(
        title=f"Throughput over batch size on {target}",
        x_title="inputs per batch",
        y_title="inputs per second",
        lines=lines,
        summary=f"Most inputs per second on {target}: {peaks}.{_left_out(rows, shown)} Ring: the best batch.",
    )


def _single(row: Row) -> list[ThroughputPoint]:
    return sorted((it for it in row.throughputs if it.streams == 1), key=lambda it: it.batch)


def _mark(it: ThroughputPoint) -> Mark:
    return Mark(it.batch, it.per_s, it.low, it.high, f"{numbers.fixed(it.per_s, 1)} per s at batch {it.batch}", it.best)


def _best(points: Sequence[ThroughputPoint]) -> str:
    it = next((point for point in points if point.best), None) or max(points, key=lambda point: point.per_s)
    return f"{numbers.fixed(it.per_s, 1)} at batch {it.batch}"


def _throughput_table(rows: list[Row], *, legend: bool) -> Table:
    settings = sorted({(it.streams, it.batch) for row in rows for it in row.throughputs})
    columns = (
        _STEP,
        Column("throughput", "throughput", "per s", "measured in batches, of the size below it"),
        *(
            Column(f"at:{batch}:{streams}", f"batch {batch}", f"{streams} streams" if streams > 1 else "")
            for streams, batch in settings
        ),
    )
    lines = []
    for row in rows:
        if row.status != "ok":
            lines.append(TableRow((Cell(row.step), refusal(row, len(columns) - 1))))
            continue
        known = {(it.streams, it.batch): it for it in row.throughputs}
        batch = f"batch {row.throughput_batch}" if row.throughput_batch else ""
        cells = [Cell(row.step), Cell(numbers.fixed(row.throughput_per_s, 1), batch)]
        for setting in settings:
            it = known.get(setting)
            cells.append(
                Cell(numbers.fixed(it.per_s, 1), numbers.interval(it.low, it.high, 1), "good" if it.best else "plain")
                if it
                else Cell(numbers.MISSING, tone="muted")
            )
        lines.append(TableRow(tuple(cells)))
    return Table(columns, tuple(lines), gaps(lines), legend)


def _scenarios(results: Sequence[tuple[Row, ScenarioResult]]) -> Table:
    columns = (
        _STEP,
        Column("target", "target", numeric=False),
        Column("scenario", "scenario", numeric=False),
        Column("value", "result", "", "single-stream: a percentile of the latency; others: inputs per second"),
        Column("bound", "bound", "ms", "server: what the percentile must keep, and below it what it was"),
        Column("queries", "queries"),
        Column("valid", "valid", "", "whether LoadGen's own conditions for this run held", numeric=False),
        Column("reading", "reading", numeric=False),
    )
    lines = []
    for row, it in results:
        value = Cell("not reached", tone="warn") if it.value is None else Cell(f"{numbers.fixed(it.value)} {it.unit}")
        if it.value is not None and it.unit == "ms" and it.percentile is not None:
            value = Cell(value.text, f"p{it.percentile:g}")
        seen = f"p{it.percentile:g} was {numbers.fixed(it.observed_ms, 1)}" if it.observed_ms and it.percentile else ""
        took = f"in {numbers.duration(it.seconds)}" if it.seconds is not None else ""
        lines.append(
            TableRow(
                (
                    Cell(row.step),
                    Cell(row.target, tone="muted"),
                    Cell(it.scenario),
                    value,
                    Cell(numbers.fixed(it.bound_ms, 1), seen),
                    Cell(numbers.count(it.queries), took),
                    Cell("yes" if it.valid else "no", tone="plain" if it.valid else "warn"),
                    Cell(it.text or numbers.MISSING),
                )
            )
        )
    return Table(columns, tuple(lines), gaps(lines))


def memory(report: Report) -> Section:
    """Memory of every row under one definition each, and how it grows from phase to phase."""
    blocks: list[Block] = []
    for target in report.targets:
        rows = [row for row in rows_of(report, target.name) if row.status == "ok" or row.status == "oom"]
        if any(row.peak_rss_bytes is not None or row.memory for row in rows):
            figure = phases(report, target.name)
            table = _memory_table(rows, legend=not blocks)
            blocks += [Heading(target.name), *([figure] if figure else []), table]
    intro = (
        "Of one fresh process, resident pages only: virtual memory is never counted. Mapped pages are files that the "
        "system can drop and read again; anonymous ones cannot be."
    )
    return Section("memory", "Memory", tuple(blocks), intro)


def phases(report: Report, target: str) -> Stacks | None:
    """Return resident memory of the rows that matter, phase by phase, or None where no phase was recorded."""
    rows = [row for row in rows_of(report, target) if row.memory and row.memory.phases]
    shown = chosen(report, rows)
    if not shown:
        return None
    stacks = tuple(Stack(row.step, _layers(row.memory), ships(report, row)) for row in shown if row.memory)
    peaks = [f"{stack.step} {stack.layers[-1].text}" for stack in stacks]
    return Stacks(
        title=f"Resident memory by phase on {target}",
        x_title="resident memory, MB",
        stacks=stacks,
        summary=f"Resident memory on {target}, last phase: {'; '.join(peaks)}.{_left_out(rows, shown)}",
        solid="anonymous (heap)",
        pale="mapped files",
    )


def _layers(it: Memory) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            name=_PHASES[phase.name],
            total=phase.rss_bytes / 1e6,
            solid=None if phase.anonymous_bytes is None else phase.anonymous_bytes / 1e6,
            pale=None if phase.mapped_bytes is None else phase.mapped_bytes / 1e6,
            text=f"{numbers.fixed(phase.rss_bytes / 1e6, 0)} MB",
        )
        for phase in it.phases
    )


def _memory_table(rows: list[Row], *, legend: bool) -> Table:
    wanted = (
        Column("disk", "on disk", "MB", "graph and weights"),
        Column("import", "at import", "MB", "resident memory before the artifact was opened"),
        Column("weights", "weights", "MB", "resident growth while the artifact was opened"),
        Column("first", "first run", "MB", "resident memory after the first inference"),
        Column("steady", "steady", "MB", "resident memory after many inferences; mapped: of it, files"),
        Column("peak", "peak RSS", "MB", "peak resident memory of the measuring process, with its imports"),
        Column("over", "peak − import", "MB", "peak resident minus resident after the imports"),
        Column("allocator", "GPU allocator", "MB", "peak by the framework's own allocator"),
        Column("process", "GPU process", "MB", "peak of the process as the driver sees it"),
    )
    values = [_memory_values(row) for row in rows]
    columns = [column for column in wanted if any(line.get(column.key) is not None for line in values)]
    lines = []
    for row, line in zip(rows, values, strict=True):
        if row.status != "ok":
            lines.append(TableRow((Cell(row.step), refusal(row, len(columns)))))
            continue
        cells = [Cell(row.step)]
        mapped: dict[str, int | None] = {it.name: it.mapped_bytes for it in (row.memory.phases if row.memory else ())}
        for column in columns:
            amount = line.get(column.key)
            shared = mapped.get(column.key)
            detail = "" if shared is None else f"{numbers.fixed(shared / 1e6, 1)} mapped"
            cells.append(Cell(numbers.fixed(None if amount is None else amount / 1e6, 1), detail))
        lines.append(TableRow(tuple(cells)))
    return Table((_STEP, *columns), tuple(lines), gaps(lines), legend)


def _memory_values(row: Row) -> dict[str, int | None]:
    it = row.memory
    at = {phase.name: phase.rss_bytes for phase in it.phases} if it else {}
    return {
        "disk": row.size_bytes,
        "import": row.import_rss_bytes if row.import_rss_bytes is not None else at.get("import"),
        "weights": it.load_growth_bytes if it else None,
        "first": at.get("first"),
        "steady": at.get("steady"),
        "peak": row.peak_rss_bytes if row.peak_rss_bytes is not None else at.get("peak"),
        "over": it.peak_over_import_bytes if it else None,
        "allocator": it.gpu_allocator_bytes if it else None,
        "process": it.gpu_process_bytes if it else None,
    }


def energy(report: Report) -> Section | None:
    """Energy of one input, where a counter could be read."""
    rows = [(row, row.energy) for row in report.rows if row.energy]
    if not rows:
        return None
    columns = (
        _STEP,
        Column("target", "target", numeric=False),
        Column("energy", "energy", "J per input"),
        Column("power", "mean power", "W", "while it ran, idle not subtracted"),
        Column("source", "counter", numeric=False),
    )
    lines = tuple(
        TableRow(
            (
                Cell(row.step),
                Cell(row.target, tone="muted"),
                Cell(numbers.fixed(it.joules_per_input, 4)),
                Cell(numbers.fixed(it.watts, 1)),
                Cell(it.source),
            )
        )
        for row, it in rows
    )
    return Section("energy", "Energy", (Table(columns, lines, gaps(lines)),), "Read from the machine's own counters.")


def chosen(report: Report, rows: Sequence[Row]) -> list[Row]:
    """Return at most ``FEW`` rows in their order: what ships, the baselines, the frontier, then the others."""
    baselines = {(where.step, where.target) for where in report.baselines.values()}

    def rank(row: Row) -> int:
        if ships(report, row):
            return 0
        return 1 if (row.step, row.target) in baselines else 2 if row.pareto else 3

    kept = sorted(range(len(rows)), key=lambda i: (rank(rows[i]), i))[:FEW]
    return [rows[i] for i in sorted(kept)]


def _left_out(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    left = len(rows) - len(shown)
    return f" {left} more {'is' if left == 1 else 'are'} in the table." if left else ""
