"""TensorRT engines (full TensorRT or TensorRT-RTX), fed through torch CUDA tensors."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

from compress.artifact import Artifact, Kind
from compress.errors import ModelError
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.target import Target
from compress.runtimes.trt_session import TensorrtSession

MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "tensorrt_rtx_bindings": "tensorrt-rtx"}
"""Import names that offer the API, most capable first -> the library they belong to."""


class TensorrtRuntime(Runtime):
    """Runs a raw plan file on the GPU that it was built for.

    A plan belongs to the package that built it: the first installed of ``MODULES`` that can read it is used.
    """

    name: ClassVar[str] = "tensorrt"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"tensorrt"})
    package: ClassVar[str] = "tensorrt"

    def available(self, target: Target) -> Availability:
        missing = []
        if not _installed():
            missing.append("tensorrt is not installed (pip install 'mcompress[tensorrt]')")
        elif find_spec("torch") is None:
            missing.append("torch, which holds the buffers, is not installed")
        device = why_no_cuda()
        if device:
            missing.append(device)
        elif not missing:
            import torch

            if not torch.cuda.is_available():
                missing.append(f"torch {torch.__version__}, which holds the buffers, cannot use the GPU")
        return Availability(not missing, "; ".join(missing))

    def preload(self, target: Target) -> None:
        for module in ("torch", *_installed()):
            import_module(module)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        return TensorrtSession(*_deserialize(artifact.file().read_bytes()), cuda_graph=target.cuda_graph)


def _installed() -> list[str]:
    return [name for name in MODULES if find_spec(name) is not None]


def _deserialize(plan: bytes) -> tuple[Any, Any, Any]:
    """Return (module, runtime, engine); TensorRT reports failure by returning None and logging why."""
    messages: list[str] = []
    for name in _installed():
        trt = import_module(name)
        runtime = trt.Runtime(_logger(trt, messages))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return trt, runtime, engine
    raise ModelError(
        "No installed TensorRT can read this engine.",
        value="; ".join(messages[-3:]),
        fix="Build it again here: a plan fits one TensorRT version and one GPU architecture. model.onnx is beside it.",
    )


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Logger()
