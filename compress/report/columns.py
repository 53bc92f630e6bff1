"""Lines of aligned columns for a terminal or a pipe: one line per row, a row without values says why across them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

_NARROWEST = 12
"""Cells that the first column has at least, and that words across the others have at least."""
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Head:
    """One column: what stands above it, over two lines if need be, and its side."""

    title: str
    unit: str = ""
    right: bool = True


@dataclass(frozen=True)
class Grid:
    """Rows below their headings.

    Attributes:
        heads: the columns.
        rows: as many cells as columns; or two, of which the second runs across all that follow.
        gap: cells between two columns.
    """

    heads: tuple[Head, ...]
    rows: tuple[tuple[Text, ...], ...]
    gap: int = 2
    widths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        tops = [max(map(cell_len, _words(head))) for head in self.heads]
        whole = [row for row in self.rows if self._whole(row)]
        first = max((row[0].cell_len for row in self.rows), default=0)
        cells = [max((row[i].cell_len for row in whole), default=0) for i in range(len(self.heads))]
        widths = [max(top, cell) for top, cell in zip(tops, cells, strict=True)]
        object.__setattr__(self, "widths", (max(widths[0], first), *widths[1:]))

    @property
    def width(self) -> int:
        return sum(self.widths) + self.gap * (len(self.widths) - 1)

    def fits(self, width: int) -> bool:
        return self.width <= width

    def lines(self, width: int, *, rule: str = "─") -> list[Text]:
        """Return headings, a rule and the rows, none wider than ``width``; long first cells are cut."""
        first = max(min(self.widths[0], width - (self.width - self.widths[0])), _NARROWEST)
        widths = (min(self.widths[0], first), *self.widths[1:])
        total = min(width, sum(widths) + self.gap * (len(widths) - 1))
        out = []
        if any(self._whole(row) for row in self.rows):
            out = [*self._headings(widths), Text(rule * total, style="dim")]
        for row in self.rows:
            out += [self._line(row, widths)] if self._whole(row) else self._across(row, widths[0], width)
        for line in out:
            line.rstrip()
            line.truncate(width)
        return out

    def _whole(self, row: tuple[Text, ...]) -> bool:
        return len(row) == len(self.heads)

    def _headings(self, widths: Sequence[int]) -> list[Text]:
        titles = [_words(head) for head in self.heads]
        tallest = max(map(len, titles))
        padded = [[""] * (tallest - len(title)) + title for title in titles]
        return [
            self._line(tuple(Text(title[i], style="dim") for title in padded), widths)
            for i in range(tallest)
            if any(title[i] for title in padded)
        ]

    def _line(self, row: tuple[Text, ...], widths: Sequence[int]) -> Text:
        line = Text(no_wrap=True)
        for i, (cell, head, width) in enumerate(zip(row, self.heads, widths, strict=True)):
            shown = cell.copy()
            if shown.cell_len > width:
                shown.truncate(width - 1)
                shown.append(_ELLIPSIS)
            space = " " * (width - shown.cell_len)
            line.append(" " * self.gap if i else "")
            line.append_text(Text(space) + shown if head.right else shown + Text(space))
        return line

    def _across(self, row: tuple[Text, ...], first: int, width: int) -> list[Text]:
        head, words = row[0].copy(), row[1]
        if head.cell_len > first:
            head.truncate(first - 1)
            head.append(_ELLIPSIS)
        room = max(width - first - self.gap, _NARROWEST)
        style = words.style
        parts = textwrap.wrap(words.plain, room, break_on_hyphens=False) or [""]
        head.append(" " * (first - head.cell_len + self.gap))
        lines = [head + Text(parts[0], style=style)]
        return lines + [Text(" " * (first + self.gap)) + Text(part, style=style) for part in parts[1:]]


def widest_that_fits(grids: Sequence[Grid], width: int) -> Grid:
    """Return the first grid that fits, else the last; they go from the fullest to the barest."""
    return next((grid for grid in grids if grid.fits(width)), grids[-1])


def _words(head: Head) -> list[str]:
    return [*head.title.split("\n"), *([head.unit] if head.unit else [])]
