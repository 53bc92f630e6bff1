"""The terminal: the verdict, one table per target, what was not measured. Fits 80 columns."""

from __future__ import annotations

import textwrap

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from compress.report import sections_results, sections_search, sections_sensitivity
from compress.report.blocks import Cell, Column, Table, TableRow
from compress.report.document import VerdictBlock, build
from compress.report.model import Report, SensitivityRecord
from compress.report.numbers import MISSING

STYLES = {"good": "green", "bad": "red", "warn": "yellow", "muted": "dim", "plain": ""}
_MARKS = {"good": "✓", "bad": "✗", "warn": "?", "muted": "·", "plain": "·"}
_ROOMY = 100
"""From this width on, speed-ups show their intervals too."""
_WIDEST = 110
_GAP = 2
"""Cells between two columns of a table."""
_SHORTEST = 12
"""Cells that a node's name has at least."""


def render_terminal(report: Report, console: Console) -> None:
    """Print the verdict and the results; the other sections are in the files."""
    document = build(report)
    width = min(console.width, _WIDEST)
    console.print(Text(plain(document.title), style="bold"))
    console.print(Text(plain(document.subtitle), style="dim"), width=width)
    if document.verdict.banner:
        console.print(Text(document.verdict.banner, style="bold yellow"), width=width)
    console.print(_verdict(document.verdict), width=width)
    tables = [
        _print_target(console, width, target.name, sections_results.describe(target), table)
        for target, table in sections_results.tables(report)
    ]
    _print_searches(console, width, report)
    absent = sections_results.absent_targets(report)
    if absent.rows:
        console.print(Text("Not measured", style="bold"))
        console.print(_pairs([(row.cells[0], row.cells[1]) for row in absent.rows]), width=width)
        console.print()
    if tables:
        console.print(_legend(tables), width=width)


def print_ranking(record: SensitivityRecord, console: Console) -> None:
    """Print the products of a network by their sensitivity to INT8, names cut to what the width leaves them."""
    width = min(console.width, _WIDEST)
    table = sections_sensitivity.table(record, longest=width)
    others = [i for i, column in enumerate(table.columns) if column.key != "node"]
    taken = sum(max(map(len, [*_title(table.columns[i], _room(table, i)), "." * _room(table, i)])) for i in others)
    gaps = _GAP * len(others)
    table = sections_sensitivity.table(record, longest=max(width - taken - gaps, _SHORTEST))
    console.print(rich_table(table), width=width)
    meanings = "; ".join(f"{column.title}: {column.meaning}" for column in table.columns if column.meaning)
    console.print(Text(f"{plain(meanings)}.", style="dim"), width=width)


def plain(value: str) -> str:
    """Return text without control characters, which could drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in value)


def rich_table(block: Table) -> RichTable:
    """Return any table of a report: the detail of a cell stands under its value."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    titles = [_title(column, _room(block, i)) for i, column in enumerate(block.columns)]
    tallest = max(len(title) for title in titles)
    for column, title in zip(block.columns, titles, strict=True):
        head = Text("\n".join([""] * (tallest - len(title)) + title))
        side: JustifyMethod = "right" if column.numeric else "left"
        table.add_column(head, justify=side, overflow="fold", no_wrap=column.numeric)
    for row in block.rows:
        cells = [_cell(cell, bold=row.strong and i == 0) for i, cell in enumerate(row.cells)]
        table.add_row(*cells)
    return table


def _verdict(verdict: VerdictBlock) -> Panel:
    style = STYLES[verdict.tone] or "none"
    parts: list[Text | RichTable] = [Text(plain(verdict.headline), style="bold")]
    if verdict.reasons:
        bullets = RichTable.grid(padding=(0, 1, 0, 0))
        for reason in verdict.reasons:
            bullets.add_row(Text("•", style="dim"), Text(plain(reason)))
        parts.append(bullets)
    if verdict.gates:
        grid = RichTable.grid(padding=(0, 1, 0, 0))
        for step, line, tone in verdict.gates:
            grid.add_row(Text(_MARKS[tone], style=STYLES[tone]), Text(plain(step)), Text(plain(line), style="dim"))
        parts += [Text(), grid]
    title = Text(plain(verdict.label), style=f"bold {STYLES[verdict.tone]}".strip())
    return Panel(Group(*parts), title=title, title_align="left", border_style=style, box=box.ROUNDED, padding=(0, 1))


