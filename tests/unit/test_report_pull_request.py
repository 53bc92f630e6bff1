"""Markdown for a pull request: short, verdict first, every row, details folded, everything escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.app import app
from compress.report.files import read_report
from compress.report.pull_request import LONGEST, render_pull_request

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "data" / "report_example.json"
REPORTS = [EXAMPLE, *sorted(ROOT.glob("reports/*/report.json"))]


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_every_row_is_one_line_before_the_first_fold(path: Path) -> None:
    report = read_report(path)
    shown = render_pull_request(report)
    assert len(shown) < LONGEST + 2000
    open_, folded = shown.split("<details>")[0], shown.split("<details>")[1:]
    assert report.verdict.headline.split(":")[0] in open_.splitlines()[0] + open_.splitlines()[2]
    rows = [line for line in open_.splitlines() if line.startswith("| ")]
    assert len(rows) >= len(report.rows) + 2
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    for row in report.rows:
        if row.status == "ok" and row.latency:
            assert any(f" {row.latency.p50_ms:,.2f} |" in line for line in rows)
    assert shown.count("<details>") == shown.count("</details>") == len(folded) >= 3


def test_no_text_becomes_markup() -> None:
    report = read_report(EXAMPLE)
    hostile = "<script>alert(1)</script> | `x` ](http://x)"
    rows = tuple(row.model_copy(update={"step": hostile}) for row in report.rows)
    verdict = report.verdict.model_copy(update={"headline": hostile, "reasons": (hostile,)})
    shown = render_pull_request(report.model_copy(update={"rows": rows, "verdict": verdict, "limits": (hostile,)}))
    prose = re.sub(r"^(`{3,}).*?^\1$", "", shown, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in prose
    assert "](http" not in prose
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\`x\\`" in prose


def test_what_is_too_long_for_a_comment_is_left_out_and_said() -> None:
    report = read_report(EXAMPLE)
    reproduce = report.reproduce.model_copy(update={"recipe": "a: b\n" * 20_000})
    shown = render_pull_request(report.model_copy(update={"reproduce": reproduce}))
    assert len(shown) < 65_536
    assert "Left out for length, see report.html: Reproduce." in shown


def test_stages_of_the_verdicts_target_stand_in_the_first_fold() -> None:
    first = render_pull_request(read_report(EXAMPLE)).split("<details>")[1]
    assert "<summary>Stage by stage</summary>" in first
    assert "| pruned-fp32 | prune, distil, export | 6.60 | 1.73x | 1.73x | 89.12 | +0.44 | 70.21 | 76.7 |" in first
    assert "raspberry" not in first


def test_findings_are_folded_too() -> None:
    shown = render_pull_request(read_report(EXAMPLE))
    assert "<summary>Findings and warnings</summary>" in shown
    assert "- raspberry-pi-5: The board reported one moment of thermal throttling." in shown


def test_the_command_prints_it(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["report", str(EXAMPLE), "--markdown"])
    assert shown.exit_code == 0
    assert shown.stdout == render_pull_request(read_report(EXAMPLE))
