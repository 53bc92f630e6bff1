"""Ask the NVIDIA driver for its version and its devices without importing a framework."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_BUS_ID_CHARACTERS = 32


def why_no_cuda() -> str:
    """Return why no CUDA device can be used here, as ``no GPU (...)``, or an empty string if one can.

    Loads the driver library and counts its devices; creates no context and takes no device memory.
    """
    driver = _driver()
    if driver is None:
        return "no GPU (no NVIDIA driver is installed)"
    code = driver.cuInit(0)
    if code != 0:
        return f"no GPU (the NVIDIA driver cannot start: cuInit returned {code})"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if code == 0 and count.value > 0 else "no GPU (the NVIDIA driver sees no CUDA device)"


def driver_cuda_version() -> str | None:
    """Return the newest CUDA version that the driver supports, such as ``13.0``; None without a driver."""
    driver, version = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def first_bus_id() -> str | None:
    """Return the PCI bus id of CUDA's first device, by which NVML finds the same one; None where there is none.

    The two number devices differently: CUDA leaves out what ``CUDA_VISIBLE_DEVICES`` hides, and may sort by speed.
    """
    if why_no_cuda():
        return None
    driver, device = _driver(), ctypes.c_int(0)
    text = ctypes.create_string_buffer(_BUS_ID_CHARACTERS)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    code = driver.cuDeviceGetPCIBusId(text, _BUS_ID_CHARACTERS, device)
    return text.value.decode("ascii") if code == 0 else None


def _driver() -> Any | None:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
