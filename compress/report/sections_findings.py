"""The section that collects what a reader must beware of, whatever table it belongs to."""

from __future__ import annotations

from compress.report.blocks import Bullets, Section
from compress.report.model import Report, Row
from compress.report.sections_engines import name as engine_name


def findings(report: Report) -> Section | None:
    """Findings, warnings, unsteady clocks and invalid runs of all rows and engines, each said once."""
    said: dict[str, list[str]] = {}
    for row in report.rows:
        for sentence in _of_row(row):
            said.setdefault(sentence, []).append(f"{row.step} on {row.target}")
    for engine in report.engines:
        for sentence in engine.findings:
            said.setdefault(sentence, []).append(engine_name(engine))
    lines = [f"{_places(places)}: {sentence}" for sentence, places in said.items()]
    machines = [("this machine", report.environment), *((it.name, it.environment) for it in report.targets)]
    for name, machine in machines:
        lines += [f"{name}: {warning}" for warning in (machine.warnings if machine else ()) if warning not in said]
    if not lines:
        return None
    intro = "What stands out in the tables above: slow kernels, busy machines, runs that do not count."
    return Section("findings", "Findings and warnings", (Bullets(tuple(lines)),), intro)


def _of_row(row: Row) -> list[str]:
    found = [*row.findings, *row.warnings]
    for name, latency in (("latency", row.latency), ("end to end", row.end_to_end and row.end_to_end.latency)):
        if latency and latency.stability in ("drifting", "noisy"):
            found.append(f"{name} is {latency.stability}: {latency.stability_text or 'no reason recorded'}")
    found += [f"{it.scenario} scenario not valid: {it.text}" for it in row.scenarios if not it.valid]
    return found


def _places(places: list[str], most: int = 3) -> str:
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + rest
