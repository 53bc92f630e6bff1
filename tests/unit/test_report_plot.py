"""The plot: round ticks, areas in proportion to bytes, labels that do not collide, colours by CSS."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report.blocks import Figure, Point
from compress.report.labels import Anchor, Box, place
from compress.report.plot import ParetoPlot
from compress.report.scales import latency, linear, nice_step, tick_text


def point(label: str, x: float, y: float, size: int = 10_000_000, pareto: bool = True, half: float = 0.02) -> Point:
    return Point(label, x, y, y - half, y + half, size, pareto, ships=False)


def figure(*points: Point) -> Figure:
    return Figure("accuracy against latency", "p50 latency, ms", "accuracy, %", True, points, "in words")


def test_ticks_are_round_and_hold_the_range() -> None:
    axis = linear(82.65, 90.98, 400, 0, 6)
    assert axis.ticks == (82, 84, 86, 88, 90, 92)
    assert (axis(82), axis(92)) == (400, 0)
    assert [tick_text(t, (0.0, 2.5, 5.0)) for t in (0.0, 2.5, 5.0)] == ["0.0", "2.5", "5.0"]
    assert tick_text(90.0, axis.ticks) == "90"


@given(st.floats(-1e5, 1e5), st.floats(1e-6, 1e5), st.integers(2, 9))
def test_linear_axis_for_any_range(low: float, span: float, want: int) -> None:
    axis = linear(low, low + span, 0, 100, want)
    assert axis.low <= low + 1e-6 * span + 1e-9
    assert axis.high >= low + span - 1e-6 * span - 1e-9
    assert 2 <= len(axis.ticks) <= want + 2


@given(st.floats(1e-9, 1e9))
def test_nice_step_is_the_next_round_number(raw: float) -> None:
    step = nice_step(raw)
    assert raw * (1 - 1e-6) <= step <= 2.5 * raw
    assert f"{step:.1e}"[:3] in {"1.0", "2.0", "2.5", "5.0"}


def test_equal_values_still_make_an_axis() -> None:
    axis = linear(0.9, 0.9, 0, 100, 5)
    assert 0 < axis(0.9) < 100


def test_latency_starts_at_zero_and_turns_logarithmic_when_spread() -> None:
    near = latency([2.9, 10.8], 0, 100, 6)
    assert near.low == 0
    assert not near.log
    assert near.high >= 10.8
    far = latency([0.4, 300.0], 0, 100, 6)
    assert far.log
    assert far.ticks == (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    assert far(10) - far(1) == pytest.approx(far(100) - far(10))


def test_area_of_a_marker_is_proportional_to_bytes() -> None:
    svg = ParetoPlot(figure(point("a", 1, 0.9, 80_000_000), point("b", 2, 0.8, 20_000_000)), 760, 430).svg()
    radii = [float(r) for r in re.findall(r'<circle class="marker[^>]* r="([\d.]+)"', svg)]
    assert radii[0] / radii[1] == pytest.approx(2, rel=0.02)
    assert svg.count('class="key"') >= 2


def test_positions_follow_the_values() -> None:
    svg = ParetoPlot(figure(point("slow", 10, 0.90), point("fast", 2, 0.80, pareto=False)), 760, 430).svg()
    found = re.findall(r'<circle class="marker (\w+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    (kind_fast, x_fast, y_fast), (kind_slow, x_slow, y_slow) = found
    assert (kind_fast, kind_slow) == ("beaten", "best")
    assert float(x_fast) < float(x_slow)
    assert float(y_fast) > float(y_slow)


def test_svg_is_well_formed_escaped_and_uses_no_colour_or_network_of_its_own() -> None:
    svg = ParetoPlot(figure(point('<b> "x" & y', 1, 0.9), point("b" * 60, 2, 0.8)), 380, 400).svg()
    seen: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            seen.append(tag)

    Check().feed(svg)
    assert "b" not in seen
    assert "&lt;b&gt;" in svg
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(|fill=|stroke=|http|style=", svg)


@pytest.mark.parametrize("seed", range(12))
def test_labels_of_a_crowd_do_not_overlap(seed: int) -> None:
    rng = random.Random(seed)
    frame = Box(0, 0, 760, 400)
    anchors = [
        Anchor(rng.uniform(60, 700), rng.uniform(40, 360), rng.uniform(4, 16), "variant-" + "x" * rng.randint(0, 8))
        for _ in range(9)
    ]
    boxes = [placed.box for placed in place(anchors, [], frame, 13)]
    for i, box in enumerate(boxes):
        assert box.outside(frame) < 1e-6
        assert not any(box.overlap(other) for other in boxes[i + 1 :])


def test_a_dominated_point_without_room_goes_without_a_label_a_good_one_never() -> None:
    anchors = [Anchor(100, 50, 8, "a-rather-long-name", rank=2) for _ in range(12)]
    anchors.append(Anchor(100, 50, 8, "the-one-to-ship"))
    places = place(anchors, [], Box(0, 0, 200, 100), 13)
    assert places[-1] is not None
    kept = [spot.box for spot in places if spot]
    assert 1 < len(kept) < len(anchors)
    assert not any(a.overlap(b) for i, a in enumerate(kept) for b in kept[i + 1 :])


def test_labels_of_nearly_equal_points_do_not_overlap() -> None:
    anchors = [Anchor(200 + i, 100 + i, 8, f"almost-the-same-{i}") for i in range(5)]
    boxes = [placed.box for placed in place(anchors, [], Box(0, 0, 760, 400), 13)]
    assert not any(a.overlap(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_intervals_of_both_coordinates_and_both_in_the_hint() -> None:
    wide = Point("wide", 5, 0.9, 0.88, 0.92, 1_000_000, True, ships=False, x_low=3, x_high=7)
    narrow = Point("narrow", 9, 0.8, 0.78, 0.82, 1_000_000, True, ships=False, x_low=8.99, x_high=9.01)
    svg = ParetoPlot(figure(wide, narrow), 760, 430).svg()
    paths = re.findall(r'<g data-step="(\w+)"><path class="bar best" d="([^"]+)"', svg)
    horizontal = {step: re.findall(r"M([\d.]+),[\d.]+H([\d.]+)", path) for step, path in paths}
    ((low, high),) = horizontal["wide"]
    assert float(low) < float(high)
    assert horizontal["narrow"] == []  # it lies inside its marker
    assert "wide: 90.00 % [88.00, 92.00], 5.00 ms [3.00, 7.00], 1.00 MB</title>" in svg


def test_dominated_points_are_told_apart_by_class_and_every_mark_knows_its_step() -> None:
    svg = ParetoPlot(figure(point("good", 1, 0.9), point("beaten", 2, 0.8, pareto=False)), 760, 430).svg()
    for step, kind in (("good", "best"), ("beaten", "beaten")):
        assert re.search(rf'<g class="stage" data-step="{step}"><circle class="marker {kind}"', svg)
        assert re.search(rf'<g data-step="{step}"><path class="bar {kind}"', svg)
        assert re.search(rf'<g data-step="{step}"><text class="label {kind}"', svg)
