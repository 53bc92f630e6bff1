"""Resident memory of this process, in bytes, told apart by where its pages come from; never virtual memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Return the resident set size now."""
    import psutil

    return _status().get("VmRSS") or int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the largest resident set size that this process ever had."""
    peak = _status().get("VmHWM")
    if peak is not None:
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_phase(name: str) -> dict[str, Any]:
    """Return what is resident now: all of it, and of it heap and stacks (RssAnon) and mapped files (RssFile).

    Pages of a mapped file can be dropped and read again, and processes share them; anonymous ones cannot. None where
    the system does not tell them apart.
    """
    found = _status()
    return {
        "name": name,
        "rss_bytes": found.get("VmRSS") or resident_bytes(),
        "anonymous_bytes": found.get("RssAnon"),
        "mapped_bytes": found.get("RssFile"),
    }


def peak_phase() -> dict[str, Any]:
    """Return the peak as a phase; of what it consisted is not known afterwards."""
    return {"name": "peak", "rss_bytes": peak_resident_bytes(), "anonymous_bytes": None, "mapped_bytes": None}


def _status() -> dict[str, int]:
    """Return the fields of ``/proc/self/status`` that are sizes, in bytes; empty where there is no such file."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in fields}
