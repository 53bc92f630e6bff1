"""Sections about INT8: what really runs on integers, what each search tried, what stays in float32 and why."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import numbers
from compress.report.blocks import (
    Block,
    Bullets,
    Cell,
    Column,
    Facts,
    Heading,
    Paragraph,
    Section,
    Table,
    TableRow,
    Tag,
    Tone,
)
from compress.report.model import Int8Candidate, Int8Search, Report, Row, Saturation, SaturationRow
from compress.report.sections_results import speedup_cell

_STEP = Column("step", "step", numeric=False)
_FEW = 0.7
"""Below this share of integer multiply-accumulates an artifact hardly deserves its name."""


def integers(report: Report) -> Section | None:
    """What of every INT8 artifact runs on integers, and why an artifact is not faster."""
    rows = [row for row in report.rows if row.integers is not None]
    if not rows:
        return None
    columns = (
        _STEP,
        Column("target", "target", numeric=False),
        Column("isa", "instructions", meaning="how the CPU multiplies 8-bit integers", numeric=False),
        Column("share", "integer MACs", "%", "share of the linear layers' multiply-accumulates, each for one token"),
        Column("integer", "integer layers", meaning="linear layers that multiply integers"),
        Column("float", "float layers", meaning="linear layers that do not"),
        Column("attention", "attention products", meaning="of two activations, in float"),
        Column("conversions", "conversions", meaning="nodes that only change the type of a tensor"),
    )
    blocks: list[Block] = [Table(columns, tuple(_integer_row(row) for row in rows))]
    for row in rows:
        if row.findings:
            blocks += [Heading(f"Why {row.step} is not faster on {row.target}"), Bullets(row.findings)]
    intro = "Counted in the graph that the runtime really runs, not in the file."
    return Section("integers", "What runs on integers", tuple(blocks), intro)


def _integer_row(row: Row) -> TableRow:
    it = row.integers
    if it is None:
        return TableRow((Cell(row.step), Cell(row.target)))
    share = numbers.MISSING if it.mac_share is None else numbers.fixed(100 * it.mac_share, 1)
    tone: Tone = "plain" if (it.mac_share or 0.0) >= _FEW else "warn"
    folded = (Tag("folds back to FP32", "bad"),) if it.folded and not it.integer_products else ()
    return TableRow(
        (
            Cell(row.step, tags=folded),
            Cell(row.target),
            Cell(row.isa or numbers.MISSING),
            Cell(share, tone=tone),
            Cell(numbers.count(it.integer_products)),
            Cell(numbers.count(it.float_products)),
            Cell(numbers.MISSING if it.attention_products is None else numbers.count(it.attention_products)),
            Cell(numbers.MISSING if it.conversions is None else numbers.count(it.conversions)),
        )
    )


def searches(report: Report) -> Section | None:
    """Every search for an INT8 form: candidates, what stays in float32, saturation, memory of calibration."""
    if not report.int8:
        return None
    blocks: list[Block] = []
    for search in report.int8:
        blocks += [Heading(search.step, _asked(search)), _candidates(search), *_trail(search), *_forms(search)]
        if search.reasons:
            blocks.append(_reasons(search))
        if search.saturation is not None:
            blocks += _saturation(search.saturation)
        blocks += _memory(search)
    intro = (
        "Speed-ups are over the FP32 graph that came in, timed side by side while searching; differences are on "
        "validation, paired. A form's speed does not depend on its ranges, so it is timed once."
    )
    return Section("int8", "INT8 forms that were tried", tuple(blocks), intro)


def _asked(search: Int8Search) -> str:
    wanted = "the fastest" if search.goal == "latency" and not search.not_timed else "the most accurate"
    unit = " points" if search.unit == "percent" else ""
    limit = f"at most {numbers.fixed(search.max_drop)}{unit} lost on {numbers.count(search.examples)} examples"
    return f"{wanted} on {search.target} ({search.isa}), {limit}"


def _candidates(search: Int8Search) -> Table:
    columns = (
        Column("candidate", "candidate", numeric=False),
        Column("speedup", "speed-up"),
        Column("difference", "Δ", "points" if search.unit == "percent" else ""),
        Column("size", "size", "MB"),
        Column("share", "integer MACs", "%"),
    )
    notes = () if search.kept else ("No candidate keeps the limit: the one that loses least was taken.",)
    return Table(columns, tuple(_candidate(it, search) for it in search.candidates), notes)


def _candidate(it: Int8Candidate, search: Int8Search) -> TableRow:
    tags = (*((Tag("chosen", "good"),) if it.chosen else ()), *((Tag("Pareto", "muted"),) if it.pareto else ()))
    tone: Tone = "plain" if -it.points <= search.max_drop + 1e-9 else "bad"
    return TableRow(
        (
            Cell(it.label, tags=tags),
            speedup_cell(it.speedup),
            Cell(numbers.fixed(it.points, 2, signed=True), _interval(it.low, it.high), tone),
            Cell(numbers.megabytes(it.size_bytes)),
            Cell(numbers.MISSING if it.mac_share is None else numbers.fixed(100 * it.mac_share, 1)),
        ),
        strong=it.chosen,
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"[{numbers.fixed(low, 2, signed=True)}, {numbers.fixed(high, 2, signed=True)}]"


def _trail(search: Int8Search) -> list[Block]:
    if not search.trail:
        return []
    columns = (
        Column("action", "what was changed", numeric=False),
        Column("difference", "Δ", "points" if search.unit == "percent" else ""),
        Column("holds", "limit", numeric=False),
    )
    rows = tuple(
        TableRow(
            (
                Cell(it.action),
                Cell(numbers.fixed(it.points, 2, signed=True), _interval(it.low, it.high)),
                Cell("kept" if it.holds else "broken", tone="good" if it.holds else "bad"),
            )
        )
        for it in search.trail
    )
    return [Paragraph("How the limit was reached:"), Table(columns, rows, legend=False)]


def _forms(search: Int8Search) -> list[Block]:
    if search.not_timed:
        return [Paragraph(f"Speed: {search.not_timed}.")]
    columns = (Column("form", "form", meaning="what decides the speed", numeric=False), Column("speedup", "speed-up"))
    order = sorted(search.forms.items(), key=lambda item: -item[1].ratio)
    return [Table(columns, tuple(TableRow((Cell(label), speedup_cell(it))) for label, it in order), legend=False)]


def _reasons(search: Int8Search) -> Table:
    columns = (
        Column("nodes", "left in float", numeric=False),
        Column("reason", "why", numeric=False),
    )
    rows = tuple(
        TableRow((Cell(", ".join(f"{n} {name}" for name, n in it.operators.items()), it.example), Cell(it.reason)))
        for it in search.reasons
    )
    return Table(columns, rows, legend=False)


def _saturation(it: Saturation) -> list[Block]:
    if not it.saturates:
        return [Paragraph(f"8-bit products do not saturate on this CPU ({it.isa}); remedy: {it.remedy}.")]
    text = (
        f"8-bit products saturate on this CPU ({it.isa}): a sum of 64 products 255 x 127 is off by "
        f"{numbers.count(it.error)}. Remedy: {it.remedy}."
    )
    return [Paragraph(text, "warn"), *_saturation_rows(it.rows)]


def _saturation_rows(rows: Sequence[SaturationRow]) -> list[Block]:
    columns = (
        Column("bits", "weights", "bits"),
        Column("difference", "largest error", "", "of an output, against exact products"),
        Column("changed", "decisions changed", "", "by saturation"),
    )
    lines = tuple(
        TableRow(
            (
                Cell(str(row.weight_bits)),
                Cell(f"{row.max_difference:.3g}", f"outputs up to {row.largest_output:.3g}"),
                Cell(f"{row.decisions_changed} of {row.examples}"),
            )
        )
        for row in rows
    )
    return [Table(columns, lines)] if lines else []


def _memory(search: Int8Search) -> list[Block]:
    peak, base = search.calibration_peak_rss_bytes, search.float_peak_rss_bytes
    if peak is None or base is None:
        return []
    pairs = (
        ("calibration examples", numbers.count(search.calibration_examples)),
        ("peak memory of calibration", f"{numbers.megabytes(peak)} MB"),
        ("peak memory of FP32", f"{numbers.megabytes(base)} MB ({peak / base:.2f} times)"),
    )
    return [Facts(pairs)]
