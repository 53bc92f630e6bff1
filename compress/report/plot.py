"""The Pareto plot as inline SVG: accuracy against latency, area of a marker in proportion to bytes.

A marker's colour and outline are its family of methods (dense hollow, pruned filled, student dashed); a dot inside says
that it computes in 8 bits.

Colours come from the page's CSS classes, so the plot follows light and dark; it uses no network and no script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from compress.report import numbers, svg
from compress.report.blocks import Figure, Point
from compress.report.frozen import Unit
from compress.report.labels import OPTIONAL, Anchor, Box, Placed, place, text_width
from compress.report.scales import Axis, latency, linear, nice_step, tick_text
from compress.report.svg import escape
from compress.report.svg import text as _text

_FONT = 13.0
_LARGEST = 17.0
"""Radius in pixels of the largest marker."""
_SMALLEST = 3.0
_FAMILIES = ("dense", "pruned", "student")
_KEY_ROW = 24.0
"""Height in pixels of the row that says which colour is which family of methods."""


class ParetoPlot:
    """Draws one figure in a given size.

    Args:
        figure: points and titles.
        width, height: of the view box, pixels.
    """

    def __init__(self, figure: Figure, width: int, height: int) -> None:
        self._figure = figure
        self._width, self._height = width, height
        self._families = [name for name in _FAMILIES if any(p.family == name for p in figure.points)]
        self._foot = height - (_KEY_ROW if self._families else 0.0)
        self._frame = Box(52, 30, width - 16, self._foot - 84)
        values = [bound * self._factor for p in figure.points for bound in (p.y, p.low, p.high) if bound is not None]
        ticks = max(4, width // 110)
        self._x: Axis = latency([p.x for p in figure.points], self._frame.left, self._frame.right, ticks)
        self._y: Axis = linear(min(values), max(values), self._frame.bottom, self._frame.top, 6)
        self._most_bytes = max((p.size_bytes or 0 for p in figure.points), default=0)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        parts = [
            *self._grid(),
            self._frontier(),
            *(self._bar(p) for p in self._drawn()),
            *(self._marker(p) for p in self._drawn()),
            *self._labels(),
            *self._legend(),
            *self._key(),
        ]
        return svg.plot(self._width, self._height, self._figure.title, self._figure.summary, parts)

    @property
    def _factor(self) -> float:
        return 100.0 if self._figure.percent else 1.0

    def _drawn(self) -> list[Point]:
        """Dominated points first, large before small, so that nothing hides."""
        return sorted(self._figure.points, key=lambda p: (p.pareto, -(p.size_bytes or 0)))

    def _at(self, point: Point) -> tuple[float, float]:
        return self._x(point.x), self._y(point.y * self._factor)

    def _radius(self, size_bytes: int | None) -> float:
        if not size_bytes or not self._most_bytes:
            return _SMALLEST
        return max(_SMALLEST, _LARGEST * math.sqrt(size_bytes / self._most_bytes))

    def _grid(self) -> list[str]:
        left, _, right, bottom = self._frame
        lines = []
        for tick in self._y.ticks:
            y = self._y(tick)
            lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(_text(left - 8, y + 4, tick_text(tick, self._y.ticks), "tick", "end"))
        for tick in self._x.ticks:
            x = self._x(tick)
            ticks = (tick,) if self._x.log else self._x.ticks
            lines.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
            lines.append(_text(x, bottom + 20, tick_text(tick, ticks), "tick", "middle"))
        lines.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        lines.append(_text(6, 14, self._figure.y_title, "title", "start"))
        scale = f"{self._figure.x_title}{', logarithmic' if self._x.log else ''}"
        lines.append(_text(right, bottom + 38, scale, "title", "end"))
        return lines

    def _corners(self) -> list[tuple[float, float]]:
        """The corners of a staircase through the points that nothing dominates."""
        corners: list[tuple[float, float]] = []
        for point in sorted((p for p in self._figure.points if p.pareto), key=lambda p: p.x):
            x, y = self._at(point)
            corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
        return corners

    def _frontier(self) -> str:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in self._corners())
        return f'<polyline class="frontier" points="{corners}"/>' if " " in corners else ""

    def _bar(self, point: Point) -> str:
        """The intervals of both coordinates, where they are known."""
        (x, y), box, path = self._at(point), self._interval(point), ""
        if box is not None:
            ends = " ".join(f"M{x - 4:.1f},{end:.1f}h8" for end in (box.top, box.bottom))
            path = f"M{x:.1f},{box.top:.1f}V{box.bottom:.1f} {ends}"
        if point.x_low is not None and point.x_high is not None:
            low, high = self._x(point.x_low), self._x(point.x_high)
            ends = " ".join(f"M{end:.1f},{y - 4:.1f}v8" for end in (low, high))
            if max(x - low, high - x) > self._radius(point.size_bytes):
                path = f"{path} M{low:.1f},{y:.1f}H{high:.1f} {ends}".strip()
        return _part(point, f'<path class="bar {_class(point)}" d="{path}"/>') if path else ""

    def _interval(self, point: Point) -> Box | None:
        if point.low is None or point.high is None:
            return None
        x, _ = self._at(point)
        return Box(x - 4, self._y(point.high * self._factor), x + 4, self._y(point.low * self._factor))

    def _marker(self, point: Point) -> str:
        x, y = self._at(point)
        radius = self._radius(point.size_bytes)
        kind = " ".join(filter(None, ("marker", _class(point), point.family)))
        title = f"<title>{escape(self._hint(point))}</title>"
        circle = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'
        eye = _eye(x, y, radius) if point.int8 else ""
        return f'<g class="stage" data-step="{escape(point.label)}">{circle}{eye}</g>'

    def _hint(self, point: Point) -> str:
        unit: Unit = "percent" if self._figure.percent else "plain"
        score = (numbers.metric(point.y, unit), "%" if self._figure.percent else "")
        time = f"{numbers.milliseconds(point.x)} ms"
        speed = f" ({point.speedup})" if point.speedup else ""
        size = f", {numbers.megabytes(point.size_bytes)} MB" if point.size_bytes is not None else ""
        return (
            f"{point.label}: {_joined(*score, numbers.metric_interval(point.low, point.high, unit))}, "
            f"{_joined(time, numbers.interval(point.x_low, point.x_high))}{speed}{size}"
        )

    def _labels(self) -> list[str]:
        points = self._drawn()
        anchors = [Anchor(*self._at(p), self._radius(p.size_bytes), _shorten(p.label), _rank(p)) for p in points]
        bars = [box for box in map(self._interval, points) if box]
        stairs = [_around(*ends) for ends in pairwise(self._corners())]
        frame = Box(self._frame.left + 2, self._frame.top - 8, self._width - 2.0, self._frame.bottom - 2)
        placed = place(anchors, bars + stairs, frame, _FONT)
        found = [(point, anchor, spot) for point, anchor, spot in zip(points, anchors, placed, strict=True) if spot]
        lines = [_leader(anchor, spot) for _, anchor, spot in found if spot.leader]
        for point, anchor, spot in found:
            middle, base = (spot.box.left + spot.box.right) / 2, spot.box.bottom - 4
            lines.append(_part(point, _text(middle, base, anchor.text, f"label {_class(point)}", "middle")))
        if len(found) < len(points):
            hint = f"{len(points) - len(found)} without a label: see the table"
            lines.append(_text(self._frame.right, 14, hint, "tick", "end"))
        return lines

    def _legend(self) -> list[str]:
        """Marker sizes at round numbers of bytes, at the foot of the plot."""
        if not self._most_bytes:
            return []
        y, x = self._foot - 18.0, self._frame.left
        lines = []
        for size in _round_sizes(self._most_bytes):
            radius = self._radius(size)
            x += radius
            lines.append(f'<circle class="key" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
            text = f"{size / 1e6:g} MB"
            lines.append(_text(x + radius + 6, y + 4, text, "tick", "start"))
            x += radius + 6 + len(text) * 7.5 + 12
        return lines

    def _key(self) -> list[str]:
        """Which colour is which family, and what the eye of a marker means."""
        if not self._families:
            return []
        y, x = self._height - 12.0, self._frame.left + 5
        lines = []
        for name in [*self._families, *(["int8"] if any(p.int8 for p in self._figure.points) else [])]:
            kind = "key" if name == "int8" else f"marker {name}"
            lines.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>')
            if name == "int8":
                lines.append(_eye(x, y, 5.5))
            lines.append(_text(x + 10, y + 4, name, "tick", "start"))
            x += 10 + text_width(name, 12.0) + 20
        return lines


def _round_sizes(most: int) -> Sequence[int]:
    """Return two or three round sizes in bytes up to the largest one."""
    top = nice_step(most)
    top = top if top <= most * 1.001 else nice_step(most / 2.5)
    sizes = [top / 10, top / 2, top] if top <= most * 1.001 else [top / 10, top / 4]
    return [int(size) for size in sizes if size >= 1]


def _around(a: tuple[float, float], b: tuple[float, float]) -> Box:
    """Return the box of a horizontal or vertical line, 2 pixels wide."""
    return Box(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)


def _eye(x: float, y: float, radius: float) -> str:
    """The dot inside the marker of a model that computes in 8 bits."""
    return f'<circle class="eye" cx="{x:.1f}" cy="{y:.1f}" r="{max(1.2, 0.36 * radius):.1f}"/>'


def _rank(point: Point) -> int:
    return 0 if point.ships else 1 if point.pareto else OPTIONAL


def _class(point: Point) -> str:
    return "ships" if point.ships else "best" if point.pareto else "beaten"


def _shorten(label: str, longest: int = 26) -> str:
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def _leader(anchor: Anchor, placed: Placed) -> str:
    """A line from the edge of the marker to the nearest point of the label's box."""
    x = min(max(anchor.x, placed.box.left), placed.box.right)
    y = min(max(anchor.y, placed.box.top), placed.box.bottom)
    part = anchor.radius / max(math.hypot(x - anchor.x, y - anchor.y), anchor.radius)
    start_x, start_y = anchor.x + part * (x - anchor.x), anchor.y + part * (y - anchor.y)
    return f'<line class="leader" x1="{start_x:.1f}" y1="{start_y:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>'


def _part(point: Point, markup: str) -> str:
    """What stands out with its point, and is nothing to point at itself."""
    return f'<g data-step="{escape(point.label)}">{markup}</g>'


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))
