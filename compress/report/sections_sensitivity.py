"""The section about sensitivity to INT8: what each product loses alone, as bars, a table and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from compress.report import numbers
from compress.report.bars import shorten
from compress.report.blocks import Bar, Bars, Block, Cell, Column, Heading, Section, Table, TableRow, Tone
from compress.report.model import Report, Sensitivity, SensitivityRecord

SHOWN = 20
"""Products that a report shows of one step, worst first; ``report.json`` has all of them."""
_NODE = "its name without the modules that all share, and without the operator"
_EXACT_DB = 200.0
"""As the record's description of ``sqnr_db`` says."""
_INTRO = (
    "Each product of the network was put into 8 bits alone, everything else in float32, and the outputs compared with "
    "those of the float32 model. SQNR is the ratio of their energy to that of the difference: 10 dB less is ten times "
    "the noise."
)


def sensitivity(report: Report) -> Section | None:
    """Every step whose products were measured one at a time."""
    if not report.sensitivities:
        return None
    blocks: list[Block] = []
    for record in report.sensitivities:
        blocks += [Heading(record.step), bars(record), table(record, shown=SHOWN)]
    return Section("sensitivity", "Sensitivity to INT8", tuple(blocks), _INTRO)


def bars(record: SensitivityRecord) -> Bars:
    """Return SQNR as a plot, worst first."""
    rows = record.rows[:SHOWN]
    finite = [row.sqnr_db for row in rows if abs(row.sqnr_db) < _EXACT_DB]
    ends = {_EXACT_DB: max(finite, default=1.0), -_EXACT_DB: min([0.0, *finite])}
    return Bars(
        title=f"SQNR of each product of {record.step} alone in INT8, worst first",
        x_title="SQNR, dB",
        bars=tuple(
            Bar(name, ends.get(row.sqnr_db, row.sqnr_db), decibels(row.sqnr_db), bool(row.excluded), row.node)
            for name, row in zip(short_names(record.rows), rows, strict=False)
        ),
        summary=conclusion(record),
        plain="int8",
        hollow="kept in float32",
    )


def table(record: SensitivityRecord, *, shown: int | None = None, longest: int = 0) -> Table:
    """Return the ranking as a table.

    Args:
        record: of one step.
        shown: rows at most; None = all.
        longest: for a terminal: characters of a node's name at most, and the rank in front; 0 = for a page.
    """
    rows = record.rows[:shown]
    halves = any(row.weight_sqnr_db is not None for row in rows)
    kept = any(row.excluded for row in record.rows) and not longest
    columns = [
        *([Column("rank", "#")] if longest else []),
        Column("node", "node", "", _NODE, numeric=False),
        Column("operator", "op" if longest else "operator", numeric=False),
        Column("sqnr", "SQNR", "dB", "signal to quantization noise of the outputs; less is worse"),
        *([Column("activation", "only act." if longest else "activation only", "dB")] if halves else []),
        *([Column("weight", "only weight" if longest else "weight only", "dB")] if halves else []),
        Column("kl", "KL", "nats", "mean divergence of the predictions"),
        Column("drop", "drop", "points", _drop_meaning(record)),
        Column("macs", "MACs", "%", "part of those of all linear layers; tables have none"),
        *([] if longest else [Column("noise", "noise", "%", "part of the noise of all, if each adds its own")]),
        *([Column("runs", "runs in", numeric=False)] if kept else []),
    ]
    names = short_names(record.rows)
    names = shorten(names, longest) if longest else names
    lines = []
    for rank, (name, row) in enumerate(zip(names, rows, strict=False), 1):
        cells = [Cell(str(rank), tone="muted"), Cell(name)] if longest else [Cell(name)]
        lines.append(TableRow((*cells, *_cells(row, halves, bool(longest), kept))))
    return Table(tuple(columns), tuple(lines), _rest(record, len(rows)))


def _cells(row: Sensitivity, halves: bool, terminal: bool, kept: bool) -> list[Cell]:
    drop: Tone = "warn" if (row.drop_points or 0.0) > 0 else "plain"
    cells = [Cell(row.operator), Cell(decibels(row.sqnr_db))]
    if halves:
        cells += [Cell(decibels(row.activation_sqnr_db)), Cell(decibels(row.weight_sqnr_db))]
    cells += [Cell(numbers.tiny(row.kl)), Cell(numbers.points(row.drop_points), tone=drop)]
    cells.append(Cell(numbers.fixed(100 * row.macs_share, 1)))
    if not terminal:
        cells.append(Cell(numbers.fixed(100 * row.noise_share, 1)))
    if kept:
        cells.append(Cell("float32", row.excluded) if row.excluded else Cell("int8"))
    return cells


def _rest(record: SensitivityRecord, shown: int) -> tuple[str, ...]:
    hidden = record.rows[shown:]
    if not hidden:
        return ()
    return (f"{numbers.count(len(hidden))} more, from {decibels(hidden[0].sqnr_db)} dB on, are in report.json.",)


def _drop_meaning(record: SensitivityRecord) -> str:
    on = f" on {numbers.count(record.examples)} examples" if record.examples else " on the examples"
    return f"loss of the metric{on}, positive is worse"


def conclusion(record: SensitivityRecord) -> str:
    """Say in a few sentences where the noise comes from."""
    if not record.rows:
        return "Nothing was measured."
    where = f" on {_plural(record.examples, 'example')}" if record.examples else ""
    worst, half = record.rows[0], half_of_the_noise(record)
    text = f"Most sensitive{where}: {worst.node}, {decibels(worst.sqnr_db)} dB."
    if half:
        text += (
            f" {numbers.share(sum(row.noise_share for row in half), 0)} of the noise comes from {len(half)} of "
            f"{_plural(len(record.rows), 'product')} with {numbers.share(sum(row.macs_share for row in half), 1)} of "
            "the MACs."
        )
    if record.together_db is not None:
        text += f" All of them together give {decibels(record.together_db)} dB."
    kept = sum(bool(row.excluded) for row in record.rows)
    return f"{text} {kept} {'stays' if kept == 1 else 'stay'} in float32." if kept else text


def half_of_the_noise(record: SensitivityRecord) -> list[Sensitivity]:
    """Return the fewest products, worst first, that make at least half of the noise; none if there is no noise."""
    total, half = 0.0, []
    for row in record.rows:
        if total >= 0.5:
            break
        half.append(row)
        total += row.noise_share
    return half if total > 0 else []


def advice(record: SensitivityRecord) -> str:
    """Return the option of ``quantize`` that keeps half of the noise out; empty where there is none."""
    names = ", ".join(row.node for row in half_of_the_noise(record))
    return f"To keep them in float32: `quantize: {{exclude: [{names}]}}`" if names else ""


def decibels(value: float | None) -> str:
    """Return a ratio with one decimal, or in words where outputs are equal or not finite."""
    if value is None or abs(value) < _EXACT_DB:
        return numbers.fixed(value, 1)
    return "equal" if value > 0 else "broken"


def short_names(rows: Sequence[Sensitivity]) -> list[str]:
    """Return the nodes' names without the module that all share, and without the operator, which has a column."""
    paths = [row.node.removesuffix(f"/{row.operator}").split(".") for row in rows]
    modules = zip(*(path[:-1] for path in paths), strict=False)
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, modules)))
    return [".".join(path[shared:]) for path in paths]


def _plural(count: int, one: str) -> str:
    return f"{numbers.count(count)} {one if count == 1 else one + 's'}"
