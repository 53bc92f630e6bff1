"""Throughput and scenarios of ``mcompress bench``, as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Protocol

from compress.report.model import ScenarioResult, ThroughputPoint


class LoadRow(Protocol):
    """The part of a row of ``mcompress bench`` that this shows."""

    @property
    def artifact(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def throughputs(self) -> Sequence[ThroughputPoint]: ...
    @property
    def scenarios(self) -> Sequence[ScenarioResult]: ...
    @property
    def not_measured(self) -> Mapping[str, str]: ...


def load_lines(rows: Sequence[LoadRow]) -> list[str]:
    """Return lines of at most 80 columns: the sweep of each row, its scenarios, and what could not be run."""
    lines = []
    if any(row.throughputs for row in rows):
        lines += ["", "inputs per second, batch x streams (* best)"]
    for row in rows:
        if row.throughputs:
            lines += _line(row, ", ".join(map(_point, row.throughputs)))
    if any(row.scenarios for row in rows):
        lines += ["", "MLPerf-style scenarios by LoadGen, shortened: not MLPerf results"]
    for row in rows:
        for scenario in row.scenarios:
            lines += _line(row, f"{scenario.scenario:13} {_scenario(scenario)}")
    missing = [(row, what, why) for row in rows for what, why in row.not_measured.items()]
    if missing:
        lines += ["", "not measured"]
    for row, what, why in missing:
        lines += _line(row, f"{what}: {why}")
    return lines


def _line(row: LoadRow, text: str) -> list[str]:
    head = f"{row.artifact[:16]:16} {row.target[:14]:14} "
    return textwrap.wrap(
        text, 80, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False, drop_whitespace=True
    )


def _point(point: ThroughputPoint) -> str:
    streams = f"x{point.streams}" if point.streams > 1 else ""
    spread = "" if point.high is None else f" ±{point.high - point.per_s:.2g}"
    return f"{point.batch}{streams}: {point.per_s:.4g}{spread}{'*' if point.best else ''}"


def _scenario(it: ScenarioResult) -> str:
    value = "-" if it.value is None else f"{it.value:.4g} {it.unit}"
    words = [] if it.percentile is None or it.scenario == "server" else [f"p{it.percentile:g}"]
    if it.bound_ms is not None:
        words += [f"p{it.percentile:g} {it.observed_ms:.3g} ms, bound {it.bound_ms:g} ms"]
    words += [] if it.valid else ["not valid for LoadGen"]
    return f"{value:>12}  {'; '.join(words)}".rstrip()
