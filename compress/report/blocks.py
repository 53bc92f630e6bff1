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
    x_low: float | None = None
    x_high: float | None = None


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


@dataclass(frozen=True)
class Fall:
    """One stage of a waterfall: its time as a bar, everything else as text.

    Attributes:
        step: id of the stage.
        what: the pass in a few words.
        value: time in ms; None if it has none here.
        texts: time, gain over the stage before, accuracy, change of accuracy, size.
        reason: why it has no time.
        ships: whether it is what the verdict ships.
    """

    step: str
    what: str
    value: float | None
    time: str
    gain: str
    accuracy: str
    change: str
    size: str
    reason: str = ""
    ships: bool = False


@dataclass(frozen=True)
class Waterfall:
    """Stage after stage on one target; ``table`` holds the same numbers."""

    title: str
    x_title: str
    accuracy_title: str
    falls: tuple[Fall, ...]
    summary: str
    table: Table


@dataclass(frozen=True)
class Strip:
    """Where the samples of one step lie: ``quantiles`` at 0, 1, ..., 100 %; hollow on the second clock."""

    step: str
    quantiles: tuple[float, ...]
    text: str
    second: bool = False
    ships: bool = False


@dataclass(frozen=True)
class Strips:
    """Distributions of times, one strip per step and clock."""

    title: str
    x_title: str
    strips: tuple[Strip, ...]
    summary: str
    plain: str
    hollow: str


@dataclass(frozen=True)
class Mark:
    """One measured point of a line, with its interval."""

    x: int
    y: float
    low: float | None
    high: float | None
    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    step: str
    marks: tuple[Mark, ...]
    ships: bool = False


@dataclass(frozen=True)
class Lines:
    """A sweep: one line per step over a doubling quantity."""

    title: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    summary: str


@dataclass(frozen=True)
class Layer:
    """One bar of a stack: the solid part first, then the pale one; neither if only the sum is known."""

    name: str
    total: float
    solid: float | None
    pale: float | None
    text: str


@dataclass(frozen=True)
class Stack:
    step: str
    layers: tuple[Layer, ...]
    ships: bool = False


@dataclass(frozen=True)
class Stacks:
    """Amounts at several moments, step by step, each split in two."""

    title: str
    x_title: str
    stacks: tuple[Stack, ...]
    summary: str
    solid: str
    pale: str


Drawing = Figure | Bars | Waterfall | Strips | Lines | Stacks


@dataclass(frozen=True)
class Fold:
    """What is there for those who ask: closed until it is opened."""

    title: str
    blocks: tuple[Block, ...]


Block = Table | Facts | Paragraph | Heading | Bullets | Code | Drawing | Fold


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]
    intro: str = ""
