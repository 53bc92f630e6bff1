"""The other plots: lengths follow values, no plot needs colour or a network, labels fit, texts are escaped."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from compress.report.blocks import Fall, Layer, Line, Lines, Mark, Stack, Stacks, Strip, Strips, Table, Waterfall
from compress.report.falls import FallPlot
from compress.report.stacks import StackPlot
from compress.report.strips import StripPlot
from compress.report.svg import shorten
from compress.report.sweeps import SHAPES, SweepPlot

HOSTILE = "<script>alert(1)</script> & \u202e"


def fall(step: str, value: float | None, **more: object) -> Fall:
    text = "" if value is None else f"{value} ms"
    return Fall(step, f"what {step}", value, text, "", "88.0", "", "1.0", **more)


def waterfall(*falls: Fall) -> Waterfall:
    return Waterfall("title", "ms", "accuracy, %", falls, "in words", Table((), ()))


def strips(*them: Strip) -> Strips:
    return Strips("title", "ms", them, "in words", "model only", "end to end")


def even(low: float, high: float) -> tuple[float, ...]:
    return tuple(low + (high - low) * i / 100 for i in range(101))


def line(step: str, *ys: float, best: int = 0) -> Line:
    marks = (Mark(2**i, y, y - 1, y + 1, f"{y}", i == best) for i, y in enumerate(ys))
    return Line(step, tuple(marks))


def lines(*them: Line) -> Lines:
    return Lines("title", "inputs per batch", "per s", them, "in words")


def stacks(*them: Stack) -> Stacks:
    return Stacks("title", "MB", them, "in words", "anonymous", "mapped")


def drawings(step: str = "a-step") -> list[str]:
    """Every plot in both widths, with one step of that name."""
    layers = (Layer("loaded", 100, 60, 40, "100 MB"), Layer("peak", 120, None, None, "120 MB"))
    falls = waterfall(fall("first", 9.0), fall(step, 3.0, ships=True), fall("last", None, reason=HOSTILE))
    found = []
    for width in (760, 380):
        found.append(FallPlot(falls, width).svg())
        found.append(
            StripPlot(strips(Strip(step, even(1, 3), "2 ms"), Strip(step, even(2, 5), "3", True)), width).svg()
        )
        found.append(SweepPlot(lines(line(step, 10, 20, 15, best=1), line("other", 9, 9, 9)), width, 300).svg())
        found.append(StackPlot(stacks(Stack(step, layers)), width).svg())
    return found


class Check(HTMLParser):
    """Collects tags and holds their nesting to be right."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rects(svg: str, kind: str) -> list[tuple[float, float]]:
    """Return (x, width) of every rectangle of a class."""
    found = re.findall(rf'<rect class="{kind}" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    return [(float(x), float(width)) for x, width in found]


@pytest.mark.parametrize("svg", drawings(HOSTILE))
def test_plots_are_well_formed_escaped_and_colourless(svg: str) -> None:
    check = Check()
    check.feed(svg)
    assert check.open == []
    assert set(check.tags) <= {"svg", "g", "title", "desc", "text", "line", "rect", "path", "circle"}
    assert "\u202e" not in svg
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(|fill=|stroke=|http|style=|url\(", svg)


@pytest.mark.parametrize("svg", drawings())
def test_every_plot_has_a_name_a_description_and_stages_to_pick(svg: str) -> None:
    assert 'role="img" aria-label="title"><desc>in words</desc>' in svg
    assert re.search(r'<g class="stage" data-step="a-step"><title>a-step: [^<]+</title>', svg)


@pytest.mark.parametrize("svg", drawings("a-step-with-a-very-long-name-" * 3))
def test_nothing_leaves_the_plot(svg: str) -> None:
    """By the generous width of a character that labels are placed with."""
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    for x, y, anchor, text in re.findall(
        r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)', svg
    ):
        long = len(unescape(text)) * 12 * 0.58
        left = float(x) - {"start": 0, "middle": long / 2, "end": long}[anchor]
        assert left >= -6, text
        assert left + long <= width + 6, text
        assert 0 < float(y) <= height


def test_a_waterfall_shows_time_and_what_was_saved() -> None:
    svg = FallPlot(waterfall(fall("a", 10.0), fall("b", 4.0, ships=True), fall("c", 6.0)), 760).svg()
    (zero, first), (_, third) = rects(svg, "amount")
    ((_, second),) = rects(svg, "amount ships")
    assert second / first == pytest.approx(0.4, abs=0.01)
    assert third / first == pytest.approx(0.6, abs=0.01)
    ((start, saved),) = rects(svg, "saved")
    assert start == pytest.approx(zero + second, abs=0.1)
    assert start + saved == pytest.approx(zero + first, abs=0.2)
    ((start, lost),) = rects(svg, "lost")
    assert lost / first == pytest.approx(0.2, abs=0.01)


def test_a_stage_without_time_says_why_and_the_next_is_compared_with_the_last_that_has_one() -> None:
    svg = FallPlot(waterfall(fall("a", 10.0), fall("b", None, reason="not in the kit"), fall("c", 5.0)), 760).svg()
    assert "no time: not in the kit" in svg
    assert len(rects(svg, "saved")) == 1


def test_times_far_apart_still_start_at_zero() -> None:
    svg = FallPlot(waterfall(fall("a", 500.0), fall("b", 1.0)), 760).svg()
    (_, long), (_, short) = rects(svg, "amount")
    assert short / long == pytest.approx(1 / 500, abs=0.001)


def test_strips_stand_at_their_quantiles() -> None:
    svg = StripPlot(strips(Strip("a", even(0.5, 2.5), "1.5"), Strip("b", even(1, 5), "3", True)), 760).svg()
    _, narrow = rects(svg, "box")[0]
    wide = rects(svg, "box second")[0][1]
    assert wide / narrow == pytest.approx(2, rel=0.02)
    assert "model only" in svg
    assert "end to end" in svg


def test_strips_far_apart_share_a_logarithmic_axis() -> None:
    svg = StripPlot(strips(Strip("a", even(1, 2), "1"), Strip("b", even(100, 200), "2")), 760).svg()
    (_, first), (_, second) = rects(svg, "box")[:2]
    assert "logarithmic" in svg
    assert first == pytest.approx(second, rel=0.02)


def test_lines_of_a_sweep_differ_in_shape_and_the_best_batch_has_a_ring() -> None:
    svg = SweepPlot(lines(*(line(f"s{i}", i + 1, i + 2) for i in range(len(SHAPES)))), 760, 400).svg()
    dots = {i: re.findall(rf'<(\w+) class="dot s{i}[^"]*" (?:d="[^"]*?([a-zM]\S*)")?', svg) for i in range(len(SHAPES))}
    assert all(len(found) == 3 for found in dots.values())
    outlines = [
        re.sub(r"[-\d.,]+", "", str(re.search(rf'class="dot s{i}[^"]*" d="([^"]*)"', svg))) for i in range(1, 6)
    ]
    assert len(set(outlines)) == 5
    assert svg.count('class="ring"') == len(SHAPES)


def test_names_at_the_ends_of_equal_lines_do_not_overlap() -> None:
    svg = SweepPlot(lines(*(line(f"same{i}", 5, 5) for i in range(6))), 760, 360).svg()
    heights = sorted(float(y) for y in re.findall(r'<text class="name" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 6
    assert all(b - a >= 16 for a, b in pairwise(heights))


def test_a_stack_is_split_where_the_parts_are_known_and_hollow_where_not() -> None:
    layers = (Layer("loaded", 100, 75, 25, "100 MB"), Layer("peak", 200, None, None, "200 MB"))
    svg = StackPlot(stacks(Stack("a", layers)), 760).svg()
    ((_, solid), _), ((_, pale), _), ((_, whole), _) = (rects(svg, k) for k in ("amount", "saved", "amount kept"))
    assert solid / pale == pytest.approx(3, rel=0.02)
    assert whole / (solid + pale) == pytest.approx(2, rel=0.02)
    assert "not told apart" in svg


def test_both_ends_of_a_long_name_stay() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("pruned-banking77-int8", 12) == "pruned-…int8"
    assert len(shorten("x" * 99, 12)) == 12
