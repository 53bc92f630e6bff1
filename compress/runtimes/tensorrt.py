"""TensorRT engines (full TensorRT or TensorRT-RTX), fed through torch CUDA tensors."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar

from compress.artifact import Artifact, Kind
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.target import Target
from compress.runtimes.trt_loading import MODULES, installed, load_engine
from compress.runtimes.trt_session import TensorrtSession
from compress.runtimes.trt_shapes import ByShape, fixed_shapes


class TensorrtRuntime(Runtime):
    """Runs a raw plan file on the GPU that it was built for.

    A plan belongs to the package that built it. One that was built by another library or version, or on another GPU,
    is refused before it is loaded. Of an artifact with engines for single shapes (``model@8x128``) the one whose
    shape equals the batch runs; for any other batch, the dynamic engine.
    """

    name: ClassVar[str] = "tensorrt"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"tensorrt"})
    package: ClassVar[str] = "tensorrt"

    def available(self, target: Target) -> Availability:
        missing = []
        if not any(find_spec(name) for name in MODULES):
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
        for module in ("torch", *installed()):
            import_module(module)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)

        def session(graph: str) -> Session:
            return TensorrtSession(*load_engine(artifact, graph), cuda_graph=target.cuda_graph)

        fixed = fixed_shapes(artifact.manifest.graphs)
        return ByShape(session, fixed) if fixed else session("model")
