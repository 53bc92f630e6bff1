"""What the report says of a GPU beyond times: nodes that did not run on it, and the state that it was in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from compress.bench.gpu_state import in_words
from compress.bench.measurement import Measurement
from compress.report import numbers
from compress.runtimes.target import Target

_NAMED = 5


def on_the_cpu(m: Measurement, target: Target) -> Iterator[str]:
    """Yield a sentence if ONNX Runtime ran nodes on the CPU although the target is a GPU."""
    found = m.placement.get("nodes") if target.device == "cuda" else None
    on_cpu = m.placement.get("cpu_operators", {})
    if not found or not on_cpu:
        return
    most = sorted(on_cpu, key=lambda name: -on_cpu[name])[:_NAMED]
    others = ", ..." if len(on_cpu) > _NAMED else ""
    yield (
        f"{sum(on_cpu.values())} of {sum(found.values())} nodes "
        f"({numbers.share(m.placement['cpu_node_share'], 0)}) ran on the CPU, in "
        f"{numbers.share(m.placement['cpu_time_share'], 0)} of the kernels' time: {', '.join(most)}{others}."
    )


def state_in_words(measurements: Iterable[Measurement]) -> str:
    """Return the clocks, temperature and power that the GPU had while measuring; empty if nothing was read."""
    states = {id(m.gpu_states): m.gpu_states for m in measurements if m.gpu_states}
    return in_words([state for each in states.values() for state in each])
