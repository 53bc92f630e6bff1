"""Ask the NVIDIA driver for devices without importing a framework."""

from __future__ import annotations

import ctypes
import sys

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def why_no_cuda() -> str:
    """Return why no CUDA device can be used here, or an empty string if one can.

    Loads the driver library and counts its devices; creates no context and takes no device memory.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return "no NVIDIA driver is installed"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver cannot start (cuInit returned {code})"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if code == 0 and count.value > 0 else "the NVIDIA driver sees no CUDA device"
