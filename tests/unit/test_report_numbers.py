"""How numbers read: fixed decimals, a true minus, no signed zero, no blanks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.fixed(1234.5), "1,234.50"),
        (numbers.fixed(-0.004, signed=True), "0.00"),
        (numbers.fixed(-1.5), "−1.50"),
        (numbers.fixed(2, 1, signed=True), "+2.0"),
        (numbers.fixed(None), "–"),
        (numbers.metric(808 / 910, "percent"), "88.79"),
        (numbers.metric(-0.5, "plain"), "−0.5000"),
        (numbers.metric_interval(0.8658, 0.9067, "percent"), "[86.58, 90.67]"),
        (numbers.points(-0.7692), "−0.77"),
        (numbers.points(0.01, "plain"), "+0.0100"),
        (numbers.points_interval(-2.0879, 0.5495), "[−2.09, +0.55]"),
        (numbers.points_interval(None, 1.0), ""),
        (f"{numbers.ratio(1.7312)} {numbers.interval(1.7, 1.764)}", "1.73x [1.70, 1.76]"),
        (numbers.megabytes(91_520_331), "91.52"),
        (numbers.gigabytes(24_000_000_000), "24.0"),
        (numbers.millions(22_713_986), "22.71"),
        (numbers.count(10_003), "10,003"),
        (numbers.p_value(0.0004), "< 0.001"),
        (numbers.p_value(0.001), "0.001"),
        (numbers.tiny(3.14e-6), "3.1e-06"),
        (numbers.tiny(0), "0"),
        (numbers.share(0.99454), "99.45 %"),
        (numbers.duration(0.44), "0.4 s"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(205), "3 min 25 s"),
        (numbers.duration(3750), "1 h 02 min"),
        (numbers.short_digest("sha256:" + "ab" * 32), "abababababab"),
        (numbers.value_text({"heads": [11, 10], "on": True, "p": None}), "heads: (11, 10), on: yes, p: none"),
        (numbers.value_text([]), "none"),
        (numbers.value_text(2e-5), "2e-05"),
        (numbers.value_text(list(range(40))), ", ".join(map(str, range(32))) + ", and 8 more"),
    ],
)
def test_reads(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    "formatter",
    [
        numbers.fixed,
        numbers.points,
        numbers.ratio,
        numbers.milliseconds,
        numbers.megabytes,
        numbers.gigabytes,
        numbers.millions,
        numbers.count,
        numbers.p_value,
        numbers.tiny,
        numbers.share,
        numbers.duration,
        numbers.short_digest,
    ],
)
def test_a_missing_value_is_a_dash(formatter) -> None:
    assert formatter(None) == "–"


@given(st.floats(-1e9, 1e9), st.integers(0, 4), st.booleans())
def test_fixed_reads_back_to_the_rounded_value(value: float, decimals: int, signed: bool) -> None:
    text = numbers.fixed(value, decimals, signed=signed)
    assert "-" not in text
    back = float(text.replace("−", "-").replace(",", ""))
    assert abs(back - value) <= 0.5001 * 10**-decimals
    assert len(text.partition(".")[2]) == decimals


@given(st.floats(0, 1e6))
def test_duration_reads_back_to_the_unit_shown(seconds: float) -> None:
    parts = numbers.duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600}
    back = sum(float(n) * units[u] for n, u in zip(parts[::2], parts[1::2], strict=True))
    assert abs(back - seconds) <= {"s": 0.5, "min": 61}[parts[-1]]
