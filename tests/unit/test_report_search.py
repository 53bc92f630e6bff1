"""Searches, widths, students and notes: the words and numbers of the new sections, worked out by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from compress.report.files import read_report
from compress.report.html import render_html
from compress.report.markdown import render_markdown
from compress.report.model import Report, Step, Widths
from compress.report.notes import note_pairs
from compress.report.sections_search import closeness, latency, sentences, students, widths
from compress.report.terminal import render_terminal

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE)


def with_match(report: Report, **changes: object) -> Report:
    return report.model_copy(update={"students": (report.students[0].model_copy(update=changes),)})


def test_every_search_shows_asked_predicted_searched_and_measured(example: Report) -> None:
    lines = render_markdown(example).splitlines()
    assert (
        "| pruned-4x (int8 on ort-cpu-1t) | 4.00x | 4.21x | 4.06x [4.01, 4.11], 2 attempts "
        "| 4.08x [3.98, 4.17], pruned-4x-int8 | −3.1 % | yes (the interval holds both) |"
    ) in lines
    assert (
        "| pruned-2ms (int8 on ort-cpu-1t) | 2.20 ms (mean time) | 5.10x | 5.66x [5.55, 5.77], 3 attempts "
        "| 5.80x [5.62, 5.98], 1.97 ms, pruned-2ms-int8 | +13.7 % | yes |"
    ) in lines
    assert "- pruned-1pt: not compared: no fp16 model made from it was measured on edge-64m." in lines
    assert "1 of 2 predictions within 10 % of the measured latency; 2 of 2 budgets kept." in lines


def test_predictions_at_the_edge_count_as_close(example: Report) -> None:
    first = example.searches[0]
    searches = tuple(
        first.model_copy(update={"error": e, "met": m}) for e, m in ((0.1, True), (-0.1, False), (0.2, None))
    )
    text = closeness(example.model_copy(update={"searches": searches}))
    assert text == "2 of 3 predictions within 10 % of the measured latency; 1 of 2 budgets kept."
    none = first.model_copy(update={"error": None, "met": None, "reason": "x"})
    assert closeness(example.model_copy(update={"searches": (none,)})) == (
        "None of 1 search was measured in this report."
    )


def test_a_missed_budget_is_said(example: Report) -> None:
    missed = example.searches[0].model_copy(update={"met": False, "verdict": "fail"})
    section = latency(example.model_copy(update={"searches": (missed,)}))
    cell = section.blocks[1].rows[0].cells[-1]
    assert (cell.text, cell.detail, cell.tone) == ("no", "", "bad")


@pytest.mark.parametrize(("drift", "told"), [(0.15, None), (-0.14, None), (0.24, "+24 %"), (-0.3, "−30 %")])
def test_a_machine_that_was_not_steady_is_told(example: Report, drift: float, told: str | None) -> None:
    search = example.searches[0].model_copy(update={"drift": drift})
    (*_, table) = latency(example.model_copy(update={"searches": (search,)})).blocks
    assert [told in note and "not steady" in note for note in table.notes] == ([] if told is None else [True])


def test_widths_show_removed_sublayers_and_dropped_layers(example: Report) -> None:
    lines = render_markdown(example).splitlines()
    assert "| pruned-2ms | heads (of 12) | 6 | 5 | 3 | no layer | 1 | no layer |" in lines
    assert "| pruned-2ms | neurons (of 1,536) | 512 | 352 | 96 | no layer | removed | no layer |" in lines
    html = render_html(example)
    assert f'style="--fill:{352 / 1536:.3f}"' in html
    stay = [n for step in example.steps if step.widths for n in (*step.widths.heads, *step.widths.neurons) if n > 0]
    assert html.count('style="--fill:') == len(stay)


def test_models_of_different_depth_share_one_table(example: Report) -> None:
    shallow = Widths(layers=(0,), heads=(2,), neurons=(8,), full_layers=2, full_heads=2, full_neurons=8)
    steps = (example.steps[1], example.steps[1].model_copy(update={"id": "shallow", "widths": shallow}))
    table = widths(example.model_copy(update={"steps": steps})).blocks[0]
    assert {len(row.cells) for row in table.rows} == {len(table.columns)} == {8}


def test_a_student_is_told_apart_from_the_nearest_pruned_model(example: Report) -> None:
    assert sentences(example) == (
        "At 3.10x on ort-cpu-1t, student-3l-int8 has 85.60 points against 88.02 of student-int8 at 2.59x, which "
        "takes 20 % more time: the pruned model wins (student minus pruned model −2.42 [−4.13, −0.71]).",
    )
    assert "the student wins" in sentences(with_match(example, winner="student"))[0]
    assert "no difference found" in sentences(with_match(example, winner=None))[0]
    assert "of student-int8 at equal latency:" in sentences(with_match(example, slower=-0.04))[0]
    assert "which takes 12 % less time:" in sentences(with_match(example, slower=-0.12))[0]


def test_sections_are_absent_where_nothing_was_searched(example: Report) -> None:
    plain = example.model_copy(
        update={
            "searches": (),
            "students": (),
            "steps": tuple(step.model_copy(update={"widths": None}) for step in example.steps),
        }
    )
    assert (latency(plain), students(plain), widths(plain)) == (None, None, None)
    assert "Predicted and measured" not in render_markdown(plain)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_says_it_in_a_few_lines(example: Report, width: int) -> None:
    out = io.StringIO()
    render_terminal(example, Console(file=out, width=width, force_terminal=False))
    shown = out.getvalue()
    assert all(cell_len(line) <= width for line in shown.splitlines())
    flat = " ".join(shown.split())
    assert f"• {closeness(example)}" in flat
    assert f"• {sentences(example)[0]}" in flat


def test_plot_tells_families_and_int8_apart(example: Report) -> None:
    html = render_html(example)
    found = dict(re.findall(r'<circle class="marker ([a-z ]+)"[^>]*><title>([^:]+):', html))
    assert found["best pruned"] in {"pruned-4x-int8", "pruned-2ms-int8", "pruned-fp32", "student-int8"}
    assert found["ships pruned"] == "student-int8"
    assert found["beaten student"] == "student-3l-int8"
    hint = "student-3l-int8: 85.60 % [83.17, 87.74], 3.48 ms [3.46, 3.50] (3.10x), 17.10 MB"
    assert f'{hint}</title></circle><circle class="eye"' in html
    assert "pruned-2ms-int8 (5.80x)" in html
    for name in ("dense", "pruned", "student", "int8"):
        assert f'text-anchor="start">{name}</text>' in html


def test_a_record_without_families_has_no_key(example: Report) -> None:
    rows = tuple(row.model_copy(update={"family": None}) for row in example.rows)
    svg = render_html(example.model_copy(update={"rows": rows}))
    assert 'text-anchor="start">pruned</text>' not in svg


def pairs(example: Report, step: str) -> dict[str, str]:
    return dict(note_pairs(next(it for it in example.steps if it.id == step)))


def test_notes_are_named_for_a_reader(example: Report) -> None:
    trimmed = pairs(example, "trimmed")
    assert trimmed["vocabulary kept"] == "12,034 of 30,522 tokens (39.4 %)"
    assert trimmed["tokens of validation"] == (
        "unknown 0.00 % → 0.02 %; cut otherwise: 0.31 % of words, 4.13 % of 872 texts; length 25.1 → 25.3"
    )
    factored = pairs(example, "factored")
    assert factored["embeddings.word_embeddings"] == "rank 128, 4.62 → 1.59 million weights, 4.12 % lost"
    assert factored["left as they were"] == "2: not smaller"
    student = pairs(example, "student-3l")
    assert student["3 seeds"] == "mean 85.13, standard deviation 0.17 (0: 85.32, 1: 84.98, 2: 85.09)"
    assert student["accuracy on validation"] == "62.16 → 85.32, epoch 3 of 4"
    pruned = pairs(example, "pruned")
    assert pruned["heads kept"] == f"45 of 72 ({100 * 45 / 72:.1f} %)"
    assert pruned["MACs of the encoder"] == "49.0 % (asked: 50.0 %)"
    assert "search" not in pruned
    assert "kept heads" not in pruned


def test_notes_of_an_unexpected_form_are_shown_as_they_are() -> None:
    notes = {"tokens": 5, "rates": "none"}
    assert note_pairs(Step(id="a", name="trim", notes=notes)) == [("tokens", "5"), ("rates", "none")]
    assert note_pairs(Step(id="a", name="export", notes={"opset_used": 20})) == [("opset used", "20")]


def test_the_example_keeps_its_own_rules(example: Report) -> None:
    """Errors, verdicts and winners of the invented record follow from its other numbers."""
    for search in example.searches:
        if search.measured is None:
            assert search.reason
            continue
        assert search.error == pytest.approx(search.measured.ratio / search.predicted - 1)
        if "speedup" in search.budget:
            assert search.met == (search.measured.ratio >= search.budget["speedup"])
        else:
            assert search.met == (search.measured_ms <= search.budget["latency_ms"])
    for match in example.students:
        assert match.winner == ("pruned" if match.difference.high < 0 else None)
