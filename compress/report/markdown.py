"""Markdown: for a pull request, a model card, a terminal without a browser."""

from __future__ import annotations

import re

from compress.report.blocks import (
    Bars,
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Fold,
    Heading,
    Lines,
    Paragraph,
    Section,
    Stacks,
    Strips,
    Table,
    TableRow,
    Waterfall,
)
from compress.report.document import VerdictBlock, build
from compress.report.model import Report
from compress.report.visible import visible

_MARKS = {"good": "✓ ", "bad": "✗ ", "warn": "? ", "muted": "", "plain": ""}


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown; texts from the report are escaped."""
    document = build(report)
    parts = [f"# {text(document.title)}", text(document.subtitle), *_verdict(document.verdict)]
    for section in document.sections:
        parts.extend(_section(section))
    return "\n\n".join(parts) + "\n"


def text(value: str) -> str:
    """Escape what Markdown or HTML would read as markup; a line break becomes a space."""
    value = visible(" ".join(value.split()))
    value = re.sub(r"([\\`*|])", r"\\\1", value)
    value = re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", value)
    value = value.replace("](", "]\\(").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^([#+-]|\d+[.)])(?=\s)", r"\\\1", value)


def table(block: Table) -> str:
    """Return a table, the meaning of its columns and its footnotes."""
    head = [_title(column) for column in block.columns]
    rule = ["---:" if column.numeric else "---" for column in block.columns]
    lines = [_line(head), _line(rule), *(_line(_cells(row)) for row in block.rows)]
    return "\n\n".join(["\n".join(lines), *_notes(block)])


def _verdict(verdict: VerdictBlock) -> list[str]:
    parts = [f"> **{text(verdict.banner)}**"] if verdict.banner else []
    parts.append(f"## {text(verdict.label)}")
    parts.append(f"**{text(verdict.headline)}**")
    if verdict.figures:
        figures = [Cell(" ".join(filter(None, (f.value, f.unit))), f.detail) for f in verdict.figures]
        columns = tuple(Column(f.label, f.label) for f in verdict.figures)
        parts += [table(Table(columns, (TableRow(tuple(figures)),))), f"<sub>{text(verdict.brackets)}</sub>"]
    if verdict.reasons:
        parts.append(_bullets(verdict.reasons))
    if verdict.gates:
        parts.append("\n".join(f"- {_MARKS[tone]}**{text(step)}**: {text(line)}" for step, line, tone in verdict.gates))
    return parts


def _section(section: Section) -> list[str]:
    parts = [f"## {text(section.title)}"]
    if section.intro:
        parts.append(text(section.intro))
    return parts + [_block(block) for block in section.blocks]


def _block(block: Block) -> str:
    match block:
        case Table():
            return table(block)
        case Facts():
            return "\n".join(f"- {text(label)}: {text(value)}" for label, value in block.pairs)
        case Heading():
            return f"### {text(block.text)}" + (f"\n\n{text(block.note)}" if block.note else "")
        case Paragraph():
            return text(block.text)
        case Bullets():
            return _bullets(block.items)
        case Code():
            return _code(block)
        case Figure() | Bars() | Strips() | Lines() | Stacks():
            return text(block.summary)
        case Waterfall():
            return f"{text(block.summary)}\n\n{table(block.table)}"
        case Fold():
            body = "\n\n".join(_block(part) for part in block.blocks)
            return f"<details>\n<summary>{text(block.title)}</summary>\n\n{body}\n\n</details>"


def _code(block: Code) -> str:
    return fence(block.text, block.language)


def fence(code: str, language: str) -> str:
    """Return code between fences longer than any run of backticks in it."""
    code = visible(code)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{code}\n{ticks}"


def _bullets(items: tuple[str, ...]) -> str:
    return "\n".join(f"- {text(item)}" for item in items)


def _title(column: Column) -> str:
    return text(f"{column.title}, {column.unit}" if column.unit else column.title)


def _notes(block: Table) -> list[str]:
    meanings = [f"{text(c.title)}: {text(c.meaning)}" for c in block.columns if c.meaning and block.legend]
    legend = [f"<sub>{'; '.join(meanings)}.</sub>"] if meanings else []
    return [*legend, *([_bullets(block.notes)] if block.notes else [])]


def _cells(row: TableRow) -> list[str]:
    cells: list[str] = []
    for index, cell in enumerate(row.cells):
        content = text(cell.text)
        if row.strong and index == 0:
            content = f"**{content}**"
        tags = f" ({', '.join(text(tag.text) for tag in cell.tags)})" if cell.tags else ""
        detail = f" {_detail(cell.detail)}" if cell.detail else ""
        cells += [content + detail + tags, *[""] * (cell.span - 1)]
    return cells


def _detail(detail: str) -> str:
    """Return an interval as it is, anything else in parentheses."""
    return text(detail) if detail.startswith("[") else f"({text(detail)})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def blocks(section: Section) -> str:
    """Return a section without its heading."""
    return "\n\n".join(_block(block) for block in section.blocks)
