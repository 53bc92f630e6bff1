"""The parts a report is made of, as text: built once, rendered to HTML, Markdown and a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Tone = Literal["plain", "good", "bad", "warn", "muted"]


class Tag(NamedTuple):
    """A short mark beside a name: "ship", "Pareto", "gate failed"."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says, never formatted again.
        detail: second line, quieter: the interval of a value.
        tone: what the value means for the reader.
        tags: marks beside the text.
        span: number of columns that it fills.
        fill: share from 0 to 1 that a bar behind the text shows; None for no bar.
    """

    text: str
    detail: str = ""
    tone: Tone = "plain"
    tags: tuple[Tag, ...] = ()
    span: int = 1
    fill: float | None = None


@dataclass(frozen=True)
class Column:
    """One column: heading, unit on a line of its own, alignment, and what the numbers mean."""

    key: str
    title: str
    unit: str = ""
    meaning: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class TableRow:
    cells: tuple[Cell, ...]
    strong: bool = False
    """The row that the verdict ships."""


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    """Footnotes: what is missing and why, warnings."""
    legend: bool = True
    """Whether the meaning of the columns stands beneath; False where an earlier table has said it."""


@dataclass(frozen=True)
class Facts:
    """Label and value pairs."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Heading:
    text: str
    note: str = ""


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    text: str
    language: str


@dataclass(frozen=True)
class Point:
    """A row of a Pareto plot: latency in ms, accuracy as the record holds it, the size of the artifact.

    ``family`` says how the model became small ("dense", "pruned", "student"; empty if unknown), ``int8``
    whether it computes in 8 bits; ``speedup`` is a text.
    """

    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    size_bytes: int | None
    pareto: bool
    ships: bool
    family: str = ""
    int8: bool = False
    speedup: str = ""


@dataclass(frozen=True)
class Figure:
    """Accuracy against latency on one target; ``summary`` says the same in words."""

    title: str
    x_title: str
    y_title: str
    percent: bool
    """Whether y is a fraction shown in percent."""
    points: tuple[Point, ...]
    summary: str


@dataclass(frozen=True)
class Bar:
    """One bar of a bar plot.

    Attributes:
        label: beside it, at full length.
        value: how long it is.
        text: at its end.
        marked: whether it is drawn hollow.
        hint: its whole name, shown where it is pointed at.
    """

    label: str
    value: float
    text: str
    marked: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from zero, in the order of a ranking; ``summary`` says the same in words."""

    title: str
    x_title: str
    bars: tuple[Bar, ...]
    summary: str
    plain: str = ""
    """What a filled bar means, for the key; no key without a hollow one."""
    hollow: str = ""


Block = Table | Facts | Paragraph | Heading | Bullets | Code | Figure | Bars


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]
    intro: str = ""
