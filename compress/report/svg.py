"""The few elements that every plot is made of; colours and weights come from the page's CSS classes."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape as _escape

from compress.report.visible import visible

FONT = 12.0
"""Size in pixels of all text that is no label of a point."""


def escape(text: str) -> str:
    """Return text for an element or an attribute: no markup, no control characters."""
    return _escape(visible(text))


def plot(width: float, height: float, title: str, summary: str, parts: Iterable[str]) -> str:
    """Return the ``<svg>`` element: an image with a name and a description for those who do not see it."""
    head = (
        f'<svg class="plot" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<desc>{escape(summary)}</desc>"
    )
    return "\n".join([head, *(part for part in parts if part), "</svg>"])


def stage(step: str, hint: str, parts: Iterable[str]) -> str:
    """Return marks that belong to one step: pointed at they show ``hint``, chosen they stand out everywhere."""
    return f'<g class="stage" data-step="{escape(step)}"><title>{escape(hint)}</title>{"".join(parts)}</g>'


def text(x: float, y: float, value: str, kind: str = "tick", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(value)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, round_by: float = 1.5) -> str:
    size = f'width="{max(width, 0.0):.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size} rx="{round_by:g}"/>'


def shorten(label: str, longest: int) -> str:
    """Return a label in at most ``longest`` characters: its middle goes, for both ends tell names apart."""
    if len(label) <= longest:
        return label
    head = (longest - 1) * 2 // 3
    return f"{label[:head]}…{label[len(label) - (longest - 1 - head) :]}"
