"""Comparing two reports: points, ratios over each one's own baseline, regressions against limits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from compress.report.compare import Comparison, compare_reports
from compress.report.compare_view import render_comparison_markdown, render_comparison_terminal
from compress.report.files import read_report
from compress.report.model import Report

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
ORT = "ONNX Runtime FP32"
STUDENT = 4


@pytest.fixture(scope="module")
def before() -> Report:
    return read_report(EXAMPLE)


def with_row(report: Report, index: int, **changes: object) -> Report:
    rows = list(report.rows)
    rows[index] = rows[index].model_copy(update=changes)
    return report.model_copy(update={"rows": tuple(rows)})


def compare(a: Report, b: Report) -> Comparison:
    return compare_reports(a, b, max_drop_points=1.0, max_slowdown=0.10)


def scored(report: Report, right: int) -> Report:
    accuracy = report.rows[STUDENT].accuracy.model_copy(update={"value": right / 910})
    return with_row(report, STUDENT, accuracy=accuracy)


def paced(report: Report, ratio: float) -> Report:
    speedup = report.rows[STUDENT].speedups[ORT].model_copy(update={"ratio": ratio})
    return with_row(report, STUDENT, speedups={**report.rows[STUDENT].speedups, ORT: speedup})


def test_a_report_equals_itself(before: Report) -> None:
    comparison = compare(before, before)
    assert comparison.ok
    assert comparison.regressions == ()
    assert comparison.warnings == ()
    assert [(r.step, r.target) for r in comparison.rows] == [(r.step, r.target) for r in before.rows]
    assert {r.points for r in comparison.rows} == {0.0, None}


def test_milliseconds_are_not_compared(before: Report) -> None:
    latency = before.rows[STUDENT].latency.model_copy(update={"p50_ms": 400.0, "mean_ms": 400.0})
    assert compare(before, with_row(before, STUDENT, latency=latency)).ok


@pytest.mark.parametrize(("right", "ok"), [(801, True), (792, True), (791, False), (830, True)])
def test_accuracy_may_drop_up_to_the_limit(before: Report, right: int, ok: bool) -> None:
    comparison = compare(before, scored(before, right))
    assert comparison.ok is ok
    assert comparison.rows[STUDENT].points == pytest.approx(100 * (right - 801) / 910)


def test_where_lower_is_better_a_rise_is_the_regression(before: Report) -> None:
    error = before.rows[STUDENT].accuracy.model_copy(
        update={"metric": "mse", "unit": "plain", "direction": "lower", "value": 0.5}
    )
    a = with_row(before, STUDENT, accuracy=error)
    b = with_row(before, STUDENT, accuracy=error.model_copy(update={"value": 0.8}))
    assert compare_reports(a, b, 0.2, 0.1).regressions == (
        "student-int8 on ort-cpu-1t: mse +0.3000 mse (limit 0.2000)",
    )
    assert compare_reports(b, a, 0.2, 0.1).ok


def test_slowdown_is_a_ratio_of_ratios(before: Report) -> None:
    base = paced(before, 2.2)
    assert compare(base, paced(before, 2.0)).ok  # 10 % slower: at the limit
    slower = compare(base, paced(before, 1.76))
    assert slower.regressions == (
        "student-int8 on ort-cpu-1t: 25.0 % slower: 2.20x → 1.76x over ONNX Runtime FP32 (limit 10.0 %)",
    )
    assert slower.rows[STUDENT].speedups[ORT].relative == pytest.approx(-0.2)


@pytest.mark.parametrize("status", ["failed", "oom", "skipped"])
def test_a_row_that_no_longer_runs_is_a_regression(before: Report, status: str) -> None:
    comparison = compare(before, with_row(before, STUDENT, status=status, reason="because"))
    assert comparison.regressions == (f"student-int8 on ort-cpu-1t: {status}: because",)


def test_missing_and_new_rows(before: Report) -> None:
    fewer = before.model_copy(update={"rows": before.rows[:-2]})
    assert compare(before, fewer).regressions == ("student-int8-75 on edge-64m: the row is missing",)
    more = compare(fewer, before)
    assert more.ok
    assert more.rows[-2].status_before is None


def test_what_makes_two_reports_hard_to_compare_is_said(before: Report) -> None:
    splits = tuple(s.model_copy(update={"digest": "0"}) if s.name == "test" else s for s in before.data.splits)
    targets = (before.targets[0].model_copy(update={"threads": 2}), *before.targets[1:])
    other = before.model_copy(
        update={
            "data": before.data.model_copy(update={"splits": splits}),
            "environment": before.environment.model_copy(update={"cpu": "Another"}),
            "subject": before.subject.model_copy(update={"digest": "0"}),
            "targets": targets,
        }
    )
    warnings = " ".join(compare(before, other).warnings)
    for words in ("test splits differ", "Different CPUs", "different models", "other limits than before: ort-cpu-1t"):
        assert words in warnings


def test_renderings(before: Report) -> None:
    comparison = compare(before, scored(paced(before, 2.0), 780))
    markdown = render_comparison_markdown(comparison)
    assert (
        "| student-int8 (on ort-cpu-1t) | 85.71 (was 88.02) | −2.31 | 18.21 | 17.39 | 3.70x | 2.00x (was 2.59x) |"
    ) in markdown.splitlines()
    assert "**2 regressions**" in markdown
    assert "milliseconds of two sessions are never compared" in markdown
    out = io.StringIO()
    render_comparison_terminal(comparison, Console(file=out, width=80, force_terminal=False))
    assert all(cell_len(line) <= 80 for line in out.getvalue().splitlines())
    assert "✗ student-int8 on ort-cpu-1t: accuracy −2.31 points (limit 1.00)" in out.getvalue()
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
