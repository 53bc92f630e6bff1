"""Sections about single labels and single examples: where accuracy was lost."""

from __future__ import annotations

from compress.report import numbers
from compress.report.blocks import Block, Cell, Column, Fold, Heading, Paragraph, Section, Table, TableRow, Tone
from compress.report.model import ClassSlice, Report, Row
from compress.report.sections_results import difference_cell_of, gaps, ships
from compress.report.visible import visible

WORST = 5
"""Labels that are shown before the fold, worst difference first."""
_INTRO = "Examples of one true label, and the reference on the same examples; a small label carries a wide interval."


def classes(report: Report) -> Section | None:
    """Accuracy by true label: the artifact to ship open, the others folded."""
    rows = [row for row in report.rows if row.classes]
    if not rows:
        return None
    first = next((row for row in rows if ships(report, row)), rows[0])
    blocks: list[Block] = [Heading(first.step, first.target), *_worst(first)]
    others = [row for row in rows if row is not first]
    blocks += [Fold(f"{row.step} on {row.target}{_in_short(row)}", tuple(_worst(row))) for row in others]
    return Section("classes", "Accuracy by label", tuple(blocks), _INTRO)


def _worst(row: Row) -> list[Block]:
    blocks: list[Block] = [_table(row.classes[:WORST])]
    if len(row.classes) > WORST:
        blocks.append(Fold(f"All {len(row.classes)} labels", (_table(row.classes),)))
    return blocks


def _in_short(row: Row) -> str:
    worst = row.classes[0]
    if worst.points is None:
        return ""
    return f": worst {worst.label}, {numbers.points(worst.points)} points"


def _table(slices: tuple[ClassSlice, ...]) -> Table:
    columns = (
        Column("label", "label", numeric=False),
        Column("right", "right", "of n"),
        Column("accuracy", "share right", "%"),
        Column("reference", "reference", "%", "the reference's share of the same examples"),
        Column("points", "Δ", "points", "share minus the reference's"),
        Column("reading", "reading", numeric=False),
    )
    lines = tuple(
        TableRow(
            (
                Cell(it.label),
                Cell(f"{numbers.count(it.right)} of {numbers.count(it.n)}"),
                Cell(numbers.metric(it.value, "percent"), numbers.metric_interval(it.low, it.high, "percent")),
                Cell(numbers.metric(it.reference, "percent")),
                difference_cell_of(it.points, "percent", it.points_low, it.points_high),
                Cell(it.text or numbers.MISSING, tone=_tone(it)),
            )
        )
        for it in slices
    )
    return Table(columns, lines, gaps(lines))


def _tone(it: ClassSlice) -> Tone:
    return "bad" if it.points_high is not None and it.points_high < 0 else "plain"


def examples(report: Report) -> Section | None:
    """Texts that the artifact answers otherwise than the reference; there only if they were asked for."""
    if not report.examples:
        return None
    columns = (
        Column("text", "text", numeric=False),
        Column("answer", "label", numeric=False),
        Column("reference", "reference said", numeric=False),
        Column("prediction", "artifact says", numeric=False),
    )
    lines = tuple(
        TableRow(
            (
                Cell(visible(it.text, breaks=True)),
                Cell(visible(it.answer, breaks=True)),
                _judged(it.reference, it.answer),
                _judged(it.prediction, it.answer),
            )
        )
        for it in report.examples
    )
    gained = sum(it.prediction == it.answer for it in report.examples)
    lost = sum(it.reference == it.answer for it in report.examples)
    said = (
        f"{numbers.count(len(report.examples))} answers changed: {numbers.count(lost)} that the reference has right, "
        f"{numbers.count(gained)} that the artifact has right."
    )
    intro = "Text of the dataset, here because it was asked for with --examples. Control characters are shown as marks."
    return Section("examples", "Changed answers", (Paragraph(said), Table(columns, lines)), intro)


def _judged(given: str, answer: str) -> Cell:
    right = given == answer
    return Cell(visible(given, breaks=True), "right" if right else "wrong", "plain" if right else "bad")
