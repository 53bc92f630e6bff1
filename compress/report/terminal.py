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
from compress.report.blocks import Cell, Column, Table
from compress.report.document import VerdictBlock, build
from compress.report.model import Report, SensitivityRecord, TargetRecord
from compress.report.terminal_table import legend, plain, target_grid

STYLES = {"good": "green", "bad": "red", "warn": "yellow", "muted": "dim", "plain": ""}
_MARKS = {"good": "✓", "bad": "✗", "warn": "?", "muted": "·", "plain": "·"}
_WIDEST = 110
_GAP = 2
"""Cells between two columns of a table."""
_SHORTEST = 12
"""Cells that a node's name has at least."""


def render_terminal(report: Report, console: Console) -> None:
    """Print the verdict and the results; the other sections are in the files.

    Where the console is no terminal (a pipe, a file), there are no boxes: plain lines of the same words.
    """
    document = build(report)
    width = min(console.width, _WIDEST)
    console.print(Text(plain(document.title), style="bold"), width=width)
    console.print(Text(plain(document.subtitle), style="dim"), width=width)
    if document.verdict.banner:
        console.print(Text(plain(document.verdict.banner), style="bold yellow"), width=width)
    console.print(_verdict(document.verdict, boxed=console.is_terminal), width=width)
    if not console.is_terminal:
        console.print()
    for target in report.targets:
        _print_target(console, width, report, target)
    _print_searches(console, width, report)
    if report.rows:
        console.print(Text(legend(report), style="dim"), width=width)


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


def _verdict(verdict: VerdictBlock, *, boxed: bool) -> Panel | Group:
    style = STYLES[verdict.tone] or "none"
    headline = Text(plain(verdict.headline), style="bold")
    parts: list[Text | RichTable] = [headline if boxed else Text(f"{plain(verdict.label)}: ") + headline]
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
    if not boxed:
        return Group(*parts)
    title = Text(plain(verdict.label), style=f"bold {STYLES[verdict.tone]}".strip())
    return Panel(Group(*parts), title=title, title_align="left", border_style=style, box=box.ROUNDED, padding=(0, 1))


def _print_target(console: Console, width: int, report: Report, target: TargetRecord) -> None:
    note = sections_results.describe(target)
    console.print(Text.assemble((plain(target.name), "bold"), "  ", (plain(note), "dim")), width=width)
    for line in target_grid(report, target, width).lines(width, rule="─" if console.is_terminal else "-"):
        console.print(line, width=width)
    for remark in sections_results.footnotes(sections_results.rows_of(report, target.name)):
        console.print(Padding(Text(f"! {plain(remark)}", style="dim"), (0, 0, 0, 2)), width=width)
    console.print()


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
