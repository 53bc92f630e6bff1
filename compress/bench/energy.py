"""Energy counters: RAPL for the processor packages, NVML for a GPU. Absent where nothing can be read.

A counter is of a whole package or device: what else runs there is in it, and idle power is not subtracted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.bench.nvml import energy_millijoules

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")


class Meter(Protocol):
    """Counters that only grow, but for their wrap-around."""

    @property
    def source(self) -> str:
        """What is read, as the report names it."""

    def read(self) -> Sequence[int] | None:
        """Return every counter now; None if one cannot be read."""

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings."""


@dataclass(frozen=True)
class Rapl:
    """The processor packages of ``/sys/class/powercap``; AMD's have the same folder names.

    Attributes:
        packages: their folders; sub-domains (cores, DRAM) and the whole platform are left out.
        ranges: microjoules after which each counter starts again from zero.
    """

    packages: tuple[Path, ...]
    ranges: tuple[int, ...]
    source: str = "RAPL package"

    def read(self) -> list[int] | None:
        found = [_number(folder / "energy_uj") for folder in self.packages]
        return None if None in found else [value for value in found if value is not None]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """At most one wrap-around is assumed: a range lasts for minutes at full power."""
        steps = zip(before, after, self.ranges, strict=True)
        return sum(new - old + (top if new < old else 0) for old, new, top in steps) / 1e6


@dataclass(frozen=True)
class Nvml:
    """The first GPU, which the targets with ``device: cuda`` run on."""

    source: str = "NVML"

    def read(self) -> list[int] | None:
        found = energy_millijoules()
        return None if found is None else [found]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        return (after[0] - before[0]) / 1e3


def find_meter(device: str, root: Path = POWERCAP) -> Meter | None:
    """Return the counters of a device ("cpu", "cuda") that can be read by this user; None if there are none."""
    meter: Meter = Nvml() if device == "cuda" else _rapl(root)
    readings = meter.read()
    return meter if readings else None


@dataclass
class Usage:
    """What one row used while it ran alone."""

    joules: float = 0.0
    seconds: float = 0.0
    inputs: int = 0
    source: str = ""

    def add(self, meter: Meter, before: Sequence[int], after: Sequence[int], seconds: float, inputs: int) -> None:
        self.joules += meter.joules(before, after)
        self.seconds += seconds
        self.inputs += inputs
        self.source = meter.source

    def facts(self) -> dict[str, Any]:
        """Return the fields of a ``Measurement``; empty if nothing was read."""
        if not self.inputs:
            return {}
        return {
            "energy_joules": self.joules,
            "energy_source": self.source,
            "energy_inputs": self.inputs,
            "energy_seconds": self.seconds,
        }


def _rapl(root: Path) -> Rapl:
    folders = sorted(root.iterdir()) if root.is_dir() else []
    packages, ranges = [], []
    for folder in folders:
        top = _number(folder / "max_energy_range_uj")
        if _PACKAGE.fullmatch(folder.name) and _text(folder / "name").startswith("package") and top is not None:
            packages.append(folder)
            ranges.append(top)
    return Rapl(tuple(packages), tuple(ranges))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
