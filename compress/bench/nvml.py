"""What the NVIDIA driver tells through NVML: memory by process, energy. Empty without ``nvidia-ml-py`` or a driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def nvml() -> Iterator[Any | None]:
    """Open NVML; yield its module, or None where there is none."""
    try:
        pynvml: Any = import_module("pynvml")
        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def process_bytes(pid: int) -> int | None:
    """Return the GPU memory that a process holds on all devices; None where the driver does not list it.

    A container may see other process numbers than the driver: then there is no figure.
    """
    held = [used for number, used in _processes() if number == pid and used is not None]
    return sum(held) if held else None


def other_processes(own: frozenset[int]) -> list[int]:
    """Return the numbers of the processes that compute on a GPU, without those in ``own``."""
    return sorted({number for number, _ in _processes()} - own)


def energy_millijoules(device: int = 0) -> int | None:
    """Return the energy that a device has used since the driver was loaded; None where it does not tell."""
    with nvml() as pynvml:
        if pynvml is None:
            return None
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(device)))
        except pynvml.NVMLError:
            return None


def _processes() -> list[tuple[int, int | None]]:
    """Return (process number, bytes held) of everything that computes on a GPU."""
    with nvml() as pynvml:
        if pynvml is None:
            return []
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            try:
                running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except pynvml.NVMLError:
                continue
            found += [(int(each.pid), each.usedGpuMemory) for each in running]
        return found
