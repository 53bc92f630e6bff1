"""A ranking as horizontal bars in inline SVG: its classes are coloured by the page, as the Pareto plot's are."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import svg
from compress.report.blocks import Bar, Bars
from compress.report.labels import text_width
from compress.report.scales import Axis, linear, tick_text
from compress.report.svg import escape
from compress.report.svg import text as _text

_FONT = 12.0
_WIDE = 600
"""From this width on a label stands beside its bar, below it above."""
_LONGEST = 0.42
"""Share of a wide plot that labels may take."""
_TOP, _FOOT, _KEY = 8.0, 44.0, 26.0


class BarPlot:
    """Draws one ranking in a given width; the height follows from the number of bars.

    Args:
        figure: bars and titles.
        width: of the view box, pixels.
    """

    def __init__(self, figure: Bars, width: int) -> None:
        self._figure, self._width = figure, width
        self._beside = width >= _WIDE
        self._row = 24.0 if self._beside else 38.0
        self._thick = 12.0 if self._beside else 10.0
        self._label_room = width * _LONGEST if self._beside else width - 8.0
        longest = int(self._label_room / text_width("x", _FONT))
        self._labels = shorten([bar.label for bar in figure.bars], longest)
        widest = max((text_width(label, _FONT) for label in self._labels), default=0.0)
        left = min(widest, self._label_room) + 10 if self._beside else 4.0
        values = [0.0, *(bar.value for bar in figure.bars)]
        value_room = max((text_width(bar.text, _FONT) for bar in figure.bars), default=0.0) + 10
        ticks = 7 if self._beside else 5
        self._x: Axis = linear(min(values), max(values), left, width - value_room, ticks)
        self._bottom = _TOP + self._row * len(figure.bars)
        self._keyed = any(bar.marked for bar in figure.bars)
        self._height = self._bottom + _FOOT + (_KEY if self._keyed else 0.0)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        parts = [
            *self._axis(),
            *(line for i, bar in enumerate(self._figure.bars) for line in self._bar(i, bar)),
            *(self._key() if self._keyed else ()),
        ]
        return svg.plot(self._width, self._height, self._figure.title, self._figure.summary, parts)

    def _axis(self) -> list[str]:
        lines = []
        for tick in self._x.ticks:
            x, kind = self._x(tick), "axis" if tick == 0 else "grid"
            lines.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self._bottom + 4:.1f}"/>')
            lines.append(_text(x, self._bottom + 19, tick_text(tick, self._x.ticks), "tick", "middle"))
        lines.append(_text(self._x.end, self._bottom + 37, self._figure.x_title, "title", "end"))
        return lines

    def _bar(self, index: int, bar: Bar) -> list[str]:
        middle = _TOP + self._row * (index + 0.5) + (0.0 if self._beside else 8.0)
        zero, end = self._x(0.0), self._x(bar.value)
        left, width = min(zero, end), max(abs(end - zero), 1.0)
        kind = "amount kept" if bar.marked else "amount"
        hint = f"<title>{escape(f'{bar.hint or bar.label}: {bar.text}')}</title>"
        box = f'x="{left:.1f}" y="{middle - self._thick / 2:.1f}" width="{width:.1f}" height="{self._thick}"'
        if self._beside:
            label = _text(self._x.start - 10, middle + 4, self._labels[index], "name", "end")
        else:
            label = _text(self._x.start + 5, middle - 10, self._labels[index], "name", "start")
        value = _text(max(zero, end) + 6, middle + 4, bar.text, "tick", "start")
        return [label, f'<rect class="{kind}" {box} rx="1.5">{hint}</rect>', value]

    def _key(self) -> list[str]:
        y, x, lines = self._height - 10.0, self._x.start if self._beside else 4.0, []
        for kind, text in (("amount", self._figure.plain), ("amount kept", self._figure.hollow)):
            lines.append(f'<rect class="{kind}" x="{x:.1f}" y="{y - 9:.1f}" width="16" height="10" rx="1.5"/>')
            lines.append(_text(x + 22, y, text, "tick", "start"))
            x += 22 + text_width(text, _FONT) + 20
        return lines


def shorten(labels: Sequence[str], longest: int) -> list[str]:
    """Return paths of modules in few characters, all in one way: ``e.l.0.output.dense``.

    If one is too long, all get initials for every part but the last two, numbers apart. What then still is too long
    gets one more initial, and loses its front at last.
    """
    if all(len(label) <= longest for label in labels):
        return list(labels)
    return [_shorten(label.split("."), longest) for label in labels]


def _shorten(parts: list[str], longest: int) -> str:
    for whole in (2, 1):
        initials = [part if part.isdigit() else part[:1] for part in parts[:-whole]]
        short = ".".join([*initials, *parts[len(initials) :]])
        if len(short) <= longest:
            return short
    return f"…{short[len(short) - longest + 1 :]}"
