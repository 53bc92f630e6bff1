"""The whole report in the order in which it is read: the verdict first, the record after it."""

from __future__ import annotations

from dataclasses import dataclass

from compress.report import (
    numbers,
    sections_classes,
    sections_engines,
    sections_findings,
    sections_int8,
    sections_load,
    sections_record,
    sections_results,
    sections_search,
    sections_sensitivity,
    sections_stages,
    sections_timing,
)
from compress.report.blocks import Section, Tone
from compress.report.model import Report, Row

SYNTHETIC = "Synthetic data: these accuracies say nothing about yours."


BRACKETS = "In brackets: 95 % intervals."


@dataclass(frozen=True)
class KeyFigure:
    """One number of the shipped artifact, with its context."""

    label: str
    value: str
    unit: str
    detail: str


@dataclass(frozen=True)
class VerdictBlock:
    """The opening of every rendering."""

    tone: Tone
    label: str
    headline: str
    figures: tuple[KeyFigure, ...]
    reasons: tuple[str, ...]
    gates: tuple[tuple[str, str, Tone], ...]
    """(step, text, tone) of every deliverable, what ships first."""
    banner: str
    brackets: str
    """What the brackets of the figures are; empty without figures."""


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    verdict: VerdictBlock
    sections: tuple[Section, ...]


def build(report: Report) -> Document:
    """Lay out a report as text blocks; renderers add nothing but markup."""
    sections = (
        sections_stages.stages(report),
        sections_results.results(report),
        sections_timing.timing(report),
        sections_load.throughput(report),
        sections_load.memory(report),
        sections_timing.starting(report),
        sections_load.energy(report),
        sections_results.accuracy(report),
        sections_classes.classes(report),
        sections_classes.examples(report),
        sections_search.students(report),
        sections_search.latency(report),
        sections_search.widths(report),
        sections_int8.searches(report),
        sections_int8.integers(report),
        sections_engines.engines(report),
        sections_sensitivity.sensitivity(report),
        sections_record.gates(report),
        sections_findings.findings(report),
        sections_record.limits(report),
        sections_record.subject(report),
        sections_record.data(report),
        sections_record.steps(report),
        sections_record.environment(report),
        sections_record.reproduce(report),
    )
    return Document(
        title=report.title,
        subtitle=f"recipe {report.recipe}, {created(report)}, mcompress {report.version}",
        verdict=verdict(report),
        sections=tuple(section for section in sections if section and section.blocks),
    )


def created(report: Report) -> str:
    return report.created.replace("T", " ").replace("Z", " UTC")


def verdict(report: Report) -> VerdictBlock:
    tones: dict[str | None, Tone] = {"pass": "good", "fail": "bad", "unresolved": "warn", None: "muted"}
    it = report.verdict
    outcomes = [d.verdict for d in it.deliverables if it.step in (None, d.step)]
    worst = next((tones[outcome] for outcome in ("fail", "unresolved") if outcome in outcomes), None)
    tone: Tone = worst or ("good" if it.step else "warn")
    figures = _key_figures(report)
    return VerdictBlock(
        tone=tone,
        label="Verdict",
        headline=it.headline,
        figures=figures,
        reasons=it.reasons,
        gates=tuple(
            (d.step, d.text, tones[d.verdict]) for d in sorted(it.deliverables, key=lambda d: d.step != it.step)
        ),
        banner=SYNTHETIC if report.data.synthetic else "",
        brackets=BRACKETS if figures else "",
    )


def _key_figures(report: Report) -> tuple[KeyFigure, ...]:
    row = next((r for r in report.rows if sections_results.ships(report, r) and r.status == "ok"), None)
    if row is None:
        return ()
    return (*_accuracy_figures(row), *_speed_figures(report, row), *_size_figures(report, row))


def _accuracy_figures(row: Row) -> list[KeyFigure]:
    figures = []
    if row.accuracy:
        cell, score = sections_results.accuracy_cell(row), row.accuracy
        right = f"{numbers.count(score.right)} of {numbers.count(score.n)}" if score.right is not None else ""
        unit = "%" if score.unit == "percent" else ""
        detail = ", ".join(filter(None, (cell.detail, right or f"n = {numbers.count(score.n)}")))
        figures.append(KeyFigure(score.metric, cell.text, unit, detail))
    if row.difference and row.difference.baseline != row.step:
        cell, change = sections_results.difference_cell(row), row.difference
        unit = "points" if change.unit == "percent" else ""
        figures.append(
            KeyFigure(
                f"{row.accuracy.metric if row.accuracy else 'accuracy'} vs {change.baseline}",
                cell.text,
                unit,
                cell.detail,
            )
        )
    return figures


def _speed_figures(report: Report, row: Row) -> list[KeyFigure]:
    figures = []
    for name in report.baselines:
        cell = sections_results.speedup_cell(row.speedups.get(name))
        if name in row.speedups:
            figures.append(KeyFigure(f"speed vs {name}", cell.text, "", cell.detail))
    return figures


def _size_figures(report: Report, row: Row) -> list[KeyFigure]:
    if row.size_bytes is None:
        return []
    sizes = {
        name: other.size_bytes
        for name, where in report.baselines.items()
        for other in report.rows
        if (other.step, other.target) == (where.step, where.target) and other.size_bytes is not None
    }
    detail = "; ".join(f"{name}: {numbers.megabytes(size)} MB" for name, size in list(sizes.items())[-1:])
    return [KeyFigure("size", numbers.megabytes(row.size_bytes), "MB", detail)]
