"""What ``mcompress bench`` prints: one line per artifact and target, with intervals and arrows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from compress.pipeline.benching import BenchRow
from compress.report import numbers
from compress.report.columns import Grid, Head, widest_that_fits
from compress.report.frozen import Unit
from compress.report.terminal_table import BETTER, EQUAL, LEGEND, WORSE, plain

_MARK = {"faster": "", "slower": f" {WORSE}", "no difference": f" {EQUAL}"}


def bench_lines(rows: Sequence[BenchRow], width: int, rule: str = "─") -> list[Text]:
    """Return the table and its legend, at most ``width`` cells wide."""
    details = (
        (2, True, True, True),
        (2, True, True, False),
        (1, True, True, False),
        (2, True, False, False),
        (1, True, False, False),
        (1, False, False, False),
    )
    grids = [_grid(rows, *detail) for detail in details]
    return [*widest_that_fits(grids, width).lines(width, rule=rule), *_legend(rows)]


def _grid(rows: Sequence[BenchRow], gap: int, spread: bool, both_ratios: bool, peak: bool) -> Grid:
    first = next((row for row in rows if row.metric), None)
    unit = "%" if first is not None and first.unit == "percent" else ""
    way = WORSE if first is not None and first.direction == "lower" else BETTER
    second = any(row.end_to_end_ms is not None for row in rows)
    ratio = second and both_ratios and any(row.end_to_end_speedup is not None for row in rows)
    several = len({row.target for row in rows}) > 1
    heads = (
        Head("artifact", right=False),
        *((Head("target", right=False),) if several else ()),
        Head("size", "MB"),
        Head(f"{first.metric if first else 'accuracy'} {way}", unit),
        Head("Δ", "points" if unit else ""),
        Head(f"p50 {WORSE}", "ms"),
        Head("speed-up"),
        *((Head("e2e", "ms"),) if second else ()),
        *((Head("e2e\nspeed-up"),) if ratio else ()),
        *((Head("peak", "MB"),) if peak else ()),
    )
    lines = []
    for row in rows:
        if row.status != "ok":
            words = f"{plain(row.target)}: {row.status}: {plain(row.reason)}"
            lines.append((Text(plain(row.artifact)), Text(words, style="red" if row.status != "skipped" else "dim")))
            continue
        lines.append(
            (
                Text(plain(row.artifact)),
                *((Text(plain(row.target), style="dim"),) if several else ()),
                Text(numbers.fixed(row.size_mb)),
                Text(numbers.metric(row.value, row.unit)),
                _difference(row, spread),
                Text(numbers.milliseconds(row.p50_ms)),
                _ratio(row.speedup, row.speedup_low, row.speedup_high, row.speedup_text, spread),
                *((Text(numbers.milliseconds(row.end_to_end_ms)),) if second else ()),
                *((_second_ratio(row, spread),) if ratio else ()),
                *((Text(numbers.megabytes(row.peak_rss_bytes)),) if peak else ()),
            )
        )
    return Grid(heads, tuple(lines), gap)


def _difference(row: BenchRow, spread: bool) -> Text:
    if row.difference is None:
        return Text(numbers.MISSING, style="dim")
    scale = 100.0 if row.unit == "percent" else 1.0
    unit: Unit = row.unit
    low, high = (None if end is None else scale * end for end in (row.difference_low, row.difference_high))
    text = Text(numbers.points(scale * row.difference, unit))
    arms = numbers.points_spread(scale * row.difference, low, high, unit)
    text.append(f" {arms}" if arms and spread else "", style="dim")
    if low is None or high is None or low <= 0 <= high:
        return text.append(f" {EQUAL}", style="dim")
    better = (low > 0) == (row.direction == "higher")
    return text.append(f" {BETTER if better else WORSE}", style="green" if better else "red")


def _ratio(value: float | None, low: float | None, high: float | None, words: str, spread: bool) -> Text:
    if value is None:
        return Text(numbers.MISSING, style="dim")
    text = Text(numbers.ratio(value), style="red" if words == "slower" else "")
    arms = numbers.spread(value, low, high)
    text.append(f" {arms}" if arms and spread else "", style="dim")
    return text.append(_MARK.get(words, ""), style="dim")


def _second_ratio(row: BenchRow, spread: bool) -> Text:
    return _ratio(
        row.end_to_end_speedup,
        row.end_to_end_speedup_low,
        row.end_to_end_speedup_high,
        row.end_to_end_speedup_text,
        spread,
    )


def _legend(rows: Sequence[BenchRow]) -> list[Text]:
    first = next((row for row in rows if row.metric), None)
    on = f"{first.metric}, N = {first.n}" if first else "no labels, so no accuracy"
    same = [
        f"{row.artifact} on {row.target}: no difference in speed" for row in rows if row.speedup_text == "no difference"
    ]
    words = [
        on,
        "Δ and speed-ups against the first row (speed-ups: of the same device and threads)",
        f"{BETTER} better, {WORSE} worse, {EQUAL} no difference within the interval",
        *(["e2e: with tokenization and decoding"] if any(row.end_to_end_ms is not None for row in rows) else []),
        LEGEND,
    ]
    notes = [
        f"{row.artifact} on {row.target}: {warning}"
        for row in rows
        for warning in row.warnings
        if warning not in row.not_measured.values()
    ]
    return [
        *(Text(plain(line)) for line in same),
        *(Text(f"! {plain(line)}", style="yellow") for line in dict.fromkeys(notes)),
        Text("; ".join(words) + ".", style="dim"),
    ]
