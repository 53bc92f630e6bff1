"""A comparison as text: for a terminal and as Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from compress.report import markdown, numbers
from compress.report.blocks import Cell, Column, Table, TableRow
from compress.report.compare import Comparison, RowChange, SpeedupChange
from compress.report.terminal import plain, rich_table

NOTE = (
    "Accuracy: test, in percent; Δ in points. Speed: ratio over each report's own baseline; "
    "milliseconds of two sessions are never compared."
)


def render_comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [f"# {_title(comparison)}", f"**{_verdict(comparison)}**", markdown.table(comparison_table(comparison))]
    for heading, lines in (("Regressions", comparison.regressions), ("Warnings", comparison.warnings)):
        if lines:
            parts += [f"## {heading}", "\n".join(f"- {markdown.text(line)}" for line in lines)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def render_comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the comparison."""
    console.print(Text(plain(f"{comparison.before} → {comparison.after}"), style="bold"))
    console.print(rich_table(comparison_table(comparison)))
    for line in comparison.warnings:
        console.print(Text(f"! {plain(line)}", style="yellow"))
    for line in comparison.regressions:
        console.print(Text(f"✗ {plain(line)}", style="red"))
    console.print(Text(_verdict(comparison), style="bold green" if comparison.ok else "bold red"))
    console.print(Text(NOTE, style="dim"))


def comparison_table(comparison: Comparison) -> Table:
    """One line per step and target: the new value, and what it was before where that differs."""
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.speedups))
    columns = (
        Column("step", "step", numeric=False),
        Column("accuracy", "accuracy"),
        Column("points", "Δ"),
        Column("size", "size", "MB"),
        Column("parameters", "weights", "million"),
        *(Column(f"speedup:{name}", f"vs {name}") for name in names),
    )
    return Table(columns, tuple(_row(row, names) for row in comparison.rows))


def _row(row: RowChange, names: list[str]) -> TableRow:
    head = Cell(row.step, f"on {row.target}", tone="bad" if row.regressions else "plain")
    if row.status_before != "ok" or row.status_after != "ok":
        text = f"{row.status_before or 'no row'} → {row.status_after or 'no row'}"
        return TableRow((head, Cell(text, tone="bad" if row.regressions else "muted", span=4 + len(names))))
    return TableRow(
        (
            head,
            _changed(numbers.metric(row.accuracy_before, row.unit), numbers.metric(row.accuracy_after, row.unit)),
            Cell(numbers.points(row.points, row.unit)),
            _changed(numbers.megabytes(row.size_before), numbers.megabytes(row.size_after)),
            _changed(numbers.millions(row.parameters_before), numbers.millions(row.parameters_after)),
            *(_ratio(row.speedups.get(name)) for name in names),
        )
    )


def _ratio(change: SpeedupChange | None) -> Cell:
    if change is None:
        return Cell(numbers.MISSING)
    return _changed(numbers.ratio(change.before), numbers.ratio(change.after))


def _changed(before: str, after: str) -> Cell:
    """Return the new value; the old one beneath it where it reads otherwise."""
    return Cell(after, "" if before == after else f"was {before}")


def _title(comparison: Comparison) -> str:
    return f"{markdown.text(comparison.before)} → {markdown.text(comparison.after)}"


def _verdict(comparison: Comparison) -> str:
    count = len(comparison.regressions)
    return "No regression" if comparison.ok else f"{count} regression{'s' if count != 1 else ''}"