def _print_target(console: Console, width: int, name: str, note: str, table: Table) -> Table:
    """Print one target and return the table as it was shown."""
    shown = _narrow(table, roomy=width >= _ROOMY)
    console.print(Text.assemble((plain(name), "bold"), "  ", (plain(note), "dim")), width=width)
    if shown.rows:
        console.print(rich_table(shown), width=width)
    refused = [(row.cells[0], row.cells[1]) for row in table.rows if len(row.cells) < len(table.columns)]
    if refused:
        console.print(_pairs(refused), width=width)
    for note_line in table.notes:
        console.print(Padding(Text(f"! {plain(note_line)}", style="dim"), (0, 0, 0, 2)), width=width)
    console.print()
    return shown


def _print_searches(console: Console, width: int, report: Report) -> None:
    """Print one line on the predictions and one per student; the tables are in the files."""
    lines = [sections_search.closeness(report)] if report.searches else []
    lines += sections_search.sentences(report)
    if not lines:
        return
    console.print(Text("Searches and students", style="bold"))
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row(Text("•", style="dim"), Text(plain(line)))
    console.print(Padding(grid, (0, 0, 0, 2)), width=width)
    console.print()


def _narrow(table: Table, *, roomy: bool) -> Table:
    """Keep the measured rows and the columns that fit: evidence stands beside the target's name already."""
    kept = [i for i, column in enumerate(table.columns) if column.key != "status"]
    quiet = set() if roomy else {i for i in kept if table.columns[i].key.startswith("speedup:")}
    rows = tuple(
        TableRow(tuple(_quiet(row.cells[i], i in quiet) for i in kept), row.strong)
        for row in table.rows
        if len(row.cells) == len(table.columns)
    )
    return Table(tuple(table.columns[i] for i in kept), rows, table.notes)


def _quiet(cell: Cell, without_detail: bool) -> Cell:
    return Cell(cell.text, "" if without_detail else cell.detail, cell.tone, cell.tags)


def _pairs(rows: list[tuple[Cell, Cell]]) -> Padding:
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    for head, cell in rows:
        grid.add_row(Text(plain(head.text)), Text(plain(cell.text), style=STYLES[cell.tone]))
    return Padding(grid, (0, 0, 0, 2))


def _room(block: Table, column: int) -> int:
    """Return the width of the widest value of a column, in terminal cells."""
    cells = [row.cells[column] for row in block.rows if column < len(row.cells)]
    return max((cell_len(line) for cell in cells for line in (cell.text, cell.detail)), default=0)


def _title(column: Column, room: int) -> list[str]:
    """Return the lines of a heading, hardly wider than the ``room`` that its values take."""
    lines = textwrap.wrap(plain(column.title), max(room, 7), break_long_words=False)
    return [*lines, plain(column.unit)] if column.unit else lines


def _cell(cell: Cell, *, bold: bool) -> Text:
    text = Text(plain(cell.text), style="bold" if bold else STYLES[cell.tone])
    if cell.detail:
        text.append(f"\n{plain(cell.detail)}", style="dim not bold")
    if cell.tags:
        text.append("\n")
        for i, tag in enumerate(cell.tags):
            text.append(", " if i else "", style="dim not bold")
            text.append(tag.text, style=f"not bold {STYLES[tag.tone]}")
    return text


def _legend(tables: list[Table]) -> Text:
    meanings = {c.title: c.meaning for table in tables for c in table.columns if c.meaning}
    lines = [f"{plain(title)}: {plain(meaning)}" for title, meaning in meanings.items()]
    lines.append(f"[low, high]: 95 % interval; {MISSING}: not measured")
    return Text("; ".join(lines) + ".", style="dim")
