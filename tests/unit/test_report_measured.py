"""Sections of what was measured: what is hidden has its reason, what was not asked for is absent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from compress.report import (
    sections_classes,
    sections_findings,
    sections_load,
    sections_record,
    sections_results,
    sections_stages,
    sections_timing,
)
from compress.report.blocks import Block, Fold, Lines, Stacks, Strips, Table, Waterfall
from compress.report.files import read_report
from compress.report.html import render_html
from compress.report.markdown import render_markdown
from compress.report.model import ChangedExample, Lengths, Report
from compress.report.visible import visible

DATA = Path(__file__).parents[1] / "data"
REPORTS = Path(__file__).parents[2] / "reports"
SHIPPED = "student-int8"


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(DATA / "report_example.json")


@pytest.fixture(scope="module")
def bare() -> Report:
    """A record from before any of these fields was there."""
    return read_report(DATA / "report_schema1.json")


def tables(blocks: tuple[Block, ...]) -> list[Table]:
    """Return every table, those of figures and folds too."""
    found: list[Table] = []
    for block in blocks:
        if isinstance(block, Table):
            found.append(block)
        elif isinstance(block, Waterfall):
            found.append(block.table)
        elif isinstance(block, Fold):
            found += tables(block.blocks)
    return found


def cells(table: Table, step: str) -> dict[str, str]:
    """Return column key -> text with its detail, of the first row of a step."""
    row = next(row for row in table.rows if row.cells[0].text == step)
    pairs = zip(table.columns, row.cells, strict=True)
    return {column.key: " ".join(filter(None, (cell.text, cell.detail))) for column, cell in pairs}


def test_waterfall_is_of_the_verdicts_target_first_and_its_table_says_the_same(example: Report) -> None:
    section = sections_stages.stages(example)
    figure, other = section.blocks[1], section.blocks[2]
    assert isinstance(figure, Waterfall)
    assert [fall.step for fall in figure.falls] == ["onnx-fp32", "pruned-fp32", SHIPPED]
    assert [fall.ships for fall in figure.falls] == [False, False, True]
    assert isinstance(other, Fold)
    assert "raspberry-pi-5" in other.title
    row = cells(figure.table, SHIPPED)
    assert (row["mean"], row["gain"], row["speedup"]) == ("4.41", "1.50x", "2.59x")
    assert (row["accuracy"], row["points"], row["size"], row["ratio"]) == ("88.02", "−1.10", "18.21", "19.9")
    assert "2.59x as fast as the first, 19.9 % of its size" in figure.summary
    assert "quantize to INT8: −1.10 points" in figure.summary


def test_a_stage_without_a_time_has_its_reason(example: Report) -> None:
    figure = sections_stages.waterfall(example, "raspberry-pi-5")
    assert figure.falls[1].value is None
    assert "this step was not in the kit" in cells(figure.table, "pruned-fp32")["mean"]


def test_both_clocks_stand_side_by_side(example: Report) -> None:
    clocks = tables(sections_timing.timing(example).blocks)[0]
    row = cells(clocks, SHIPPED)
    assert (row["p50"], row["p90"], row["mean"]) == ("4.17", "6.70", "4.41")
    assert (row["e2e50"], row["e2emean"], row["overhead"]) == ("4.79", "5.06", "0.65")
    assert row["e2espeed"] == "2.27x [2.21, 2.33]"
    assert (row["cv"], row["stability"]) == ("1.2 %", "stable")
    assert any("the last rounds were 3.1 % slower than the first" in note for note in clocks.notes)


def test_a_hidden_percentile_has_its_reason_and_others_their_interval(example: Report) -> None:
    percentiles = tables(sections_timing.timing(example).blocks)[1]
    assert cells(percentiles, SHIPPED)["q:95"] == "7.83 [7.67, 7.98]"
    assert cells(percentiles, SHIPPED)["q:99"] == "hidden"
    assert cells(percentiles, "onnx-fp32")["q:99"] == "26.57 [24.44, 28.69]"
    (note,) = [note for note in percentiles.notes if "hidden" in note]
    assert "3,072 samples are too few" in note
    assert "onnx-fp32" not in note


def test_distribution_is_drawn_from_whole_quantiles_only(example: Report) -> None:
    figure = sections_timing.distribution(example, "ort-cpu-1t")
    assert isinstance(figure, Strips)
    assert sum(strip.second for strip in figure.strips) == len(figure.strips) / 2
    assert sections_timing.distribution(example, "arm64-cortex-a72") is None
    short = example.rows[4].latency.model_copy(update={"quantiles_ms": (1.0, 2.0)})
    row = example.rows[4].model_copy(update={"latency": short, "end_to_end": None})
    alone = example.model_copy(update={"rows": (row,)})
    assert sections_timing.distribution(alone, "ort-cpu-1t") is None


def test_sweep_shows_few_rows_with_the_shipped_one_and_the_table_all(example: Report) -> None:
    section = sections_load.throughput(example)
    figure = next(block for block in section.blocks if isinstance(block, Lines))
    assert len(figure.lines) == sections_load.FEW
    assert [line.step for line in figure.lines if line.ships] == [SHIPPED]
    assert "1 more is in the table" in figure.summary
    assert "student-int8 221.7 at batch 8" in figure.summary
    row = cells(tables(section.blocks)[0], SHIPPED)
    assert row["at:8:1"] == "221.7 [215.0, 228.4]"
    assert row["at:1:2"] == "157.4 [146.3, 166.3]"


def test_scenarios_say_what_they_are_not(example: Report) -> None:
    shown = render_markdown(example)
    assert "MLPerf-style, driven by LoadGen in shortened runs: not MLPerf results" in shown
    assert "| student-int8 | ort-cpu-1t | server | 128.00 per s | 25.0 (p99 was 23.8) |" in shown
    assert "| onnx-fp32 | ort-cpu-1t | server | not reached | 25.0 |" in shown


def test_memory_has_one_column_per_definition_and_phases_in_two_parts(example: Report) -> None:
    section = sections_load.memory(example)
    figure = next(block for block in section.blocks if isinstance(block, Stacks))
    shipped = next(stack for stack in figure.stacks if stack.ships)
    assert [layer.name for layer in shipped.layers] == ["at import", "loaded", "first run", "steady", "peak"]
    assert all(layer.solid + layer.pale == pytest.approx(layer.total) for layer in shipped.layers[:-1])
    assert shipped.layers[-1].solid is None
    row = cells(tables(section.blocks)[0], SHIPPED)
    assert (row["disk"], row["import"], row["steady"]) == ("18.2", "62.0 34.1 mapped", "121.1 36.1 mapped")
    assert (row["peak"], row["over"]) == ("131.0", "69.0")
    assert "process" not in row


def test_labels_worst_first_and_all_of_them_in_a_fold(example: Report) -> None:
    row = next(row for row in example.rows if row.classes and row.step == SHIPPED)
    many = tuple(row.classes[0].model_copy(update={"label": f"label {i}"}) for i in range(77))
    rows = tuple(it.model_copy(update={"classes": many if it is row else ()}) for it in example.rows)
    blocks = sections_classes.classes(example.model_copy(update={"rows": rows})).blocks
    assert [len(table.rows) for table in tables(blocks)] == [sections_classes.WORST, 77]
    assert isinstance(blocks[-1], Fold)
    assert blocks[-1].title == "All 77 labels"


def test_dataset_text_only_where_it_is_on_record(example: Report) -> None:
    assert "Changed answers" in render_html(example)
    without = example.model_copy(update={"examples": ()})
    for shown in (render_html(without), render_markdown(without)):
        assert "Changed answers" not in shown
        assert "second half rarely is" not in shown


def test_control_characters_of_an_example_are_marks(example: Report) -> None:
    hostile = ChangedExample(text="a\u202eb\x1b[31m\x00\nc\t\u200bd", answer="x", reference="x", prediction="y\u2066")
    report = example.model_copy(update={"examples": (hostile,), "title": "t\u202e\x07"})
    for shown in (render_html(report), render_markdown(report)):
        assert "a⟨U+202E⟩b⟨U+001B⟩[31m⟨U+0000⟩↵ c⇥ ⟨U+200B⟩d" in shown
        assert "y⟨U+2066⟩" in shown
    html = render_html(report)
    assert not [c for c in html if c != "\n" and not c.isprintable()]
    html.encode("utf-8")


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("plain, café, 漢字, 👩\u200d🔬", "plain, café, 漢字, 👩\u200d🔬"),
        ("two\nlines", "two\nlines"),
        ("\ud800\x7f\x85\u2028\xad", "⟨U+D800⟩⟨U+007F⟩⟨U+0085⟩⟨U+2028⟩⟨U+00AD⟩"),
    ],
)
def test_what_steers_nothing_stays(plain: str, shown: str) -> None:
    assert visible(plain) == shown


def test_findings_collect_warnings_unsteady_clocks_and_invalid_runs(example: Report) -> None:
    text = "\n".join(sections_findings.findings(example).blocks[0].items)
    for words in (
        "pruned-fp32 on ort-cpu-1t: latency is drifting",
        "student-int8 on ort-cpu-1t: load average was 1.6",
        "server scenario not valid: no rate keeps 99 % under 25.0 ms",
        "this machine: The CPU governor is not known.",
        "raspberry-pi-5: The board reported one moment of thermal throttling.",
    ):
        assert words in text


def test_another_machine_has_its_own_environment(example: Report) -> None:
    shown = render_markdown(example)
    environment = shown.partition("## Environment")[2].partition("## Reproduce")[0]
    assert "### raspberry-pi-5\n\ningested on another machine" in environment
    assert "- CPU: Invented Cortex-A76 (4 cores)" in environment
    assert "- onnxruntime: 1.23.2" in environment
    assert "ingested on Invented Cortex-A76 (4 cores), Linux 6.6 aarch64" in shown.partition("## Results")[2]


def test_emulated_rows_have_accuracy_and_no_time(example: Report) -> None:
    for section in (sections_timing.timing(example), sections_load.throughput(example), sections_load.memory(example)):
        assert not [block for block in section.blocks if getattr(block, "text", "") == "arm64-cortex-a72"]
    shown = render_markdown(example)
    assert "every row: latency not measured: an emulated CPU tells nothing about time" in shown
    assert "| student-int8 | arm64-cortex-a72 | 801 of 910 |" in shown


def test_failed_and_oom_rows_are_rows(example: Report) -> None:
    results = render_html(example).partition('id="results"')[2].partition('id="timing"')[0]
    assert "failed: RuntimeError: no kernel for com.microsoft.DynamicQuantizeMatMul" in results
    assert "out of memory: needed 131 MB, the limit is 64 MB" in results


def test_an_old_record_has_no_empty_sections(bare: Report) -> None:
    titles = re.findall(r"^## (.*)$", render_markdown(bare), flags=re.MULTILINE)
    assert not {"Stage by stage", "Energy", "Accuracy by label", "Changed answers"} & set(titles)
    assert {"Latency", "Throughput", "Memory", "Cold costs"} <= set(titles)
    clocks = tables(sections_timing.timing(bare).blocks)[0]
    assert [column.key for column in clocks.columns] == ["step", "p50", "p90", "mean", "cv"]


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_committed_reports_still_render(path: Path) -> None:
    html = render_html(read_report(path))
    title = json.loads(path.read_text(encoding="utf-8"))["verdict"]["headline"].partition(":")[0]
    assert title in html
    assert '<section id="results"' in html


def test_conditions_of_the_record_are_in_every_rendering(example: Report, bare: Report) -> None:
    for shown in (render_html(example), render_markdown(example)):
        assert "256 real inputs of 4 to 66 tokens (median 21), 12 rounds, 3 launches, each after 0.7 to 1.1 s" in shown
        assert "cut to 128 tokens" in shown
        assert f"0.1.0, commit {'11dd' * 10} with changes that are not committed" in shown
        assert "22ee" * 16 in shown
        assert "1.4 times the arm of its interval" in shown
        assert re.search(r"36\.1 mapped", shown)
    assert "tokens (median" not in render_markdown(bare)
    assert "commit" not in sections_record.reproduce(bare).blocks[1].text


def test_a_capped_target_says_so(example: Report) -> None:
    capped = example.targets[0].model_copy(update={"isa": "avx2"})
    assert sections_results.describe(capped).startswith("onnxruntime, cpu, 1 thread, instructions up to avx2, measured")
    assert "instructions" not in sections_results.describe(example.targets[0])


def test_lengths_that_are_all_the_same_are_one_number(example: Report) -> None:
    row = next(row for row in example.rows if row.latency)
    latency = row.latency.model_copy(update={"tokens": Lengths(least=1, median=1, most=1), "warmup_s": None})
    only = example.model_copy(update={"rows": (row.model_copy(update={"latency": latency}),)})
    assert sections_timing.timing(only).blocks[0].note == "256 real inputs of 1 token, 12 rounds, 3 launches"


def test_an_emulated_row_says_what_the_same_artifact_answers_here(example: Report) -> None:
    said = "student-int8: emulated (arm64): same answer as on ort-cpu-1t for 907 of 910, outputs within 0.031"
    assert said in render_html(example)
    assert said in render_markdown(example)


def test_what_a_row_says_is_said_once(example: Report) -> None:
    """A run's environment repeats the warnings of its rows, and what a row lacks is among its warnings."""
    row = example.rows[0].model_copy(
        update={"warnings": ("busy", "no tokenizer"), "not_measured": {"end_to_end": "no tokenizer"}}
    )
    machine = example.environment.model_copy(update={"warnings": ("busy", "no governor")})
    report = example.model_copy(update={"rows": (row,), "targets": example.targets[:2], "environment": machine})
    assert sections_results.footnotes([row]) == (
        "model: end to end not measured: no tokenizer",
        "model: busy",
    )
    found = sections_findings.findings(report)
    assert found.blocks[0].items == (
        "model on torch-cpu-1t: busy",
        "model on torch-cpu-1t: no tokenizer",
        "this machine: no governor",
    )
    assert "busy" not in str(sections_record.environment(report).blocks)


def test_a_hidden_p90_is_no_dash(example: Report) -> None:
    row = next(row for row in example.rows if row.latency and row.target == "torch-cpu-1t")
    hidden = row.latency.percentiles[1].model_copy(update={"value_ms": None, "reason": "100 inputs are too few"})
    percentiles = (row.latency.percentiles[0], hidden)
    latency = row.latency.model_copy(update={"p90_ms": None, "percentiles": percentiles})
    only = example.model_copy(update={"rows": (row.model_copy(update={"latency": latency}),)})
    clocks, percentile = tables(sections_timing.timing(only).blocks)[:2]
    assert cells(clocks, "model")["p90"] == "hidden"
    assert percentile.notes == ("model: p90 is hidden: 100 inputs are too few",)
