"""What a report states of MLPerf-style scenarios: one figure each, and what a short run does not prove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.bench.loadgen import PERCENTILE
from compress.bench.measurement import Measurement
from compress.report import model as report

MLPERF_SECONDS = 600
OFFLINE_SAMPLES = 24_576
"""What MLPerf demands of a run: its least duration, and samples of the offline scenario."""


def scenarios_of(m: Measurement) -> tuple[report.ScenarioResult, ...]:
    """Return the scenarios that were run."""
    return tuple(_result(entry) for entry in m.scenarios if entry["runs"])


def missing_scenarios(m: Measurement) -> dict[str, str]:
    """Return scenario -> why it was not run to its end, for ``Row.not_measured``."""
    return {f"scenario {entry['scenario']}": entry["reason"] for entry in m.scenarios if entry.get("reason")}


def _result(entry: Mapping[str, Any]) -> report.ScenarioResult:
    scenario = entry["scenario"]
    run = _best_server(entry["runs"]) if scenario == "server" else entry["runs"][-1]
    latency = run["latencies_ms"].get(f"{PERCENTILE[scenario]:g}") if scenario in PERCENTILE else None
    reached = run["valid"] or scenario != "server"
    value = latency if scenario == "single-stream" else run["per_s"]
    return report.ScenarioResult(
        scenario=scenario,
        value=value if reached else None,
        unit="ms" if scenario == "single-stream" else "per s",
        percentile=PERCENTILE.get(scenario),
        bound_ms=entry["bound_ms"] if scenario == "server" else None,
        observed_ms=latency if scenario == "server" else None,
        queries=run["queries"],
        seconds=run["seconds"],
        valid=run["valid"],
        text=_text(entry, run),
    )


def _best_server(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of the highest rate that kept the bound; where none did, the one of the lowest rate."""
    kept = [run for run in runs if run["valid"]]
    return max(kept, key=lambda run: run["rate"]) if kept else min(runs, key=lambda run: run["rate"])


def _text(entry: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    lasted = f"{run['seconds']:.0f} s and {run['queries']:,} queries"
    short = {
        "single-stream": f"MLPerf demands {MLPERF_SECONDS} s",
        "offline": f"MLPerf demands {MLPERF_SECONDS} s and {OFFLINE_SAMPLES:,} samples",
        "server": f"MLPerf demands {MLPERF_SECONDS} s",
    }[entry["scenario"]]
    text = f"MLPerf-style, not an MLPerf result: {lasted} where {short}, its own models and data, and an audit. "
    if entry["scenario"] == "server":
        whose = "that was given" if entry["bound"] == "given" else "of twice the slowest artifact's 99th percentile"
        text += f"Bound {whose}; {len(entry['runs'])} rates tried, one query at a time. "
        if not run["valid"]:
            return text + f"No rate kept the bound; the lowest was {run['rate']:.3g} per s ({_unmet(run)})."
    if entry["scenario"] == "offline":
        text += f"Batches of {entry['batch']}, sorted by length. "
    return text + ("LoadGen's conditions held." if run["valid"] else f"Not valid for LoadGen: {_unmet(run)}.")


def _unmet(run: Mapping[str, Any]) -> str:
    return ", ".join(run["unmet"]).lower() or "it gave no reason"
