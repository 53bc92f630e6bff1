"""Comparing two runs: points, ratios over each one's own baseline, margins, pairing, what is only noise."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from compress.bench.statistics import Interval, paired_difference, wilson_interval
from compress.cli.app import app
from compress.data.splits import Split
from compress.errors import UsageError
from compress.pipeline.comparing import compare_reports, compare_runs, difference_interval
from compress.pipeline.margins import parse_margins
from compress.pipeline.outcomes import Outcomes, read_outcomes, write_outcomes
from compress.report.compare import Change, Comparison, RowChange
from compress.report.compare_view import render_comparison_markdown, render_comparison_terminal
from compress.report.files import read_report, write_report
from compress.report.model import Report
from compress.tasks.text_classification import TextClassification

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
ORT = "ONNX Runtime FP32"
STUDENT = 4
N = 910
LIMITS = {"accuracy": 1.0, "speedup": 0.10}


@pytest.fixture(scope="module")
def before() -> Report:
    return read_report(EXAMPLE)


def with_row(report: Report, index: int, **changes: object) -> Report:
    rows = list(report.rows)
    rows[index] = rows[index].model_copy(update=changes)
    return report.model_copy(update={"rows": tuple(rows)})


def compare(a: Report, b: Report, **options: Any) -> Comparison:
    return compare_reports(a, b, options.pop("margins", LIMITS), **options)


def scored(report: Report, right: int) -> Report:
    value, low, high = wilson_interval(right, N)
    accuracy = report.rows[STUDENT].accuracy.model_copy(update={"value": value, "low": low, "high": high})
    return with_row(report, STUDENT, accuracy=accuracy)


def paced(report: Report, ratio: float, arm: float = 0.01) -> Report:
    fields = {"ratio": ratio, "low": ratio * (1 - arm), "high": ratio * (1 + arm)}
    speedup = report.rows[STUDENT].speedups[ORT].model_copy(update=fields)
    return with_row(report, STUDENT, speedups={**report.rows[STUDENT].speedups, ORT: speedup})


def outcomes(right: int, *, swapped: int = 0, digest: str = "d") -> Outcomes:
    """The student's answers: ``right`` of N; ``swapped`` of each kind have changed sides."""
    answers = [1] * right + [0] * (N - right)
    for i in range(swapped):
        answers[i], answers[-1 - i] = 0, 1
    return Outcomes(
        split="test",
        digest=digest,
        metric="accuracy",
        rows={"student-int8": {"ort-cpu-1t": "".join(map(str, answers))}},
    )


def change(row: RowChange, metric: str, baseline: str = "") -> Change:
    (found,) = [c for c in row.changes if (c.metric, c.baseline) == (metric, baseline)]
    return found


def test_a_report_equals_itself(before: Report) -> None:
    comparison = compare(before, before)
    assert comparison.ok
    assert comparison.regressions == comparison.unresolved == comparison.warnings == ()
    assert [(r.step, r.target) for r in comparison.rows] == [(r.step, r.target) for r in before.rows]
    assert {c.change for row in comparison.rows for c in row.changes} <= {0.0, None}


def test_milliseconds_are_not_compared(before: Report) -> None:
    latency = before.rows[STUDENT].latency.model_copy(update={"p50_ms": 400.0, "mean_ms": 400.0})
    assert compare(before, with_row(before, STUDENT, latency=latency)).ok
    with pytest.raises(UsageError, match="times of two sessions"):
        parse_margins(["p50=10%"])


@pytest.mark.parametrize(
    ("right", "finding"), [(830, "ok"), (801, "ok"), (792, "ok"), (791, "unresolved"), (760, "regression")]
)
def test_accuracy_of_different_examples_needs_a_large_drop(before: Report, right: int, finding: str) -> None:
    comparison = compare(scored(before, 801), scored(before, right))
    found = change(comparison.rows[STUDENT], "accuracy")
    assert found.change == pytest.approx(100 * (right - 801) / N)
    assert found.paired is False
    assert found.finding == comparison.rows[STUDENT].finding == finding
    assert comparison.ok is (finding != "regression")
    assert compare(scored(before, 801), scored(before, right), strict=True).ok is (finding == "ok")
    assert "either run has no outcomes.json" in comparison.pairing


def test_the_same_examples_are_paired_and_resolve_more(before: Report) -> None:
    a, b = scored(before, 801), scored(before, 786)
    first, second = outcomes(801), outcomes(786)
    comparison = compare(a, b, outcomes=(first, second))
    found = change(comparison.rows[STUDENT], "accuracy")
    wanted = paired_difference(first.of("student-int8", "ort-cpu-1t"), second.of("student-int8", "ort-cpu-1t"))
    assert found.paired
    assert (found.low, found.high) == (pytest.approx(100 * wanted.low), pytest.approx(100 * wanted.high))
    assert found.finding == "regression"
    assert comparison.regressions[0].startswith("student-int8 on ort-cpu-1t: accuracy −1.65 points [")
    assert "the same test examples" in comparison.pairing
    many = compare(a, b, outcomes=(first, outcomes(786, swapped=100)))
    assert change(many.rows[STUDENT], "accuracy").finding == "unresolved"
    other = compare(a, b, outcomes=(first, outcomes(786, digest="e")))
    assert change(other.rows[STUDENT], "accuracy").paired is False
    assert change(other.rows[STUDENT], "accuracy").finding == "unresolved"
    assert "different examples" in other.pairing


