"""Markdown, HTML and terminal: every number is there, nothing is computed, nothing breaks out of its place."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from compress.report.files import read_report
from compress.report.html import render_html
from compress.report.markdown import render_markdown, text
from compress.report.model import Data, EndToEnd, Environment, Report, Reproduce, Row, Subject, TargetRecord, Verdict
from compress.report.terminal import render_terminal

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE)


@pytest.fixture(scope="module")
def minimal() -> Report:
    return Report(
        version="0.1.0",
        title="Minimal",
        recipe="minimal",
        created="2026-11-23",
        verdict=Verdict(headline="Nothing may ship: nothing was measured."),
        subject=Subject(model="m", digest="00", task="text-classification", problem="regression", labels=0),
        steps=(),
        data=Data(problem="regression"),
        targets=(TargetRecord(name="torch-cuda", runtime="torch", device="cuda", available=False, reason="no GPU"),),
        rows=(Row(step="model", target="torch-cuda", status="skipped", reason="no GPU"),),
        environment=Environment(cpu="a CPU", os="Linux", python="3.11"),
        reproduce=Reproduce(commands=("mcompress run r.yaml",), recipe="recipe: 1\n", seed=0),
    )


def terminal(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    render_terminal(report, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def replace_row(report: Report, index: int, **changes: object) -> Report:
    rows = list(report.rows)
    rows[index] = rows[index].model_copy(update=changes)
    return report.model_copy(update={"rows": tuple(rows)})


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def numbers_of(row: Row) -> list[str]:
    """The texts that a measured row must show, worked out here from the record by hand."""
    found = [f"{row.size_bytes / 1e6:.2f}", f"{row.accuracy.right} of {row.accuracy.n}"]
    found += [f"{100 * row.accuracy.value:.2f}", f"[{100 * row.accuracy.low:.2f}, {100 * row.accuracy.high:.2f}]"]
    if row.latency:
        found += [f"{row.latency.p50_ms:.2f}", f"{row.latency.p90_ms:.2f}"]
        found += [f"{row.load_ms:.1f}", f"{row.peak_rss_bytes / 1e6:.1f}"]
    found += [f"{speedup.ratio:.2f}x" for speedup in row.speedups.values()]
    if row.difference:
        found.append(f"{row.difference.points:+.2f}".replace("-", "−"))
    if row.throughput_per_s is not None:
        found.append(f"{row.throughput_per_s:.1f}")
    return found


def test_markdown_lines(example: Report) -> None:
    lines = render_markdown(example).splitlines()
    assert lines[0] == "# Invented example: MiniLM-L6 on SST-2"
    assert "> **Synthetic data: these accuracies say nothing about yours.**" in lines
    assert (
        "| step | size, MB | accuracy, % | Δ, points | p50, ms | vs torch FP32 | vs ONNX Runtime FP32 | evidence |"
    ) in lines
    assert (
        "| **student-int8** (ship, gate unresolved, Pareto) | 18.21 | 88.02 [85.77, 89.99] | −0.77 [−2.09, +0.55] "
        "| 4.17 | 3.70x [3.58, 3.82] | 2.59x [2.51, 2.66] | measured |"
    ) in lines
    assert (
        "| student-int8 (gate unresolved) | out of memory: needed 131 MB, the limit is 64 MB |  |  |  |  |  |"
    ) in lines
    assert (
        "| tensorrt | not measured: No CUDA device was found; the engine was built, but cannot run here. |"
    ) in lines
    assert "- student-int8-75: throughput not measured: the batched run exceeded its time limit of 60 s" in lines
    assert "- train and test: 3 rows in both, dropped from train" in lines
    assert "mcompress run example-sst2.yaml --out out/" in lines


def test_markdown_tables_are_rectangular(example: Report) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", render_markdown(example), flags=re.MULTILINE)
    assert len(blocks) >= 10
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_order_is_verdict_then_results_then_the_record(example: Report) -> None:
    titles = re.findall(r"^## (.*)$", render_markdown(example), flags=re.MULTILINE)
    assert titles == [
        "Verdict",
        "Stage by stage",
        "Results",
        "Latency",
        "Throughput",
        "Memory",
        "Cold costs",
        "Energy",
        "Accuracy on test",
        "Accuracy by label",
        "Changed answers",
        "Students and pruned models",
        "Predicted and measured latency",
        "What was pruned where",
        "INT8 forms that were tried",
        "What runs on integers",
        "Sensitivity to INT8",
        "Gates and parity",
        "Findings and warnings",
        "Limits",
        "Model",
        "Data",
        "What each step did",
        "Environment",
        "Reproduce",
    ]
    assert re.findall(r'<h2 id="([a-z]+)-title"', render_html(example))[:3] == ["verdict", "stages", "results"]


def test_every_number_of_every_row_is_in_markdown_and_html(example: Report) -> None:
    markdown = render_markdown(example)
    page = " ".join(parse(render_html(example)).texts)
    for row in example.rows:
        for number in numbers_of(row) if row.status == "ok" else [text(row.reason)]:
            assert number in markdown
            assert number in page


def test_changing_a_value_changes_its_text_and_nothing_else(example: Report) -> None:
    """Renderers compute nothing: an absurd p50 changes no speed-up, no verdict, no Pareto mark."""
    latency = example.rows[4].latency.model_copy(update={"p50_ms": 4321.98})
    other = replace_row(example, 4, latency=latency)
    before, after = render_markdown(example).splitlines(), render_markdown(other).splitlines()
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2  # the results and the speed table
    assert all(b == a.replace("4.17", "4,321.98") for a, b in changed)


def test_html_is_well_formed_and_self_contained(example: Report) -> None:
    html = render_html(example)
    page = parse(html)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in unescape(html)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(|@font-face|fetch\(|XMLHttp|innerHTML|eval\(", html)
    assert "default-src 'none'" in unescape(html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= set(ids)


def test_html_rows_span_every_column(example: Report) -> None:
    html = render_html(example)
    for table in re.findall(r"<table>.*?</table>", html, flags=re.DOTALL):
        width = len(re.findall(r'<th scope="col"', table))
        for line in re.findall(r"<tr[^>]*>.*?</tr>", table.partition("<tbody>")[2], flags=re.DOTALL):
            cells = re.findall(r"<t[hd] [^>]*>", line)
            assert sum(int(m.group(1)) if (m := re.search(r'colspan="(\d+)"', c)) else 1 for c in cells) == width


def test_texts_of_the_report_cannot_become_markup(example: Report) -> None:
    html, markdown = render_html(example), render_markdown(example)
    for rendering in (html, markdown):
        assert "<script>alert" not in rendering
        assert "<b>dense" not in rendering
        assert "int8 &lt;b&gt;dense&lt;/b&gt;" in rendering
    hostile = '"><img src=x onerror=alert(1)>](http://x)\n# `a` | b'
    other = replace_row(example, 3, step=hostile).model_copy(update={"title": hostile, "recipe": hostile})
    page = parse(render_html(other))
    assert "img" not in {tag for tag, _ in page.tags}
    assert hostile in unescape(" ".join(page.texts))
    line = render_markdown(other).splitlines()[0]
    assert line == '# "&gt;&lt;img src=x onerror=alert(1)&gt;]\\(http://x) # \\`a\\` \\| b'
    assert all(c.isprintable() for c in terminal(other).replace("\n", ""))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_terminal_never_exceeds_its_width(example: Report, minimal: Report, width: int) -> None:
    for report in (example, minimal):
        for line in terminal(report, width).splitlines():
            assert cell_len(line) <= width, line


def test_terminal_shows_the_verdict_and_the_numbers(example: Report) -> None:
    shown = terminal(example)
    flat = " ".join(shown.split())
    assert "Verdict: Ship student-int8: 2.59 times as fast as ONNX Runtime FP32 on ort-cpu-1t" in flat
    assert "Synthetic data: these accuracies say nothing about yours." in flat
    assert "✗ student-int8-75 15.51 85.05 −3.74 ±2.20 ↓ 2.90 3.77x ±0.11" in flat
    assert "→ student-int8" in flat
    assert "−0.77 ±1.32 ≈" in flat
    assert "student-int8 out of memory: needed 131 MB, the limit is 64 MB" in flat
    assert "skipped: no CUDA device on this machine" in flat
    assert "speed-up over onnx-fp32 on ort-cpu-1t" in flat
    assert "\x1b" not in shown
    assert not set(shown) & set("╭╮╰╯│─")
    wide = terminal(example, 120)
    assert "88.02 ±2.25" in wide
    assert "5.38x" in wide


def test_a_terminal_gets_a_box_and_colour_and_no_color_takes_the_colour_away(
    example: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    render_terminal(example, Console(file=out, width=80, force_terminal=True))
    assert "╭─" in out.getvalue()
    assert "\x1b[32m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    render_terminal(example, Console(file=out, width=80, force_terminal=True))
    assert "\x1b[32m" not in out.getvalue()


def test_the_second_clock_has_a_column_where_it_was_read(example: Report) -> None:
    row = example.rows[4]
    latency = row.latency.model_copy(update={"p50_ms": 5.43})
    shown = terminal(replace_row(example, 4, end_to_end=EndToEnd(latency=latency)), 120)
    assert " e2e " in shown
    assert "4.17  5.43" in " ".join(shown.split("\n")).replace("   ", "  ")
    assert "with tokenization and decoding" in " ".join(shown.split())


REPORTS = sorted(Path(__file__).parents[2].glob("reports/*/report.json"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_real_reports_are_readable_at_80_columns(path: Path) -> None:
    """Each measured row is one line, with its figures whole; each row that did not run is there with its reason."""
    report = read_report(path)
    lines = [line.rstrip() for line in terminal(report).splitlines()]
    assert max(map(cell_len, lines)) <= 80
    assert report.rows
    for row in report.rows:
        found = [line for line in lines if re.match(rf"[ →?✗] {re.escape(row.step)}\*? ", line)]
        if row.status == "ok":
            figures = [f"{100 * row.accuracy.value:.2f}"]
            if row.latency is not None:  # an emulated row has none
                figures.append(f" {row.latency.p50_ms:,.2f} ")
            assert any(all(figure in line for figure in figures) for line in found)
            assert not any("…" in line for line in found)
        else:
            assert " ".join(row.reason.split())[:20] in " ".join(" ".join(lines).split())


def test_arrows_say_what_is_resolved(example: Report) -> None:
    row = example.rows[4]
    for low, high, arrow in ((0.1, 1.0, "↑"), (-1.0, -0.1, "↓"), (-1.0, 1.0, "≈")):
        change = row.difference.model_copy(update={"points": (low + high) / 2, "low": low, "high": high})
        (line,) = [x for x in terminal(replace_row(example, 4, difference=change)).splitlines() if "→ student" in x]
        assert f" {arrow} " in line
    error = row.accuracy.model_copy(update={"metric": "mae", "unit": "plain", "direction": "lower"})
    change = row.difference.model_copy(update={"points": -0.2, "low": -0.3, "high": -0.1, "unit": "plain"})
    other = replace_row(example, 4, difference=change, accuracy=error)
    (line,) = [x for x in terminal(other).splitlines() if "→ student" in x]
    assert "−0.2000 ±0.1000 ↑" in line


def test_no_difference_stands_beside_its_speedup(example: Report) -> None:
    name = "ONNX Runtime FP32"
    same = (
        example.rows[4]
        .speedups[name]
        .model_copy(update={"ratio": 1.01, "low": 0.99, "high": 1.04, "text": "no difference"})
    )
    shown = terminal(replace_row(example, 4, speedups={**example.rows[4].speedups, name: same}))
    assert "1.01x ±0.03 ≈" in shown
    assert "≈ beside a speed-up: no difference" in " ".join(shown.split())


def test_terminal_does_not_obey_escape_sequences(minimal: Report) -> None:
    shown = terminal(minimal.model_copy(update={"title": "\x1b[31mred\x07"}))
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_what_is_missing_has_words(minimal: Report) -> None:
    for rendering in (render_markdown(minimal), render_html(minimal)):
        assert "not measured: no GPU" in rendering
        assert "No step declares a gate." in rendering
        assert "Overlap between splits: not measured." in rendering
        assert "not recorded" in rendering
    assert "skipped: no GPU" in terminal(minimal)


def test_a_row_without_accuracy_or_latency_says_so(example: Report) -> None:
    other = replace_row(example, 1, accuracy=None, latency=None, not_measured={"accuracy": "no labels on test"})
    lines = render_markdown(other).splitlines()
    row = "| onnx-fp32 | 91.52 | – | −0.11 [−0.33, +0.11] | – | 1.43x [1.39, 1.47] | 1.00x | measured |"
    assert row in lines
    assert "- onnx-fp32: accuracy not measured: no labels on test" in lines
    assert "- –: not measured, or without meaning in this row." in lines
    assert "| onnx-fp32 | ort-cpu-1t | not measured: no labels on test |  |  |  |  |  |  |" in lines


def test_accuracies_on_another_split_are_never_called_test(example: Report) -> None:
    data = example.data.model_copy(update={"evaluated": "validation"})
    markdown = render_markdown(example.model_copy(update={"data": data}))
    assert "## Accuracy on validation" in markdown
    assert "910 validation examples" in markdown
    assert "Test is read once" not in markdown


def test_code_fence_is_longer_than_any_in_the_recipe(example: Report) -> None:
    reproduce = example.reproduce.model_copy(update={"recipe": "a: |\n  ````\n  x\n"})
    markdown = render_markdown(example.model_copy(update={"reproduce": reproduce}))
    assert "`````yaml\na: |\n  ````\n  x\n`````" in markdown


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("snake_case _emphasis_", "snake_case \\_emphasis\\_"),
        ("1. not a list", "\\1. not a list"),
        ("# not a heading", "\\# not a heading"),
        ("${DATA}/sst2", "${DATA}/sst2"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_escapes(plain: str, escaped: str) -> None:
    assert text(plain) == escaped


def test_int8_sections_say_what_ran_on_integers_what_was_tried_and_what_saturates(example: Report) -> None:
    shown = render_markdown(example)
    assert "folds back to FP32" in shown
    assert "Why student-int8 is not faster on ort-cpu-1t" in shown
    assert "How the limit was reached" in shown
    assert "2 most sensitive nodes in float32" in shown
    assert "off by 1,024,096" in shown
    assert "5 of 64" in shown
    assert "0.91 times" in shown
