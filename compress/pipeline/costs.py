"""What a row costs beside time: memory by phase, throughput by batch, scenarios, energy; and what of it is missing."""

from __future__ import annotations

from typing import Any

from compress.bench.emulation import NO_TIMES
from compress.bench.measurement import Measurement
from compress.pipeline.scenarios import missing_scenarios, scenarios_of
from compress.pipeline.throughput import missing_throughputs, throughputs_of
from compress.report import model as report


def costs_of(m: Measurement) -> dict[str, Any]:
    """Return the fields of ``report.Row`` that say what the artifact costs to run."""
    return {
        "throughput_per_s": m.throughput_per_s,
        "throughput_batch": m.throughput_batch,
        "throughputs": throughputs_of(m),
        "scenarios": scenarios_of(m),
        "load_ms": m.load_ms,
        "first_ms": m.first_ms,
        "energy": energy_of(m),
        "memory": memory_of(m),
        "peak_rss_bytes": m.peak_rss_bytes,
        "import_rss_bytes": m.import_rss_bytes,
        "size_bytes": m.size_bytes,
        "parameters": m.parameters,
    }


def missing_of(m: Measurement) -> dict[str, str]:
    """Say what a row that ran has no figures of, and why."""
    if m.status != "ok":
        return {}
    if m.evidence == "emulated":
        return dict.fromkeys(("latency", "throughput", "memory"), NO_TIMES)
    return m.not_measured | missing_throughputs(m) | missing_scenarios(m)


def memory_of(m: Measurement) -> report.Memory | None:
    """Return memory by phase with its two differences; None where no phase was seen."""
    if not m.memory_phases:
        return None
    phases = tuple(report.MemoryPhase.model_validate(phase) for phase in m.memory_phases)
    return report.Memory(
        phases=phases,
        load_growth_bytes=_growth(phases, "load"),
        peak_over_import_bytes=_growth(phases, "peak"),
        gpu_allocator_bytes=m.gpu_allocator_bytes,
        gpu_process_bytes=m.gpu_process_bytes,
    )


def energy_of(m: Measurement) -> report.Energy | None:
    """Return energy for one input and the mean power; None where no counter could be read."""
    if m.energy_joules is None or not m.energy_inputs:
        return None
    watts = m.energy_joules / m.energy_seconds if m.energy_seconds else None
    return report.Energy(joules_per_input=m.energy_joules / m.energy_inputs, source=m.energy_source, watts=watts)


def _growth(phases: tuple[report.MemoryPhase, ...], name: str) -> int | None:
    """Return resident memory at a phase minus that after the imports; None if either was not seen."""
    resident = {phase.name: phase.rss_bytes for phase in phases}
    if name not in resident or "import" not in resident:
        return None
    return resident[name] - resident["import"]