def test_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, 56/70 against 48/80: method 10 gives 0.0524 to 0.3339."""
    found = difference_interval(Interval(*wilson_interval(48, 80)), Interval(*wilson_interval(56, 70)))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    exact = Interval(0.5, 0.5, 0.5)
    assert difference_interval(exact, Interval(0.7, 0.6, 0.9)) == pytest.approx((0.2, 0.1, 0.4))


def test_where_lower_is_better_a_rise_is_the_regression(before: Report) -> None:
    error = before.rows[STUDENT].accuracy.model_copy(
        update={"metric": "mse", "unit": "plain", "direction": "lower", "value": 0.5, "low": 0.45, "high": 0.55}
    )
    a = with_row(before, STUDENT, accuracy=error)
    worse = error.model_copy(update={"value": 0.8, "low": 0.75, "high": 0.85})
    b = with_row(before, STUDENT, accuracy=worse)
    margins = {"accuracy": 0.2}
    (line,) = compare(a, b, margins=margins).regressions
    assert line == "student-int8 on ort-cpu-1t: mse +0.3000 mse [+0.2293, +0.3707] (limit 0.2000)"
    assert compare(b, a, margins=margins).ok


def test_slowdown_is_a_ratio_of_ratios_with_its_interval(before: Report) -> None:
    base = paced(before, 2.2)
    assert compare(base, paced(before, 2.0)).ok  # 10 % slower: at the limit
    slower = compare(base, paced(before, 1.76))
    assert slower.regressions == (
        "student-int8 on ort-cpu-1t: 25.0 % slower: 2.20x → 1.76x over ONNX Runtime FP32 (limit 10.0 %)",
    )
    found = change(slower.rows[STUDENT], "speedup", ORT)
    assert found.change == pytest.approx(-0.2)
    arm = math.hypot(math.log(1.01), math.log(0.99))
    assert math.log1p(found.low) == pytest.approx(math.log(0.8) - arm)
    assert math.log1p(found.high) == pytest.approx(math.log(0.8) + arm)
    noisy = compare(paced(before, 2.2, 0.3), paced(before, 1.76, 0.3))
    assert noisy.ok
    assert noisy.unresolved == slower.regressions
    assert not compare(paced(before, 2.2, 0.3), paced(before, 1.76, 0.3), strict=True).ok


@pytest.mark.parametrize(
    ("metric", "field", "factor", "line"),
    [
        ("size", "size_bytes", 1.05, "size +5.0 % (limit 2.0 %)"),
        ("peak_rss", "peak_rss_bytes", 1.5, "peak RSS +50.0 % (limit 2.0 %)"),
        ("parameters", "parameters", 1.1, "weights +10.0 % (limit 2.0 %)"),
    ],
)
def test_amounts_are_judged_where_a_margin_is_given(
    before: Report, metric: str, field: str, factor: float, line: str
) -> None:
    base = with_row(before, STUDENT, **{field: 1_000_000})
    grown = with_row(before, STUDENT, **{field: round(1_000_000 * factor)})
    assert compare(base, grown).ok
    assert compare(base, grown, margins={metric: 0.02}).regressions == (f"student-int8 on ort-cpu-1t: {line}",)
    assert compare(grown, base, margins={metric: 0.02}).ok


@pytest.mark.parametrize("status", ["failed", "oom", "skipped"])
def test_a_row_that_no_longer_runs_is_a_regression(before: Report, status: str) -> None:
    comparison = compare(before, with_row(before, STUDENT, status=status, reason="because"))
    assert comparison.regressions == (f"student-int8 on ort-cpu-1t: {status}: because",)


def test_missing_and_new_rows(before: Report) -> None:
    gone = [row for row in before.rows[-2:] if row.status == "ok"]
    fewer = before.model_copy(update={"rows": before.rows[:-2]})
    assert compare(before, fewer).regressions == tuple(f"{r.step} on {r.target}: the row is missing" for r in gone)
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


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("accuracy=0.5", "accuracy", 0.5), ("speedup=5%", "speedup", 0.05), ("size=0.02", "size", 0.02)],
)
def test_margins(text: str, name: str, value: float) -> None:
    assert parse_margins([text])[name] == pytest.approx(value)
    assert set(parse_margins([])) == {"accuracy", "speedup"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size", "NAME=VALUE"),
        ("size=5", "NAME=VALUE"),
        ("size=-2%", "NAME=VALUE"),
        ("size=nan", "NAME=VALUE"),
        ("accuracy=1%", "NAME=VALUE"),
        ("acuracy=1", "no metric 'acuracy'"),
    ],
)
def test_a_margin_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_margins([text])
    assert words in caught.value.what
    assert caught.value.fix


def test_renderings(before: Report) -> None:
    comparison = compare(paced(scored(before, 801), 2.59), scored(paced(before, 2.0), 740))
    markdown = render_comparison_markdown(comparison)
    (line,) = [line for line in markdown.splitlines() if line.startswith("| ✗ | student-int8 | ort-cpu-1t |")]
    assert "81.32 (−6.70 ±" in line
    assert "2.00x (−22.8 % ±" in line
    assert "**2 regressions**" in markdown
    assert "<details>" in markdown
    assert "milliseconds of two sessions are never compared" in markdown
    widths = {line.count(" | ") for line in markdown.splitlines() if line.startswith("| ")}
    assert len(widths) == 1
    out = io.StringIO()
    render_comparison_terminal(comparison, Console(file=out, width=80, force_terminal=False))
    assert all(cell_len(line) <= 80 for line in out.getvalue().splitlines())
    assert "✗ student-int8 on ort-cpu-1t: accuracy −6.70 points [" in out.getvalue()
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_texts_cannot_become_markup(before: Report) -> None:
    hostile = "<script>alert(1)</script> | `x`"
    other = with_row(before, STUDENT, step=hostile).model_copy(update={"title": hostile})
    markdown = render_comparison_markdown(compare(other, other))
    assert "<script>" not in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\`x\\`" in markdown


def test_runs_on_disk_are_paired_by_what_stands_beside_them(before: Report, tmp_path: Path) -> None:
    for name, right in (("a", 801), ("b", 786)):
        write_report(scored(before, right), tmp_path / name)
        (tmp_path / name / "outcomes.json").write_text(outcomes(right).model_dump_json())
    margins = {"accuracy": 1.0}
    assert not compare_runs(tmp_path / "a", tmp_path / "b" / "report.json", margins).ok
    (tmp_path / "b" / "outcomes.json").unlink()
    assert compare_runs(tmp_path / "a", tmp_path / "b", margins).ok
    assert read_outcomes(tmp_path / "b") is None
    (tmp_path / "b" / "outcomes.json").write_text('{"rows": 1}')
    with pytest.raises(UsageError, match="outcomes of a run cannot be read"):
        read_outcomes(tmp_path / "b")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "artifact.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        compare_runs(tmp_path / "artifact", tmp_path / "a", margins)
    assert "mcompress bench" in caught.value.fix


def test_the_command_ends_with_one_line_of_json_and_its_exit_code(before: Report, tmp_path: Path) -> None:
    write_report(before, tmp_path / "a")
    write_report(scored(before, 700), tmp_path / "b")
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 1
    assert shown.stdout.count("\n") == 1
    assert json.loads(shown.stdout)["ok"] is False
    both = CliRunner().invoke(app, [*words, "--markdown", "--json"]).stdout
    assert both.startswith("### ")
    assert json.loads(both.splitlines()[-1]) == json.loads(shown.stdout)
    assert CliRunner().invoke(app, [*words, "--max-drop-points", "20"]).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--margin", "accuracy=20"]).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--margin", "p50=5%"]).exit_code == 2


def test_outcomes_that_are_no_shares_stay_numbers() -> None:
    found = Outcomes(split="test", digest="d", metric="mae", rows={"a": {"t": [0.25, 1.5]}})
    assert np.array_equal(Outcomes.model_validate_json(found.model_dump_json()).of("a", "t"), [0.25, 1.5])
    assert found.of("a", "u") is None


def test_only_rows_that_answered_the_split_in_its_order_leave_outcomes(tmp_path: Path) -> None:
    task = TextClassification(("bad", "fine"), max_length=32)
    answers = np.array([0, 1, 1])
    logits = np.eye(2, dtype=np.float32)
    whole = SimpleNamespace(subject="a", target="t", outputs=logits[[0, 1, 0]], examples=None)
    none = SimpleNamespace(subject="b", target="t", outputs=None, examples=None)
    measured: Any = SimpleNamespace(split="test", answers=answers, measurements=[whole, none])
    state: Any = SimpleNamespace(task=task, data={"test": Split("test", [{}] * 3, "d", "x")})
    write_outcomes(state, measured, tmp_path)
    found = read_outcomes(tmp_path)
    assert found == Outcomes(split="test", digest="d", metric="accuracy", rows={"a": {"t": "110"}})
    whole.examples = np.array([0, 1, 2])
    (tmp_path / "part").mkdir()
    write_outcomes(state, measured, tmp_path / "part")
    assert read_outcomes(tmp_path / "part") is None


def test_a_row_that_fails_in_both_runs_says_so() -> None:
    found = compare(read_report(EXAMPLE), read_report(EXAMPLE))
    row = next(row for row in found.rows if (row.step, row.target) == ("engine", "tensorrt"))
    assert (row.finding, row.changes) == ("ok", ())
    assert "skipped → skipped: no CUDA device on this machine" in render_comparison_markdown(found)
