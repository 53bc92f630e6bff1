"""Sections about searches: latencies asked, predicted and measured, widths, students beside pruned models."""

from __future__ import annotations

from compress.report import numbers
from compress.report.blocks import Bullets, Cell, Column, Paragraph, Section, Table, TableRow, Tone
from compress.report.model import LatencySearch, Report, Row, StudentMatch, Widths
from compress.report.sections_results import speedup_cell

CLOSE = 0.10
"""A prediction counts as close within this share of the measured latency."""
UNSTEADY = 0.15
"""A dense model whose time differs by more than this share of it speaks of a busy machine."""
_EQUAL = 0.05
"""Latencies that differ by less than this share are called equal."""
_STEP = Column("step", "step", numeric=False)


def latency(report: Report) -> Section | None:
    """Every search for a latency: what was asked, predicted, measured while searching, measured in this report."""
    if not report.searches:
        return None
    columns = (
        _STEP,
        Column("asked", "asked", meaning="what the recipe wants of the model as deployed"),
        Column("predicted", "predicted", meaning="by the latency table"),
        Column("searched", "while searching", meaning="the chosen model, as the search timed it"),
        Column("measured", "in this report", meaning="what was made of it since, timed on the evaluated split"),
        Column("error", "error", "", "predicted over measured latency, each a share of the dense model's, minus 1"),
        Column("met", "keeps the budget", "", "as measured in this report", numeric=False),
    )
    rows = tuple(_search_row(search) for search in report.searches)
    notes = tuple(f"{s.step}: not compared: {s.reason}." for s in report.searches if s.reason)
    notes += tuple(
        f"{s.step}: while searching, the dense model's time was {numbers.fixed(100 * s.drift, 0, signed=True)} % from "
        "that in the latency table: the machine was not steady, and a quiet one gives other speed-ups."
        for s in report.searches
        if abs(s.drift) > UNSTEADY
    )
    intro = (
        "Speed-ups over the dense FP32 ONNX model on the same target, each measured beside it. "
        "The search proposes widths by its prediction and decides by its own measurement."
    )
    return Section("latency", _LATENCY, (Paragraph(closeness(report)), Table(columns, rows, notes)), intro)


_LATENCY = "Predicted and measured latency"


def closeness(report: Report) -> str:
    """Say in one line how many predictions were close and how many budgets are kept."""
    errors = [search.error for search in report.searches if search.error is not None]
    met = [search.met for search in report.searches if search.met is not None]
    if not errors:
        return f"None of {_plural(len(report.searches), 'search', 'searches')} was measured in this report."
    close = sum(abs(error) <= CLOSE for error in errors)
    text = f"{close} of {_plural(len(errors), 'prediction')} within {numbers.share(CLOSE, 0)} of the measured latency"
    return f"{text}; {sum(met)} of {_plural(len(met), 'budget')} kept." if met else f"{text}."


def _search_row(search: LatencySearch) -> TableRow:
    where = f"{search.deploy} on {search.target}"
    error = search.error
    tone: Tone = "plain" if error is None or abs(error) <= CLOSE else "warn"
    return TableRow(
        (
            Cell(search.step, where),
            Cell(*_asked(search)),
            Cell(numbers.ratio(search.predicted)),
            _with_detail(speedup_cell(search.searched), _plural(search.attempts, "attempt")),
            _measured_cell(search),
            Cell(numbers.MISSING if error is None else f"{numbers.fixed(100 * error, 1, signed=True)} %", tone=tone),
            _met_cell(search),
        )
    )


def _asked(search: LatencySearch) -> tuple[str, str]:
    """Return the budget and, where it is no speed-up, what it is."""
    budget = search.budget
    if "speedup" in budget:
        return numbers.ratio(budget["speedup"]), ""
    if "latency_ms" in budget:
        return f"{numbers.milliseconds(budget['latency_ms'])} ms", "mean time"
    drop = budget.get("max_drop_points")
    return (f"{numbers.fixed(drop)} points", "at most lost") if drop is not None else (numbers.MISSING, "")


def _with_detail(cell: Cell, more: str) -> Cell:
    return Cell(cell.text, ", ".join(filter(None, (cell.detail, more))), cell.tone)


def _measured_cell(search: LatencySearch) -> Cell:
    if search.measured is None:
        return Cell(numbers.MISSING, search.artifact or "", tone="muted")
    cell = speedup_cell(search.measured)
    if "latency_ms" in search.budget:
        cell = _with_detail(cell, f"{numbers.milliseconds(search.measured_ms)} ms")
    return _with_detail(cell, search.artifact or "")


def _met_cell(search: LatencySearch) -> Cell:
    if search.met is None:
        return Cell(numbers.MISSING, "" if search.measured is None else "the budget is an accuracy", tone="muted")
    detail = "the interval holds both" if search.verdict == "unresolved" else ""
    tone: Tone = "warn" if detail else "good" if search.met else "bad"
    return Cell("yes" if search.met else "no", detail, tone=tone)


