"""A comparison as text: for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from compress.report import markdown, numbers
from compress.report.columns import Grid, Head, widest_that_fits
from compress.report.compare import Change, Comparison, RowChange
from compress.report.terminal_table import plain

NOTE = (
    "Speed: ratio over each run's own baseline; milliseconds of two sessions are never compared. "
    "A regression breaks its margin and its 95 % interval excludes no change; "
    "what breaks it by the estimate alone is unresolved."
)
_MARKS = {"regression": ("✗", "red"), "unresolved": ("?", "yellow")}
_NAMES = {"size": "size", "parameters": "weights", "peak_rss": "peak RSS"}


def render_comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown to paste: the verdict, the table, the rest folded."""
    kinds = _kinds(comparison.rows)
    head = ["", "step", "target", *(markdown.text(title) for _, title in kinds)]
    rule = ["---", "---", "---", *["---:"] * len(kinds)]
    lines = [_line(head), _line(rule)]
    for row in comparison.rows:
        mark = _MARKS.get(row.finding, ("", ""))[0]
        cells = [mark, markdown.text(row.step), markdown.text(row.target)]
        if row.changes:
            cells += [markdown.text(_words(_find(row, kind))) for kind, _ in kinds]
        else:
            cells += [markdown.text(_fate(row)), *[""] * (len(kinds) - 1)]
        lines.append(_line(cells))
    title = f"{markdown.text(comparison.before)} → {markdown.text(comparison.after)}"
    parts = [f"### {title}", f"**{_verdict(comparison)}**", "\n".join(lines)]
    for heading, found in (("Regressions", comparison.regressions), ("Unresolved", comparison.unresolved)):
        if found:
            parts += [f"**{heading}**", "\n".join(f"- {markdown.text(line)}" for line in found)]
    notes = [comparison.pairing, *comparison.warnings, _margins(comparison), NOTE]
    folded = "\n".join(f"- {markdown.text(line)}" for line in notes if line)
    return "\n\n".join([*parts, f"<details><summary>How to read this</summary>\n\n{folded}\n\n</details>"]) + "\n"


def render_comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the comparison: one table per target, then what regressed, then the verdict."""
    width = min(console.width, 110)
    console.print(Text(plain(f"{comparison.before} → {comparison.after}"), style="bold"), width=width)
    kinds = _kinds(comparison.rows)
    for target in dict.fromkeys(row.target for row in comparison.rows):
        rows = [row for row in comparison.rows if row.target == target]
        console.print(Text(plain(target), style="bold"))
        grids = [_grid(rows, kinds, gap, spread) for gap, spread in ((2, True), (1, True), (2, False), (1, False))]
        for line in widest_that_fits(grids, width).lines(width, rule="─" if console.is_terminal else "-"):
            console.print(line, width=width)
        console.print()
    for style, mark, lines in (
        ("dim", "·", [comparison.pairing]),
        ("yellow", "!", comparison.warnings),
        ("yellow", "?", comparison.unresolved),
        ("red", "✗", comparison.regressions),
    ):
        for found in filter(None, lines):
            console.print(Text(f"{mark} {plain(found)}", style=style), width=width)
    console.print(Text(_verdict(comparison), style="bold green" if comparison.ok else "bold red"), width=width)
    console.print(Text(f"{_margins(comparison)} {NOTE}", style="dim"), width=width)


def _kinds(rows: Iterable[RowChange]) -> list[tuple[tuple[str, str], str]]:
    """Return the columns: (metric, baseline) and its title. What no one judged and did not change is left out."""
    found: dict[tuple[str, str], list[Change]] = {}
    for row in rows:
        for change in row.changes:
            found.setdefault((change.metric, change.baseline), []).append(change)
    kept = []
    for (metric, baseline), changes in found.items():
        judged = any(change.margin is not None for change in changes)
        if not judged and (metric == "end_to_end" or all(not change.change for change in changes)):
            continue
        title = {"speedup": f"vs {baseline}", "end_to_end": f"e2e vs {baseline}", "accuracy": changes[0].name}
        kept.append(((metric, baseline), title.get(metric) or _NAMES[metric]))
    return kept or [(("accuracy", ""), "accuracy")]


def _grid(rows: Sequence[RowChange], kinds: Sequence[tuple[tuple[str, str], str]], gap: int, spread: bool) -> Grid:
    heads = (Head("step", right=False), *(Head(_broken(plain(title))) for _, title in kinds))
    lines: list[tuple[Text, ...]] = []
    for row in rows:
        mark, style = _MARKS.get(row.finding, (" ", ""))
        step = Text.assemble((mark, style), " ", plain(row.step))
        if row.changes:
            lines.append((step, *(_cell(_find(row, kind), spread) for kind, _ in kinds)))
        else:
            lines.append((step, Text(plain(_fate(row)), style="red" if row.finding == "regression" else "dim")))
    return Grid(heads, tuple(lines), gap)


def _cell(change: Change | None, spread: bool) -> Text:
    style = _MARKS.get(change.finding, ("", ""))[1] if change else "dim"
    return Text(_words(change, spread=spread), style=style)


def _find(row: RowChange, kind: tuple[str, str]) -> Change | None:
    return next((change for change in row.changes if (change.metric, change.baseline) == kind), None)


def _words(change: Change | None, *, spread: bool = True) -> str:
    """Return the new value and how it changed: ``88.57 (−0.22 ±1.16)``, ``2.00x (−22.7 % ±2.7)``, ``18.21 MB =``."""
    if change is None or change.after is None:
        return numbers.MISSING
    value, moved, arms = _value(change), "", ""
    if change.change is not None and change.metric == "accuracy":
        moved = numbers.points(change.change, change.unit)
        arms = numbers.points_spread(change.change, change.low, change.high, change.unit)
    elif change.change is not None:
        moved = f"{numbers.fixed(100 * change.change, 1, signed=True)} %"
        if change.low is not None and change.high is not None:
            arms = numbers.spread(100 * change.change, 100 * change.low, 100 * change.high, 1)
    if change.change == 0 and not arms:
        return f"{value} ="
    inside = f"{moved} {arms}" if arms and spread else moved
    return f"{value} ({inside})" if inside else value


def _value(change: Change) -> str:
    match change.metric:
        case "accuracy":
            return numbers.metric(change.after, change.unit)
        case "speedup" | "end_to_end":
            return numbers.ratio(change.after)
        case "parameters":
            return f"{numbers.millions(int(change.after or 0))} M"
        case _:
            return f"{numbers.megabytes(int(change.after or 0))} MB"


def _fate(row: RowChange) -> str:
    words = f"{row.status_before or 'no row'} → {row.status_after or 'no row'}"
    return f"{words}: {row.reason}" if row.reason and row.status_after is not None else words


def _broken(title: str) -> str:
    words = title.split()
    if len(words) < 3:
        return title
    return f"{' '.join(words[: len(words) // 2])}\n{' '.join(words[len(words) // 2 :])}"


def _margins(comparison: Comparison) -> str:
    words = [
        f"{name} {numbers.fixed(value)} points" if name == "accuracy" else f"{name} {numbers.share(value, 1)}"
        for name, value in comparison.margins.items()
    ]
    return f"Margins: {', '.join(words)}{'; strict' if comparison.strict else ''}."


def _verdict(comparison: Comparison) -> str:
    count, open_ = len(comparison.regressions), len(comparison.unresolved)
    words = f"{count or 'No'} regression{'s' if count > 1 else ''}"
    return f"{words}, {open_} unresolved" if open_ else words


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
