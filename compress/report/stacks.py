"""Stacked bars in inline SVG: amounts at several moments, step by step; one part solid, the other pale."""

from __future__ import annotations

from compress.report import svg
from compress.report.blocks import Layer, Stack, Stacks
from compress.report.labels import text_width
from compress.report.scales import Axis, latency, tick_text

_WIDE = 600
_TOP, _FOOT, _KEY = 4.0, 42.0, 26.0
_LINE, _THICK, _HEAD, _GAP = 17.0, 10.0, 20.0, 8.0


class StackPlot:
    """Draws the stacks of one target in a given width.

    Args:
        figure: stacks and titles.
        width: of the view box, pixels.
    """

    def __init__(self, figure: Stacks, width: int) -> None:
        self._figure, self._width = figure, width
        self._wide = width >= _WIDE
        layers = [layer for stack in figure.stacks for layer in stack.layers]
        self._phase = max((text_width(layer.name, svg.FONT) for layer in layers), default=0.0)
        names = max((text_width(stack.step, svg.FONT) for stack in figure.stacks), default=0.0)
        self._names = min(names, 190.0) + 16 if self._wide else 0.0
        left = self._names + self._phase + 12
        right = width - max((text_width(layer.text, svg.FONT) for layer in layers), default=0.0) - 14
        axis = latency([max((layer.total for layer in layers), default=1.0)], left, right, 6 if self._wide else 4)
        self._x = Axis(0.0, axis.high, left, right, axis.ticks)

    def svg(self) -> str:
        """Return the ``<svg>`` element."""
        y, parts = _TOP, list[str]()
        for stack in self._figure.stacks:
            height = (0.0 if self._wide else _HEAD) + _LINE * len(stack.layers) + _GAP
            parts.append(self._stack(stack, y, height))
            y += height
        height = y + _FOOT + _KEY
        body = [*self._axis(y), *parts, *self._key(height)]
        return svg.plot(self._width, height, self._figure.title, self._figure.summary, body)

    def _axis(self, bottom: float) -> list[str]:
        lines = []
        for tick in self._x.ticks:
            x = self._x(tick)
            kind = "axis" if tick == 0 and self._wide else "grid"
            lines.append(svg.line(x, _TOP, x, bottom + 2, kind))
            lines.append(svg.text(x, bottom + 17, tick_text(tick, self._x.ticks), anchor="middle"))
        lines.append(svg.text(self._x.end, bottom + 35, self._figure.x_title, "title", "end"))
        return lines

    def _stack(self, stack: Stack, top: float, height: float) -> str:
        kind = "name ships" if stack.ships else "name"
        label = svg.shorten(stack.step, 27 if self._wide else 44)
        parts = [svg.rect(0, top, self._width, height - 3, "hit", 3), svg.text(2, top + 14, label, kind)]
        y = top + (0.0 if self._wide else _HEAD)
        for index, layer in enumerate(stack.layers):
            parts += self._layer(layer, y + _LINE * index + 9)
        said = "; ".join(f"{layer.name} {layer.text}" for layer in stack.layers)
        return svg.stage(stack.step, f"{stack.step}: {said}", parts)

    def _layer(self, layer: Layer, middle: float) -> list[str]:
        zero, end, top = self._x(0.0), self._x(layer.total), middle - _THICK / 2
        if layer.solid is None:
            bars = [svg.rect(zero, top, end - zero, _THICK, "amount kept")]
        else:
            split = self._x(layer.solid)
            bars = [
                svg.rect(zero, top, split - zero, _THICK, "amount", 0.5),
                svg.rect(split, top, end - split, _THICK, "saved", 0.5),
            ]
        name = svg.text(self._x.start - 8, middle + 4, layer.name, "tick", "end")
        return [name, *bars, svg.text(end + 6, middle + 4, layer.text)]

    def _key(self, height: float) -> list[str]:
        y, x, parts = height - 10.0, self._x.start if self._wide else 4.0, list[str]()
        layers = [layer for stack in self._figure.stacks for layer in stack.layers]
        keys = (
            [("amount", self._figure.solid), ("saved", self._figure.pale)]
            if any(layer.solid is not None for layer in layers)
            else []
        )
        if any(layer.solid is None for layer in layers):
            keys.append(("amount kept", "not told apart"))
        for kind, name in keys:
            parts.append(svg.rect(x, y - 9, 16, 10, kind))
            parts.append(svg.text(x + 22, y, name))
            x += 22 + text_width(name, svg.FONT) + 14
        return parts
