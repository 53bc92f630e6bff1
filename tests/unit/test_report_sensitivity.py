"""Sensitivity in a report: from a step's notes to bars, table, sentence and terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from compress.pipeline.sensitivities import sensitivity_records
from compress.quantization import sensitivity as domain
from compress.report.bars import BarPlot, shorten
from compress.report.blocks import Bar, Bars
from compress.report.files import read_report
from compress.report.html import render_html
from compress.report.markdown import render_markdown
from compress.report.model import Report, Sensitivity, SensitivityRecord, Step
from compress.report.notes import note_pairs
from compress.report.sections_sensitivity import (
    SHOWN,
    advice,
    bars,
    conclusion,
    half_of_the_noise,
    sensitivity,
    short_names,
    table,
)
from compress.report.terminal import print_ranking

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
PREFIX = "bert.encoder.layer"


def row(name: str, sqnr: float, noise: float, **changes: Any) -> Sensitivity:
    fields = {"kl": 1.2e-3, "drop_points": 0.5, "macs_share": 0.06, "operator": "MatMul"}
    return Sensitivity(node=name, sqnr_db=sqnr, noise_share=noise, **{**fields, **changes})


RECORD = SensitivityRecord(
    step="student-int8",
    rows=(
        row(f"{PREFIX}.0.output.dense/MatMul", 4.1, 0.45, excluded="sensitivity 4.1 dB"),
        row(f"{PREFIX}.1.intermediate.dense/MatMul", 9.2, 0.4, drop_points=-0.25),
        row(f"{PREFIX}.1.attention.self.query/MatMul", 12.0, 0.15, drop_points=None, kl=None),
        row(f"{PREFIX}.1.output.dense/MatMul", 200.0, 0.0, drop_points=0.0),
    ),
    examples=64,
    together_db=3.84,
)


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE).model_copy(update={"sensitivities": (RECORD,)})


def many(count: int) -> SensitivityRecord:
    rows = tuple(row(f"{PREFIX}.{i}.output.dense/MatMul", 10.0 + i, 1 / count) for i in range(count))
    return SensitivityRecord(step="many", rows=rows)


def test_conclusion_says_what_makes_half_of_the_noise() -> None:
    assert conclusion(RECORD) == (
        f"Most sensitive on 64 examples: {PREFIX}.0.output.dense/MatMul, 4.1 dB. 85 % of the noise comes from 2 of "
        "4 products with 12.0 % of the MACs. All of them together give 3.8 dB. 1 stays in float32."
    )
    assert [it.sqnr_db for it in half_of_the_noise(RECORD)] == [4.1, 9.2]
    assert advice(RECORD).endswith(
        f"`quantize: {{exclude: [{PREFIX}.0.output.dense/MatMul, {PREFIX}.1.intermediate.dense/MatMul]}}`"
    )


def test_conclusion_of_a_model_without_noise_advises_nothing() -> None:
    quiet = SensitivityRecord(step="s", rows=(row("a", 200.0, 0.0),))
    assert conclusion(quiet) == "Most sensitive: a, equal dB."
    assert advice(quiet) == ""
    assert conclusion(SensitivityRecord(step="s", rows=())) == "Nothing was measured."


def test_markdown_has_the_sentence_and_the_table(example: Report) -> None:
    lines = render_markdown(example).splitlines()
    assert "## Sensitivity to INT8" in lines
    assert conclusion(RECORD) in lines
    assert "| node | operator | SQNR, dB | KL, nats | drop, points | MACs, % | noise, % | runs in |" in lines
    first = "| 0.output.dense | MatMul | 4.1 | 1.2e-03 | +0.50 | 6.0 | 45.0 | float32 (sensitivity 4.1 dB) |"
    assert first in lines
    assert "| 1.attention.self.query | MatMul | 12.0 | – | – | 6.0 | 15.0 | int8 |" in lines
    assert "| 1.output.dense | MatMul | equal | 1.2e-03 | 0.00 | 6.0 | 0.0 | int8 |" in lines


def test_section_is_absent_without_a_measurement(example: Report) -> None:
    plain = example.model_copy(update={"sensitivities": ()})
    assert sensitivity(plain) is None
    assert "Sensitivity to INT8" not in render_html(plain)


def test_a_page_shows_the_worst_and_says_how_many_more_there_are() -> None:
    record = many(SHOWN + 3)
    assert len(bars(record).bars) == len(table(record, shown=SHOWN).rows) == SHOWN
    assert table(record, shown=SHOWN).notes == ("3 more, from 30.0 dB on, are in report.json.",)
    assert len(table(record).rows) == SHOWN + 3
    assert table(many(3), shown=SHOWN).notes == ()


def test_columns_of_tensors_and_of_exclusions_appear_where_there_is_something_in_them() -> None:
    keys = [column.key for column in table(many(3)).columns]
    assert not {"activation", "weight", "runs"} & set(keys)
    halves = row("a", 4.0, 1.0, activation_sqnr_db=5.25, weight_sqnr_db=30.0)
    block = table(SensitivityRecord(step="s", rows=(halves,)))
    texts = dict(
        zip([column.key for column in block.columns], [cell.text for cell in block.rows[0].cells], strict=True)
    )
    assert (texts["activation"], texts["weight"]) == ("5.2", "30.0")


def rectangles(svg: str) -> list[tuple[str, float, float, str]]:
    pattern = r'<rect class="([a-z ]+)" x="([\d.-]+)" y="[\d.]+" width="([\d.]+)"[^>]*><title>([^<]*)</title>'
    return [(kind, float(x), float(width), hint) for kind, x, width, hint in re.findall(pattern, svg)]


@pytest.mark.parametrize("width", [760, 380])
def test_bars_are_proportional_and_excluded_ones_hollow(width: int) -> None:
    svg = BarPlot(bars(RECORD), width).svg()
    found = rectangles(svg)
    assert [kind for kind, *_ in found] == ["amount kept", "amount", "amount", "amount"]
    assert found[1][2] / found[0][2] == pytest.approx(9.2 / 4.1, rel=0.02)
    assert found[3][2] == found[2][2]  # equal outputs: as long as the longest, and named
    assert [hint for *_, hint in found][::3] == [
        f"{PREFIX}.0.output.dense/MatMul: 4.1",
        f"{PREFIX}.1.output.dense/MatMul: equal",
    ]
    assert "kept in float32" in svg
    assert len({x for _, x, *_ in found}) == 1
    assert all(x + length <= width for _, x, length, _ in found)
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(|fill=|stroke=|http|style=", svg)


def test_bars_below_zero_go_to_the_left_and_a_plot_without_exclusions_has_no_key() -> None:
    figure = Bars("t", "x", (Bar("worse", -6.0, "−6.0"), Bar("better", 12.0, "12.0")), "s", "int8", "kept in float32")
    svg = BarPlot(figure, 760).svg()
    (_, left, length, _), (_, zero, longer, _) = rectangles(svg)
    assert left + length == pytest.approx(zero, abs=0.2)
    assert longer / length == pytest.approx(2, rel=0.02)
    assert "kept in float32" not in svg


def test_broken_outputs_have_a_word_and_no_endless_bar() -> None:
    record = SensitivityRecord(step="s", rows=(row("a", -200.0, 1.0), row("b", 8.0, 0.0)))
    assert [(bar.value, bar.text) for bar in bars(record).bars] == [(0.0, "broken"), (8.0, "8.0")]


def test_labels_of_a_plot_are_escaped() -> None:
    svg = BarPlot(Bars("<t>", "x", (Bar("<b>&", 1.0, "1.0"),), "s"), 760).svg()
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;" in svg


def test_html_holds_both_sizes_of_the_plot(example: Report) -> None:
    section = re.search(r'<section id="sensitivity"[^>]*>.*?</section>', render_html(example), re.DOTALL)[0]
    assert section.count('<svg class="plot"') == 2
    assert section.count('class="amount kept"') == 4  # a bar and the key, twice
    assert "<h3>student-int8</h3>" in section


def test_names_lose_what_all_share_and_their_operator() -> None:
    assert short_names(RECORD.rows)[:2] == ["0.output.dense", "1.intermediate.dense"]
    alone = (row("encoder.a/MatMul_2", 1.0, 1.0),)
    assert short_names(alone) == ["a/MatMul_2"]
    assert short_names((row("a", 1.0, 0.5), row("b", 1.0, 0.5))) == ["a", "b"]


def test_paths_are_shortened_alike() -> None:
    paths = ["encoder.layer.10.attention.output.dense", "encoder.layer.2.output.dense", "pooler.dense"]
    assert shorten(paths, 40) == paths
    assert shorten(paths, 25) == ["e.l.10.a.output.dense", "e.l.2.output.dense", "pooler.dense"]
    assert shorten(paths, 20) == ["e.l.10.a.o.dense", "e.l.2.output.dense", "pooler.dense"]
    assert shorten(["abcdefgh"], 4) == ["…fgh"]


@pytest.mark.parametrize("halves", [False, True])
def test_ranking_fits_eighty_columns(halves: bool) -> None:
    changes = {"activation_sqnr_db": -12.3, "weight_sqnr_db": 44.4} if halves else {}
    rows = tuple(it.model_copy(update=changes) for it in [*RECORD.rows, *many(30).rows])
    out = io.StringIO()
    print_ranking(RECORD.model_copy(update={"rows": rows}), Console(file=out, width=80, force_terminal=False))
    lines = out.getvalue().splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    assert "\x1b" not in out.getvalue()
    ranked = [line.split() for line in lines if re.match(r"\s*\d+ ", line)]
    assert [int(words[0]) for words in ranked] == list(range(1, 35))
    assert ranked[0][1:4] == ["0.output.dense", "MatMul", "4.1"]
    assert len({len(words) for words in ranked}) == 1  # no name was broken in two


def state(**notes: Any) -> SimpleNamespace:
    """As much of a finished run as the collector reads: a step with notes, one without, one that failed."""
    steps = [SimpleNamespace(id=id_) for id_ in ("export", "int8", "late")]
    made = {id_: SimpleNamespace(manifest=SimpleNamespace(notes={})) for id_ in ("export", "int8")}
    made["int8"].manifest.notes = notes
    outcomes = {id_: SimpleNamespace(status="done", artifact=made[id_]) for id_ in made}
    outcomes["late"] = SimpleNamespace(status="failed", artifact=None)
    return SimpleNamespace(plan=SimpleNamespace(steps=steps), outcomes=outcomes)


def test_records_come_from_the_notes_of_finished_steps() -> None:
    rows = [
        domain.Sensitivity("a", "MatMul", 10.0, 0.1, 1.5, 0.75),
        domain.Sensitivity("b", "Gather", 20.0, None, None, 0.0, None, 20.0),
    ]
    notes = domain.sensitivity_notes(rows, {"a": "sensitivity 10.0 dB"})
    (record,) = sensitivity_records(state(sensitivity=notes, sensitivity_examples=12, sensitivity_together_db=9.5))
    assert (record.step, record.examples, record.together_db) == ("int8", 12, 9.5)
    assert [it.excluded for it in record.rows] == ["sensitivity 10.0 dB", ""]
    assert [it.noise_share for it in record.rows] == pytest.approx([10 / 11, 1 / 11])
    assert record.rows[1].weight_sqnr_db == 20.0
    assert list(sensitivity_records(state(method="dynamic"))) == []


def test_notes_of_a_step_leave_out_what_has_a_section() -> None:
    notes = {"sensitivity": [{"node": "a"}], "sensitivity_examples": 64, "method": "dynamic"}
    assert note_pairs(Step(id="a", name="quantize", notes=notes)) == [("method", "dynamic")]
