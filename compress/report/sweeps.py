"""A sweep in inline SVG: one line per step over batch sizes; shape, dash and a name at its end tell lines apart."""

from __future__ import annotations

import math

from compress.report import svg
from compress.report.blocks import Line, Lines, Mark
from compress.report.labels import text_width
from compress.report.scales import Axis, linear, tick_text

_WIDE = 600
_TOP, _FOOT, _ROW = 30.0, 46.0, 20.0
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "plus")


class SweepPlot:
    """Draws one sweep in a given size; the horizontal axis doubles from tick to tick.

    Args:
        figure: lines and titles.
        width, height: of the plot, pixels; a narrow plot grows by a key beneath.
    """

    def __init__(self, figure: Lines, width: int, height: int) -> None:
        self._figure, self._width = figure, width
        self._beside = width >= _WIDE
        names = max((text_width(line.step, svg.FONT) for line in figure.lines), default=0.0)
        self._room = min(names, 190.0) + 28 if self._beside else 12.0
        self._height = height - _FOOT
        self._bottom = float(self._height)
        self._ticks = sorted({mark.x for line in figure.lines for mark in line.marks})
        values = [v for line in figure.lines for m in line.marks for v in (m.y, m.low, m.high) if v is not None]
        self._y: Axis = linear(0.0, max(values, default=1.0), self._bottom, _TOP, 6)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        key = 0.0 if self._beside else _ROW * len(self._figure.lines) + 6
        parts = [*self._axes(), *(self._line(i, line) for i, line in enumerate(self._figure.lines))]
        return svg.plot(self._width, self._bottom + _FOOT + key, self._figure.title, self._figure.summary, parts)

    def _x(self, value: int) -> float:
        start, end = 52.0, self._width - self._room
        first, last = math.log2(self._ticks[0]), math.log2(self._ticks[-1])
        part = 0.5 if last <= first else (math.log2(value) - first) / (last - first)
        return start + 10 + part * (end - start - 20)

    def _axes(self) -> list[str]:
        right, lines = self._width - self._room, []
        for tick in self._y.ticks:
            y = self._y(tick)
            lines.append(svg.line(52, y, right, y, "axis" if tick == 0 else "grid"))
            lines.append(svg.text(44, y + 4, tick_text(tick, self._y.ticks), anchor="end"))
        for value in self._ticks:
            x = self._x(value)
            lines.append(svg.line(x, self._bottom, x, self._bottom + 5, "axis"))
            lines.append(svg.text(x, self._bottom + 20, str(value), anchor="middle"))
        lines.append(svg.text(4, 14, self._figure.y_title, "title"))
        lines.append(svg.text(right, self._bottom + 38, self._figure.x_title, "title", "end"))
        return lines

    def _line(self, index: int, line: Line) -> str:
        kind = f"s{index % len(SHAPES)}{' ships' if line.ships else ''}"
        path = "M" + "L".join(f"{self._x(m.x):.1f},{self._y(m.y):.1f}" for m in line.marks)
        parts = [f'<path class="series {kind}" d="{path}"/>']
        for mark in line.marks:
            parts += self._mark(mark, index, kind)
        parts += self._name(index, line, kind)
        best = next((mark.text for mark in line.marks if mark.best), line.marks[-1].text)
        return svg.stage(line.step, f"{line.step}: {best}", parts)

    def _mark(self, mark: Mark, index: int, kind: str) -> list[str]:
        x, y = self._x(mark.x), self._y(mark.y)
        parts = []
        if mark.low is not None and mark.high is not None:
            parts.append(svg.line(x, self._y(mark.low), x, self._y(mark.high), f"span {kind}"))
        parts.append(shape(index, x, y, 4.5, f"dot {kind}"))
        if mark.best:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8.5"/>')
        return parts

    def _name(self, index: int, line: Line, kind: str) -> list[str]:
        label = svg.shorten(line.step, 27 if self._beside else 40)
        words = "name ships" if line.ships else "name"
        if self._beside:
            x, y = self._width - self._room, self._ends()[index]
            leader = svg.line(self._x(line.marks[-1].x) + 8, self._y(line.marks[-1].y), x + 6, y, "leader")
            return [leader, shape(index, x + 12, y, 4.5, f"dot {kind}"), svg.text(x + 22, y + 4, label, words)]
        y = self._bottom + _FOOT + 6 + _ROW * index
        return [shape(index, 12, y, 4.5, f"dot {kind}"), svg.text(24, y + 4, label, words)]

    def _ends(self) -> list[float]:
        """Heights of the names at the ends of the lines: in their order, and far enough apart."""
        wanted = sorted((self._y(line.marks[-1].y), i) for i, line in enumerate(self._figure.lines))
        places, last = [0.0] * len(wanted), -math.inf
        for y, i in wanted:
            last = places[i] = max(y, last + 17)
        over = max(0.0, last - self._bottom + 4)
        return [y - over for y in places]


def shape(index: int, x: float, y: float, r: float, kind: str) -> str:
    """Return a marker; lines differ in shape, so that colour is never needed to tell them apart."""
    name = SHAPES[index % len(SHAPES)]
    if name == "circle":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    r = 1.2 * r if name != "square" else r
    paths = {
        "square": f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        "triangle": f"M{x:.1f},{y - r:.1f}l{r:.1f},{1.7 * r:.1f}h{-2 * r:.1f}Z",
        "diamond": f"M{x:.1f},{y - r:.1f}l{r:.1f},{r:.1f}l{-r:.1f},{r:.1f}l{-r:.1f},{-r:.1f}Z",
        "cross": f"M{x - r:.1f},{y - r:.1f}l{2 * r:.1f},{2 * r:.1f}m{-2 * r:.1f},0l{2 * r:.1f},{-2 * r:.1f}",
        "plus": f"M{x - r:.1f},{y:.1f}h{2 * r:.1f}m{-r:.1f},{-r:.1f}v{2 * r:.1f}",
    }
    return f'<path class="{kind}{" open" if name in ("cross", "plus") else ""}" d="{paths[name]}"/>'
