"""The GPU that an engine is built for or would run on, as the driver names it: no framework is imported."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from compress.runtimes import cuda
from compress.runtimes.trt_plan import NO_DEVICE

_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class Device(NamedTuple):
    """A GPU, or that there is none."""

    name: str = NO_DEVICE
    compute_capability: str | None = None
    """Such as ``9.0``."""
    driver: str | None = None
    """Newest CUDA version that the driver supports, such as ``13.0``."""


def present_device() -> Device:
    """Return the first CUDA device of this process."""
    if cuda.why_no_cuda():
        return Device()
    driver, handle = ctypes.CDLL(cuda._LIBRARY), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(handle), 0) != 0:
        return Device()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    version = _number(driver.cuDriverGetVersion)
    capability = ".".join(str(_number(driver.cuDeviceGetAttribute, which, handle)) for which in (_MAJOR, _MINOR))
    return Device(name.value.decode(errors="replace"), capability, f"{version // 1000}.{version % 1000 // 10}")


def _number(call: Any, *arguments: Any) -> int:
    value = ctypes.c_int(0)
    call(ctypes.byref(value), *arguments)
    return value.value
