"""Is the machine ours? Load, other users of the measured cores and of the GPU, steal, governor.

Looked at before a group is measured, and again when it is done: then over the whole time in between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from compress.bench.nvml import other_processes

BUSY_SHARE = 0.20
"""Share of the measured cores that others may use without a word."""
STEAL_SHARE = 0.02
"""Share of their time that the hypervisor may take away without a word."""
STAT = Path("/proc/stat")
GOVERNORS = Path("/sys/devices/system/cpu")
_SAMPLE_S = 0.3


class CoreTime(NamedTuple):
    """What a core has done since the system started, s."""

    busy: float
    steal: float
    total: float


@dataclass(frozen=True)
class Watch:
    """The state of the machine before a group was measured.

    Attributes:
        cores: the measured ones.
        times: what they had done by then; empty where the system does not tell.
        own_s: processor time of this process and of its ended children.
    """

    cores: tuple[int, ...]
    times: Mapping[int, CoreTime]
    own_s: float


def begin(cores: Sequence[int], device: str) -> tuple[Watch, list[str]]:
    """Look at the machine before measuring.

    Args:
        cores: the cores that will be measured on; empty = all.
        device: "cpu" or "cuda".

    Returns:
        What ``findings`` compares with, and one sentence for each sign that something else is using the machine.
    """
    import psutil

    load, count = psutil.getloadavg()[0], os.cpu_count() or 1
    percents = psutil.cpu_percent(_SAMPLE_S, percpu=True)
    watched = [percents[core] for core in cores if core < len(percents)] or percents
    busy = sum(watched) / len(watched)
    found = []
    if load > count:
        found.append(f"the load average of the last minute was {load:.1f} on {count} cores when measuring began")
    if busy > 100 * BUSY_SHARE:
        found.append(f"other processes used {busy:.0f} % of the measured cores when measuring began")
    found += _slow_governors(cores) + (_on_the_gpu("began") if device == "cuda" else [])
    return Watch(tuple(cores), _times(), _own_seconds()), found


def end(watch: Watch, device: str, threads: int) -> list[str]:
    """Look again when every child has ended; return one sentence for each sign that something else ran meanwhile.

    Args:
        threads: that the measured processes kept busy, which a load average counts too.
    """
    import psutil

    load, count = psutil.getloadavg()[0] - threads, os.cpu_count() or 1
    found = [] if load <= count else [f"the load average was {load:.1f} beside ours when measuring ended"]
    found += during(watch, _times(), _own_seconds() - watch.own_s)
    return found + (_on_the_gpu("ended") if device == "cuda" else [])


def during(watch: Watch, times: Mapping[int, CoreTime], own_s: float) -> list[str]:
    """Compare two states of the measured cores.

    Args:
        times: what the cores have done by now.
        own_s: processor time of ours in between, all of it counted as spent on the measured cores, so that what is
            left for others is never too much.
    """
    steps = [
        CoreTime(*(new - old for new, old in zip(times[core], watch.times[core], strict=True)))
        for core in (watch.cores or times)
        if core in times and core in watch.times
    ]
    total = sum(step.total for step in steps)
    if total <= 0:
        return []
    others, steal = sum(step.busy for step in steps) - own_s, sum(step.steal for step in steps)
    found = []
    if others > BUSY_SHARE * total:
        found.append(f"other processes used {others / total:.0%} of the measured cores while measuring")
    if steal > STEAL_SHARE * total:
        found.append(f"the hypervisor took {steal / total:.0%} of the measured cores' time while measuring")
    return [sentence.replace("%", " %") for sentence in found]


def core_times(stat: str, ticks_per_s: float) -> dict[int, CoreTime]:
    """Return what each core has done, from the text of ``/proc/stat``."""
    out = {}
    for line in stat.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and len(values) >= 4:
            user, nice, system, idle, iowait, irq, soft, steal = ([float(v) for v in values] + [0.0] * 8)[:8]
            busy = user + nice + system + irq + soft
            total = busy + idle + iowait + steal
            out[int(name[3:])] = CoreTime(busy / ticks_per_s, steal / ticks_per_s, total / ticks_per_s)
    return out


def _times() -> dict[int, CoreTime]:
    try:
        return core_times(STAT.read_text(encoding="ascii", errors="replace"), os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return {}


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _slow_governors(cores: Sequence[int]) -> list[str]:
    for core in cores or (0,):
        try:
            governor = (GOVERNORS / f"cpu{core}" / "cpufreq" / "scaling_governor").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if governor == "powersave":
            return ["the frequency governor of the measured cores is powersave"]
    return []


def _on_the_gpu(moment: str) -> list[str]:
    others = other_processes(frozenset({os.getpid()}))
    return [f"other processes on the GPU when measuring {moment}: {len(others)}"] if others else []
