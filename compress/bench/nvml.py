"""What the NVIDIA driver tells through NVML; nothing is ever set. Empty without ``nvidia-ml-py`` or a driver.

The device is the one that CUDA counts as its first: the targets with ``device: cuda`` run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from compress.runtimes.cuda import first_bus_id

THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slow-down",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean slower than asked for, as its header names them."""


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


def energy_millijoules() -> int | None:
    """Return the energy that the device has used since the driver was loaded; None where it does not tell."""
    with nvml() as pynvml:
        if pynvml is None:
            return None
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(_first(pynvml)))
        except pynvml.NVMLError:
            return None


def device_state() -> dict[str, Any] | None:
    """Return the device's clocks, memory, temperature, power and throttle reasons now; None without a driver.

    What the driver does not tell is None.
    """
    with nvml() as pynvml:
        if pynvml is None:
            return None
        try:
            handle = _first(pynvml)
        except pynvml.NVMLError:
            return None

        def ask(call: Callable[[], Any]) -> Any | None:
            try:
                return call()
            except pynvml.NVMLError:
                return None

        memory = ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        milliwatts = ask(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        bits = ask(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return {
            "sm_mhz": ask(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "memory_mhz": ask(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
            "temperature_c": ask(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "memory_used_bytes": None if memory is None else int(memory.used),
            "throttled": None if bits is None else [word for bit, word in THROTTLES.items() if bits & bit],
        }


def _first(pynvml: Any) -> Any:
    """Return NVML's handle of CUDA's first device."""
    bus_id = first_bus_id()
    return pynvml.nvmlDeviceGetHandleByIndex(0) if bus_id is None else pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)


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
