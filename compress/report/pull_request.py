"""A report as a comment on a pull request: the verdict, the results, and the rest folded away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compress.report import numbers, sections_findings, sections_record, sections_results, sections_stages
from compress.report.document import build
from compress.report.markdown import blocks, fence, table, text
from compress.report.model import Report, Row

LONGEST = 60_000
"""Characters: GitHub takes 65,536 in a comment."""
_STATUS = sections_results.STATUS


def render_pull_request(report: Report) -> str:
    """Return short Markdown: what to ship and why, one line per row, details folded; texts are escaped.

    Details that would make it longer than a comment may be are left out, and said to be.
    """
    document = build(report)
    verdict = document.verdict
    parts = [f"### {text(verdict.headline)}"]
    if verdict.banner:
        parts.insert(0, f"> **{text(verdict.banner)}**")
    if verdict.reasons:
        parts.append("\n".join(f"- {text(reason)}" for reason in verdict.reasons))
    parts += [_results(report), f"<sub>{text(_legend(report))}</sub>"]
    size = sum(map(len, parts))
    left_out = []
    for title, body in _details(report):
        folded = f"<details>\n<summary>{text(title)}</summary>\n\n{body}\n\n</details>"
        if size + len(folded) > LONGEST:
            left_out.append(title)
            continue
        parts.append(folded)
        size += len(folded)
    if left_out:
        parts.append(f"Left out for length, see report.html: {text(', '.join(left_out))}.")
    parts.append(f"<sub>{text(document.subtitle)}</sub>")
    return "\n\n".join(parts) + "\n"


def _results(report: Report) -> str:
    """One line per row of every target, what did not run among them."""
    names = list(report.baselines)
    head = ("", "step", "target", "size, MB", _metric(report), "Δ", "p50, ms", *(f"vs {name}" for name in names))
    rule = ["---", "---", "---", *["---:"] * (len(head) - 3)]
    lines = [_line(head), f"| {' | '.join(rule)} |"]
    lines += [_line(_cells(report, row, names)) for row in report.rows]
    absent = (target for target in report.targets if not sections_results.rows_of(report, target.name))
    for target in absent:
        why = f"skipped: {sections_results.absence(report, target)}"
        lines.append(_line(("", "", target.name, why, *[""] * (len(head) - 4))))
    return "\n".join(lines)


def _cells(report: Report, row: Row, names: list[str]) -> tuple[str, ...]:
    mark = sections_results.mark_of(report, row)
    if row.status != "ok":
        why = f"{_STATUS[row.status]}: {row.reason or 'no reason recorded'}"
        return (mark, row.step, row.target, why, *[""] * (3 + len(names)))
    accuracy, change = row.accuracy, row.difference
    score = delta = numbers.MISSING
    if accuracy:
        arm = numbers.metric_spread(accuracy.value, accuracy.low, accuracy.high, accuracy.unit)
        score = f"{numbers.metric(accuracy.value, accuracy.unit)} {arm}".strip()
    if change:
        arm = numbers.points_spread(change.points, change.low, change.high, change.unit)
        delta = f"{numbers.points(change.points, change.unit)} {arm}".strip()
    ratios = []
    for name in names:
        speedup = row.speedups.get(name)
        arm = numbers.spread(speedup.ratio, speedup.low, speedup.high) if speedup else ""
        words = f"({speedup.text})" if speedup and speedup.text == "no difference" else ""
        ratios.append(" ".join(filter(None, (numbers.ratio(speedup.ratio if speedup else None), arm, words))))
    p50 = numbers.milliseconds(row.latency.p50_ms if row.latency else None)
    return (mark, row.step, row.target, numbers.megabytes(row.size_bytes), score, delta, p50, *ratios)


def _legend(report: Report) -> str:
    return (
        f"→ ships, ✗ a gate failed, ? a gate is unresolved; accuracy on {report.data.evaluated}; "
        f"Δ: paired difference from {', '.join(sorted(sections_results.references(report))) or 'nothing'}; "
        "±: the longer arm of the 95 % interval; vs: ratio of total time over the same inputs in this run"
    )


def _details(report: Report) -> Iterator[tuple[str, str]]:
    for target in sections_stages.targets(report)[:1]:
        figure = sections_stages.waterfall(report, target)
        yield "Stage by stage", f"{text(figure.summary)}\n\n{table(replace(figure.table, legend=False))}"
    gates = "\n".join(f"- {text(d.step)}: {text(d.text)}" for d in report.verdict.deliverables)
    if gates:
        yield "Gates", gates
    sections = (sections_findings.findings(report), sections_record.limits(report), sections_record.environment(report))
    for section in filter(None, sections):
        yield section.title, blocks(section)
    commands = fence("\n".join(report.reproduce.commands), "sh")
    yield "Reproduce", f"{commands}\n\n{fence(report.reproduce.recipe.rstrip(), 'yaml')}"


def _metric(report: Report) -> str:
    score = next((row.accuracy for row in report.rows if row.accuracy), None)
    return "accuracy, %" if score is None else f"{score.metric}{', %' if score.unit == 'percent' else ''}"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(text, cells))} |"
