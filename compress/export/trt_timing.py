"""Kernel timings that outlive a build: the next build on the same GPU and version takes them over and is faster.

They also make builds repeat: without them TensorRT times kernels anew, and may choose others.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from compress.artifact import hash_json
from compress.export.trt_api import Trt
from compress.runtimes.trt_device import Device
from compress.runtimes.trt_plan import RTX, TimingCache

FOLDER = "timings"


class Timings:
    """The timing cache of one build.

    Args:
        root: folder that caches live under, such as that of the store; None = no cache.
        trt: the library that builds.
        device: the GPU that kernels are timed on.
        level: builder optimization level; 0 reads no cache.
    """

    def __init__(self, root: Path | None, trt: Trt, device: Device, level: int | None) -> None:
        self._trt = trt
        self.reason = _why_not(root, trt, device, level)
        self._path = None if self.reason or root is None else root / FOLDER / f"{cache_key(trt, device)}.cache"

    def give(self, config: Any) -> None:
        """Hand the timings of earlier builds to a builder configuration."""
        if self._path is None:
            return
        with self._lock():
            known = self._path.read_bytes() if self._path.is_file() else b""
        timing_cache = config.create_timing_cache(known)
        if timing_cache is None or not config.set_timing_cache(timing_cache, False):  # of another make, or cut short
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> TimingCache:
        """Write what the build knows now, together with what other builds wrote meanwhile."""
        if self._path is None:
            return TimingCache(used=False, reason=self.reason)
        timing_cache = config.get_timing_cache()
        with self._lock():
            if self._path.is_file():
                others = config.create_timing_cache(self._path.read_bytes())
                if others is not None:
                    timing_cache.combine(others, False)
            written = bytes(memoryview(timing_cache.serialize()))
            _write(self._path, written)
        return TimingCache(used=True, sha256=hashlib.sha256(written).hexdigest())

    def _lock(self) -> FileLock:
        path = self._path or Path()
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock"))


def cache_key(trt: Trt, device: Device) -> str:
    """Return 64 hex digits of what timings depend on: library, version, GPU and driver."""
    return hash_json([trt.library, trt.version, device.name, device.compute_capability, device.driver])


def _why_not(root: Path | None, trt: Trt, device: Device, level: int | None) -> str:
    if trt.library == RTX:
        return "TensorRT-RTX times no kernels while it builds: its timing cache does nothing"
    if root is None:
        return "no folder for it was given"
    if level == 0:
        return "optimization level 0 reads none"
    return ""


def _write(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
