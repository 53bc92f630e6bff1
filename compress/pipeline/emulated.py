"""Rows of emulated processors: the part of the examples that they ran, their machine, and the same artifact here."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from compress.bench.measurement import Measurement
from compress.quantization import isa
from compress.report import model as report
from compress.runtimes.target import Target
from compress.tasks.base import Task


def part_of(values: np.ndarray, m: Measurement) -> np.ndarray:
    """Return those of (n, ...) values of all examples that belong to a measurement's outputs."""
    return values if m.examples is None else values[m.examples]


def isa_of(target: Target, m: Measurement) -> str | None:
    """Name how the CPU of a row multiplies 8-bit integers; None for a GPU, or an emulated CPU that did not start."""
    if target.emulate is None:
        return isa.isa_of(target) if target.device == "cpu" else None
    return isa.isa_name(m.placement["flags"], m.placement["architecture"]) if "flags" in m.placement else None


def twin_of(task: Task, m: Measurement, others: Iterable[Measurement]) -> report.Twin | None:
    """Compare an emulated row with the same artifact on this machine's own CPU, example by example.

    None where it did not run here, or an output is infinite or not a number.
    """
    if m.evidence != "emulated" or m.outputs is None:
        return None
    for other in others:
        same = other.subject == m.subject and other.evidence == "measured" and other.examples is None
        if same and other.outputs is not None and other.outputs.shape[1:] == m.outputs.shape[1:]:
            here = part_of(other.outputs, m)
            equal, apart = task.agree(here, m.outputs), float(np.abs(here - m.outputs).max())
            if math.isfinite(apart):
                return report.Twin(target=other.target, n=len(equal), same=int(equal.sum()), max_abs=apart)
    return None


def environment_of(target: Target, measurements: Iterable[Measurement]) -> report.Environment | None:
    """Return what an emulated target's rows ran on; None for a real one, or if none started."""
    if target.emulate is None:
        return None
    found = next((m.placement for m in measurements if m.target == target.name and "flags" in m.placement), None)
    if found is None:
        return None
    return report.Environment(
        cpu=f"{target.emulate}, emulated by qemu",
        flags=tuple(found["flags"]),
        os="Linux, user mode",
        python=found["python"],
        packages=found["packages"],
        notes={"architecture": found["architecture"]},
    )
