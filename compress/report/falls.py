"""A waterfall in inline SVG: the time of each stage as a bar, what it saved pale beside it, the rest as text."""

from __future__ import annotations

from compress.report import svg
from compress.report.blocks import Fall, Waterfall
from compress.report.labels import text_width
from compress.report.scales import Axis, latency, tick_text

_WIDE = 600
_FOOT = 42.0


class FallPlot:
    """Draws one waterfall in a given width: what a wide plot shows in columns, a narrow one shows beneath the bar.

    Args:
        figure: stages and titles.
        width: of the view box, pixels.
    """

    def __init__(self, figure: Waterfall, width: int) -> None:
        self._figure, self._width = figure, width
        self._wide = width >= _WIDE
        self._row = 46.0 if self._wide else 78.0
        self._top = 26.0 if self._wide else 4.0
        longest = max((text_width(fall.what, svg.FONT) for fall in figure.falls), default=0.0)
        left = min(max(longest, 90.0), 170.0) + 14 if self._wide else 2.0
        self._columns = (width - 178.0, width - 70.0, width - 4.0)
        label = max((text_width(_label(fall), svg.FONT) for fall in figure.falls), default=0.0)
        right = (self._columns[0] - 48.0 if self._wide else width) - label - 12.0
        times = [fall.value for fall in figure.falls if fall.value is not None]
        axis: Axis = latency(times or [1.0], left, right, 5 if self._wide else 4)
        self._x = Axis(0.0, axis.high, left, right, _from_zero(axis))
        self._bottom = self._top + self._row * len(figure.falls)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        parts = [*self._axis(), *(self._heads() if self._wide else ())]
        before: float | None = None
        for index, fall in enumerate(self._figure.falls):
            parts.append(self._stage(index, fall, before))
            before = fall.value if fall.value is not None else before
        return svg.plot(self._width, self._bottom + _FOOT, self._figure.title, self._figure.summary, parts)

    def _axis(self) -> list[str]:
        lines = []
        for tick in self._x.ticks:
            x = self._x(tick)
            if self._wide or tick:
                lines.append(svg.line(x, self._top, x, self._bottom + 4, "axis" if tick == 0 else "grid"))
            lines.append(svg.text(x, self._bottom + 18, tick_text(tick, self._x.ticks), anchor="middle"))
        lines.append(svg.text(self._x.end, self._bottom + 36, self._figure.x_title, "title", "end"))
        return lines

    def _heads(self) -> list[str]:
        titles = (self._figure.accuracy_title, "change", "size, MB")
        return [svg.text(x, 12, title, "title", "end") for x, title in zip(self._columns, titles, strict=True)]

    def _stage(self, index: int, fall: Fall, before: float | None) -> str:
        top = self._top + self._row * index
        middle = top + (20.0 if self._wide else 34.0)
        kind = "ships" if fall.ships else ""
        parts = [self._hit(top), *self._names(fall, top, kind), *self._bar(fall, middle, before, kind)]
        if self._wide:
            values = (fall.accuracy, fall.change, fall.size)
            parts += [svg.text(x, middle + 4, t, "name", "end") for x, t in zip(self._columns, values, strict=True)]
        else:
            beneath = ", ".join(filter(None, (_with(fall.accuracy, self._figure.accuracy_title), _change(fall))))
            parts.append(svg.text(2, middle + 24, beneath))
            parts.append(svg.text(self._width - 4, middle + 24, f"{fall.size} MB", "tick", "end"))
        said = (fall.time, fall.gain, _with(fall.accuracy, self._figure.accuracy_title), _change(fall))
        hint = ", ".join(filter(None, (*said, f"{fall.size} MB")))
        return svg.stage(fall.step, f"{fall.step}: {hint}", parts)

    def _hit(self, top: float) -> str:
        """The whole line answers to the pointer."""
        return svg.rect(0, top, self._width, self._row - 4, "hit", 3)

    def _names(self, fall: Fall, top: float, kind: str) -> list[str]:
        if self._wide:
            room = int((self._x.start - 14) / text_width("x", svg.FONT))
            what, step = svg.shorten(fall.what, room), svg.shorten(fall.step, room)
            end = self._x.start - 12
            return [
                svg.text(end, top + 18, what, f"name {kind}".strip(), "end"),
                svg.text(end, top + 33, step, "tick", "end"),
            ]
        what = svg.shorten(fall.what, 24)
        step = svg.shorten(fall.step, 20)
        return [
            svg.text(2, top + 18, what, f"name {kind}".strip()),
            svg.text(self._width - 4, top + 18, step, "tick", "end"),
        ]

    def _bar(self, fall: Fall, middle: float, before: float | None, kind: str) -> list[str]:
        zero, thick = self._x(0.0), 16.0
        if fall.value is None:
            why = svg.shorten(f"no time: {fall.reason}" if fall.reason else "no time", 40 if self._wide else 30)
            return [svg.text(zero + 4, middle + 4, why)]
        end = self._x(fall.value)
        parts = [svg.rect(zero, middle - thick / 2, end - zero, thick, f"amount {kind}".strip())]
        reach = end
        if before is not None:
            reach = self._x(before)
            ghost = "saved" if before >= fall.value else "lost"
            parts.append(svg.rect(min(end, reach), middle - thick / 2, abs(reach - end), thick, ghost))
            parts.append(svg.line(reach, middle - thick / 2 - 3, reach, middle + thick / 2 + 3, "edge"))
        parts.append(svg.text(max(end, reach) + 8, middle + 4, _label(fall), f"name {kind}".strip()))
        return parts


def _label(fall: Fall) -> str:
    return f"{fall.time} {fall.gain}".strip()


def _from_zero(axis: Axis) -> tuple[float, ...]:
    """Bars start at zero, so the axis is never logarithmic."""
    if not axis.log:
        return axis.ticks
    step = axis.ticks[-1] / 4
    return tuple(step * i for i in range(5))


def _with(value: str, title: str) -> str:
    name, _, unit = title.partition(", ")
    return f"{name} {value} {unit}".strip() if value else ""


def _change(fall: Fall) -> str:
    return f"change {fall.change}" if fall.change else ""
