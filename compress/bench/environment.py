"""What a report says about this machine: no host name, no user, no path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.bench.nvml import nvml
from compress.runtimes.cores import usable_cores

PACKAGES = (
    "mcompress",
    "nncf",
    "numpy",
    "nvidia-ml-py",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "tokenizers",
    "torch",
    "transformers",
)
CPU_FLAGS = (
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "asimd",
    "asimddp",
    "asimdhp",
    "avx",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512bw",
    "avx512f",
    "avx512vl",
    "avx_vnni",
    "bf16",
    "f16c",
    "fma",
    "i8mm",
    "sve",
)
"""Instruction sets that decide which kernels run, x86 and Arm, as /proc/cpuinfo spells them."""


def environment() -> dict[str, Any]:
    """Return the facts that a latency depends on; None where the system does not tell."""
    import psutil

    model, flags = cpu_facts(_read(Path("/proc/cpuinfo")))
    return {
        "cpu": {
            "model": model or platform.processor() or platform.machine(),
            "architecture": platform.machine(),
            "flags": flags,
            "cores": os.cpu_count(),
            "usable_cores": len(usable_cores()),
            "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip() or None,
            "load_average": [round(value, 2) for value in psutil.getloadavg()],
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
        "system": {
            "name": platform.system(),
            "kernel": platform.release().split("-")[0],
            "container": container_hints(),
        },
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version_of(name)) is not None},
    }


def cpu_facts(cpuinfo: str) -> tuple[str, list[str]]:
    """Return the model name and the flags of interest from the text of ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", ""), [flag for flag in CPU_FLAGS if flag in flags]


def gpus() -> list[dict[str, Any]]:
    """Return name, memory and driver of each NVIDIA GPU; empty without ``nvidia-ml-py`` or a driver."""
    with nvml() as pynvml:
        if pynvml is None:
            return []
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": pynvml.nvmlSystemGetDriverVersion(),
            }
            for handle in handles
        ]


def container_hints() -> dict[str, Any]:
    """Return the processor and memory quotas of the surrounding control group (version 2), where readable."""
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    memory = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return {
        "in_container": Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        "cpu_quota_cores": int(quota) / int(period) if quota.isdigit() and period.isdigit() else None,
        "memory_limit_bytes": int(memory) if memory.isdigit() else None,
    }


def version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