def widths(report: Report) -> Section | None:
    """Heads and neurons that every pruned encoder kept, layer by layer."""
    pruned = [(step.id, step.widths) for step in report.steps if step.widths]
    if not pruned:
        return None
    count = max(it.full_layers for _, it in pruned)
    columns = (
        _STEP,
        Column("unit", "unit", numeric=False),
        *(Column(f"layer:{i}", f"layer {i}" if i == 1 else str(i)) for i in range(1, count + 1)),
    )
    rows = tuple(row for id_, it in pruned for row in _width_rows(id_, it, count))
    intro = "Units that stay in each layer, from the input on."
    return Section("widths", "What was pruned where", (Table(columns, rows),), intro)


def _width_rows(id_: str, it: Widths, count: int) -> list[TableRow]:
    heads, neurons = dict(zip(it.layers, it.heads, strict=True)), dict(zip(it.layers, it.neurons, strict=True))
    return [
        TableRow((Cell(id_), Cell("heads", f"of {it.full_heads}"), *_kept(heads, it.full_heads, count))),
        TableRow(
            (
                Cell(id_, tone="muted"),
                Cell("neurons", f"of {numbers.count(it.full_neurons)}"),
                *_kept(neurons, it.full_neurons, count),
            )
        ),
    ]


def _kept(widths_: dict[int, int], full: int, count: int) -> list[Cell]:
    """Return one cell per layer of the dense model; a layer or sub-layer that went says so."""
    cells = []
    for i in range(count):
        if i not in widths_:
            cells.append(Cell("no layer", tone="muted"))
        elif widths_[i] == 0:
            cells.append(Cell("removed", tone="muted"))
        else:
            cells.append(Cell(numbers.count(widths_[i]), fill=widths_[i] / full))
    return cells


def students(report: Report) -> Section | None:
    """Which wins at the latency of every student: it, or the pruned model of the nearest latency."""
    if not report.students:
        return None
    columns = (
        Column("target", "target", numeric=False),
        Column("student", "student", numeric=False),
        Column("student-speed", "speed-up"),
        Column("student-score", "score", meaning="as in the results"),
        Column("pruned", "pruned model", "", "of the recipe's leaves, the one of the nearest latency", numeric=False),
        Column("pruned-speed", "speed-up"),
        Column("pruned-score", "score"),
        Column("difference", "Δ", "", "student minus pruned model, paired on the same examples"),
        Column("winner", "wins", "", "whose score is better beyond the interval", numeric=False),
    )
    rows = tuple(_match_row(report, match) for match in report.students)
    intro = "A smaller student, distilled, is the other way to a fast model. Nothing here is decided on this split."
    return Section("students", "Students and pruned models", (Bullets(sentences(report)), Table(columns, rows)), intro)


def sentences(report: Report) -> tuple[str, ...]:
    """Say for every student which of the two wins at its latency."""
    return tuple(_sentence(report, match) for match in report.students)


_WINS = {"student": "the student wins", "pruned": "the pruned model wins", None: "no difference found"}


def _sentence(report: Report, match: StudentMatch) -> str:
    change = match.difference
    unit = " points" if change.unit == "percent" else ""
    student, pruned = _row(report, match, match.student), _row(report, match, match.pruned)
    speed, own = _speed(report, pruned), _score(student)
    beside = "at equal latency" if abs(match.slower) < _EQUAL else f"at {speed}, which takes {_slower(match.slower)}"
    return (
        f"At {_speed(report, student)} on {match.target}, {match.student} has {own}{unit} against {_score(pruned)} of "
        f"{match.pruned} {beside}: {_WINS[match.winner]} (student minus pruned model "
        f"{numbers.points(change.points, change.unit)} "
        f"{numbers.points_interval(change.low, change.high, change.unit)})."
    )


def _match_row(report: Report, match: StudentMatch) -> TableRow:
    change = match.difference
    cells = [Cell(match.target)]
    for step in (match.student, match.pruned):
        row = _row(report, match, step)
        cells += [Cell(step), Cell(_speed(report, row)), Cell(_score(row))]
    winner = {"student": "student", "pruned": "pruned model", None: "neither"}[match.winner]
    cells += [
        Cell(numbers.points(change.points, change.unit), numbers.points_interval(change.low, change.high, change.unit)),
        Cell(winner, tone="plain" if match.winner else "muted"),
    ]
    return TableRow(tuple(cells))


def _row(report: Report, match: StudentMatch, step: str) -> Row | None:
    return next((row for row in report.rows if (row.step, row.target) == (step, match.target)), None)


def _score(row: Row | None) -> str:
    return (
        numbers.MISSING
        if row is None or row.accuracy is None
        else numbers.metric(row.accuracy.value, row.accuracy.unit)
    )


def _speed(report: Report, row: Row | None) -> str:
    """Return the speed-up over the last baseline that the row has, else its median time."""
    if row is None:
        return numbers.MISSING
    names = [name for name in report.baselines if name in row.speedups]
    if names:
        return numbers.ratio(row.speedups[names[-1]].ratio)
    return f"{numbers.milliseconds(row.latency.p50_ms)} ms" if row.latency else numbers.MISSING


def _slower(share: float) -> str:
    """Return how much more or less time a share is: "20 % more time"."""
    return f"{numbers.fixed(abs(100 * share), 0)} % {'more' if share > 0 else 'less'} time"


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{numbers.count(count)} {one if count == 1 else many or one + 's'}"
