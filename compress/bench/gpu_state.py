"""The GPU's clocks while it is measured: read under load after the first and the last round of a launch, never set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLOCK_DRIFT = 0.05
"""Share by which the clock of the multiprocessors may change between two readings without a word."""


def drift(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each sign that the GPU did not run at one speed.

    Args:
        states: what ``nvml.device_state`` returned, in the order of time.
    """
    clocks = [state["sm_mhz"] for state in states if state["sm_mhz"]]
    reasons = dict.fromkeys(word for state in states for word in state["throttled"] or ())
    found = []
    if clocks and max(clocks) - min(clocks) > CLOCK_DRIFT * max(clocks):
        found.append(f"the GPU's clock changed while measuring: between {min(clocks)} and {max(clocks)} MHz")
    if reasons:
        found.append(f"the GPU was throttled while measuring: {', '.join(reasons)}")
    return found


def in_words(states: Sequence[Mapping[str, Any]]) -> str:
    """Say in a few words what was read: ranges of clocks, temperature and power; empty if nothing was."""
    units = {
        "sm_mhz": ("SM", "MHz"),
        "memory_mhz": ("memory", "MHz"),
        "temperature_c": ("", "°C"),
        "power_w": ("", "W"),
    }
    parts = []
    for name, (what, unit) in units.items():
        values = sorted(round(state[name]) for state in states if state[name] is not None)
        if values:
            span = f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
            parts.append(" ".join(filter(None, (what, span, unit))))
    return ", ".join(parts)
