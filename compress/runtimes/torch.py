"""PyTorch, eager or compiled, on the CPU or on one CUDA device."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar

from compress.artifact import Artifact, Kind
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.isa_cap import require_cap, why_not
from compress.runtimes.target import Target


class TorchRuntime(Runtime):
    """Opens the folder through ``load_torch``, so pruned shapes are rebuilt and checked."""

    name: ClassVar[str] = "torch"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    package: ClassVar[str] = "torch"

    def available(self, target: Target) -> Availability:
        if find_spec("torch") is None:
            return Availability(False, "torch is not installed: pip install torch")
        reason = (why_not(target) if target.device == "cpu" else _why_not_on_gpu()) or _why_not_compiled(target)
        return Availability(not reason, reason)

    def preload(self, target: Target) -> None:
        for module in ("torch", "transformers.modeling_utils", "compress.models.loading"):
            import_module(module)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        require_cap(target)
        from compress.models.loading import load_torch
        from compress.runtimes.torch_session import TorchSession
        from compress.tasks.base import task_from

        model = load_torch(artifact.path, task_from(artifact.manifest.task))
        inputs = {name: [spec.name for spec in graph.inputs] for name, graph in artifact.manifest.graphs.items()}
        return TorchSession(model, inputs, target)


def _why_not_on_gpu() -> str:
    missing = why_no_cuda()
    if missing:
        return missing
    import torch

    if torch.cuda.is_available():
        return ""
    return f"torch {torch.__version__} cannot use the GPU; install a CUDA build that the driver supports"


def _why_not_compiled(target: Target) -> str:
    """Say what torch.compile lacks: a C++ compiler, and on a GPU Triton."""
    if not target.compile:
        return ""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        return "torch.compile needs a C++ compiler (g++), and there is none"
    if target.device == "cuda" and find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU: pip install triton"
    return ""
