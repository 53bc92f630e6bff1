"""Distributions in inline SVG: per step a box (the middle half), a line (1 % to 99 %) and the median."""

from __future__ import annotations

from compress.report import svg
from compress.report.blocks import Strip, Strips
from compress.report.labels import text_width
from compress.report.scales import Axis, latency, tick_text

_WIDE = 600
_TOP, _FOOT, _KEY = 6.0, 42.0, 26.0


class StripPlot:
    """Draws the strips of one target in a given width.

    Args:
        figure: strips and titles; strips of one step stand together.
        width: of the view box, pixels.
    """

    def __init__(self, figure: Strips, width: int) -> None:
        self._figure, self._width = figure, width
        self._beside = width >= _WIDE
        self._groups: dict[str, list[Strip]] = {}
        for strip in figure.strips:
            self._groups.setdefault(strip.step, []).append(strip)
        longest = max((text_width(step, svg.FONT) for step in self._groups), default=0.0)
        left = min(longest, width * 0.3) + 12 if self._beside else 14.0
        right = width - max((text_width(s.text, svg.FONT) for s in figure.strips), default=0.0) - 12
        shown = [q for strip in figure.strips for q in (strip.quantiles[1], strip.quantiles[99])]
        self._x: Axis = latency(shown or [1.0], left, right, 7 if self._beside else 4)
        self._two = any(strip.second for strip in figure.strips)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        y, parts = _TOP, list[str]()
        for step, strips in self._groups.items():
            head = 0.0 if self._beside else 16.0
            height = head + 20.0 * len(strips) + 6.0
            parts.append(self._group(step, strips, y, head, height))
            y += height
        height = y + _FOOT + _KEY
        return svg.plot(
            self._width, height, self._figure.title, self._figure.summary, [*self._axis(y), *parts, *self._key(height)]
        )

    def _axis(self, bottom: float) -> list[str]:
        lines = []
        for tick in self._x.ticks:
            x, ticks = self._x(tick), (tick,) if self._x.log else self._x.ticks
            lines.append(svg.line(x, _TOP, x, bottom + 4, "grid"))
            lines.append(svg.text(x, bottom + 18, tick_text(tick, ticks), anchor="middle"))
        title = f"{self._figure.x_title}{', logarithmic' if self._x.log else ''}"
        lines.append(svg.text(self._x.end, bottom + 36, title, "title", "end"))
        return lines

    def _group(self, step: str, strips: list[Strip], top: float, head: float, height: float) -> str:
        kind = "name ships" if any(strip.ships for strip in strips) else "name"
        room = int(((self._x.start - 12) if self._beside else self._width * 0.7) / text_width("x", svg.FONT) + 1e-6)
        label = svg.shorten(step, max(room, 6))
        parts = [svg.rect(0, top, self._width, height - 2, "hit", 3)]
        if self._beside:
            parts.append(svg.text(self._x.start - 10, top + 17, label, kind, "end"))
        else:
            parts.append(svg.text(4, top + 13, label, kind))
        for index, strip in enumerate(strips):
            parts += self._strip(strip, top + head + 20.0 * index + 13.0)
        clocks = "; ".join(f"{self._clock(strip)} {strip.text}" for strip in strips)
        return svg.stage(step, f"{step}: {clocks}", parts)

    def _clock(self, strip: Strip) -> str:
        return self._figure.hollow if strip.second else self._figure.plain

    def _strip(self, strip: Strip, y: float) -> list[str]:
        low, first, middle, third, high = (self._x(strip.quantiles[i]) for i in (1, 25, 50, 75, 99))
        kind = " ".join(filter(None, ("second" if strip.second else "", "ships" if strip.ships else "")))
        return [
            svg.line(low, y, high, y, f"whisker {kind}".strip()),
            svg.line(low, y - 3.5, low, y + 3.5, f"whisker {kind}".strip()),
            svg.line(high, y - 3.5, high, y + 3.5, f"whisker {kind}".strip()),
            svg.rect(first, y - 6, max(third - first, 1.5), 12, f"box {kind}".strip()),
            svg.line(middle, y - 6, middle, y + 6, f"median {kind}".strip()),
            svg.text(self._width - 4, y + 4, strip.text, "tick", "end"),
        ]

    def _key(self, height: float) -> list[str]:
        y, x, parts = height - 10.0, self._x.start if self._beside else 4.0, list[str]()
        if not self._two:
            return [svg.text(x, y, "Line: 1 to 99 %. Box: 25 to 75 %, with the median.")]
        for kind, name in (("box", self._figure.plain), ("box second", self._figure.hollow)):
            parts.append(svg.rect(x, y - 9, 16, 10, kind))
            parts.append(svg.text(x + 22, y, name))
            x += 22 + text_width(name, svg.FONT) + 16
        return parts
