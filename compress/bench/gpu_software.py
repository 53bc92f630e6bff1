"""The software between a model and a GPU: the driver, and what each library was built for. Imports no torch."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.bench.environment import version_of
from compress.bench.nvml import nvml
from compress.runtimes.cuda import driver_cuda_version, why_no_cuda
from compress.runtimes.onnxruntime_package import conflict, import_onnxruntime, installed_distributions

TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
_CUDA = re.compile(r"^cuda\b[^=]*= '([\d.]+)'", re.MULTILINE)


def gpu_software() -> dict[str, Any]:
    """Return driver, CUDA versions, ONNX Runtime's distribution and providers, TensorRT; None or words if absent."""
    libraries = {name: found for name in TENSORRT if (found := version_of(name)) is not None}
    return {
        "device": why_no_cuda() or "usable",
        "driver": driver_version(),
        "driver_cuda": driver_cuda_version(),
        "torch_cuda": torch_cuda(),
        "onnxruntime": onnxruntime_facts(),
        "tensorrt": libraries or None,
    }


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, by NVML or as Linux tells it; None without a driver."""
    with nvml() as pynvml:
        if pynvml is not None:
            return str(pynvml.nvmlSystemGetDriverVersion())
    try:
        text = Path("/sys/module/nvidia/version").read_text(encoding="ascii")
    except OSError:
        return None
    return text.strip() or None


def torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, from its version file; None if for none."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "version.py"
    found = _CUDA.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else None


def onnxruntime_facts() -> dict[str, Any] | str:
    """Return distribution, CUDA build and providers; in words what is wrong if two distributions are installed."""
    found = installed_distributions()
    if len(found) != 1 or find_spec("onnxruntime") is None:
        return conflict() or "not installed"
    package = import_onnxruntime("onnxruntime.capi.build_and_package_info")
    return {
        "distribution": found[0],
        "cuda": getattr(package, "cuda_version", None),
        "providers": import_onnxruntime().get_available_providers(),
    }
