"""Where the labels of a scatter plot go: beside their point, clear of everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

OPTIONAL = 2
_FARTHEST = 3
"""Ring beyond which an optional label would no longer read as belonging to its point."""
_WIDTH = 0.58
"""Mean width of a character of a sans-serif face, in em: generous, so that boxes are never too small."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the shared area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: Box) -> float:
        """Return the area that lies outside ``frame``, in square pixels."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


class Anchor(NamedTuple):
    """A point that wants a label: centre, radius of its marker, the text.

    Rank 0 is placed first; a rank of ``OPTIONAL`` or more goes without a label rather than over something else.
    """

    x: float
    y: float
    radius: float
    text: str
    rank: int = 0


class Placed(NamedTuple):
    """A label in its place; ``leader`` says whether it needs a line to its point."""

    box: Box
    leader: bool


def place(anchors: Sequence[Anchor], obstacles: Sequence[Box], frame: Box, size: float) -> list[Placed | None]:
    """Give each label the nearest free place around its point: by rank, then the most crowded points first.

    Args:
        anchors: the points, in drawing order.
        obstacles: boxes to keep clear of besides all markers (interval bars).
        frame: labels stay inside it.
        size: font size in pixels.

    Returns:
        One place per anchor, in the order given. Where no place is free: None for an optional label, the least
        covered place for any other.
    """
    markers = [Box(a.x - a.radius, a.y - a.radius, a.x + a.radius, a.y + a.radius) for a in anchors]
    taken: list[Box] = [*markers, *obstacles]
    order = sorted(range(len(anchors)), key=lambda i: (anchors[i].rank, -_crowd(anchors, i), i))
    places: dict[int, Placed | None] = dict.fromkeys(order)
    for i in order:
        best = min(_candidates(anchors[i], size), key=lambda c: (_cost(c[0], taken, frame), c[1]))
        if anchors[i].rank >= OPTIONAL and (best[1] > _FARTHEST or _cost(best[0], taken, frame) > 0):
            continue
        places[i] = Placed(best[0], best[1] > 1)
        taken.append(best[0])
    return [places[i] for i in range(len(anchors))]


def text_width(text: str, size: float) -> float:
    return len(text) * _WIDTH * size


def _candidates(anchor: Anchor, size: float) -> list[tuple[Box, int]]:
    """Return (box, ring): beside, above, below, then the diagonals; each ring lies further out."""
    width, height = text_width(anchor.text, size), size * 1.25
    found: list[tuple[Box, int]] = []
    for ring in range(1, 7):
        gap = anchor.radius + 5 + (ring - 1) * height * 0.8
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7)):
            x = anchor.x + dx * gap + math.copysign(width / 2, dx) * (abs(dx) > 0)
            y = anchor.y + dy * gap + math.copysign(height / 2, dy) * (abs(dy) > 0)
            found.append((Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), ring))
    return found


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    return round(sum(box.overlap(other) for other in taken) + 4 * box.outside(frame), 3)


def _crowd(anchors: Sequence[Anchor], i: int) -> int:
    return sum(1 for a in anchors if abs(a.x - anchors[i].x) < 90 and abs(a.y - anchors[i].y) < 40)
