"""PyTorch eager in float32, on the CPU or on one CUDA device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from compress.artifact import Artifact, Kind
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cores import thread_count
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.isa_cap import require_cap, why_not
from compress.runtimes.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchRuntime(Runtime):
    """Opens the folder through ``load_torch``, so pruned shapes are rebuilt and checked."""

    name: ClassVar[str] = "torch"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    package: ClassVar[str] = "torch"

    def available(self, target: Target) -> Availability:
        if find_spec("torch") is None:
            return Availability(False, "torch is not installed: pip install torch")
        if target.device == "cpu":
            reason = why_not(target)
            return Availability(not reason, reason)
        missing = why_no_cuda()
        if missing:
            return Availability(False, f"{missing}; this target needs an NVIDIA GPU and its driver")
        import torch

        if not torch.cuda.is_available():
            reason = f"torch {torch.__version__} cannot use the GPU; install a CUDA build that the driver supports"
            return Availability(False, reason)
        return Availability(True)

    def preload(self) -> None:
        for module in ("torch", "transformers.modeling_utils", "compress.models.loading"):
            import_module(module)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        require_cap(target)
        from compress.models.loading import load_torch
        from compress.tasks.base import task_from

        model = load_torch(artifact.path, task_from(artifact.manifest.task))
        inputs = {name: [spec.name for spec in graph.inputs] for name, graph in artifact.manifest.graphs.items()}
        return _TorchSession(model, inputs, target)


class _TorchSession(Session):
    """The thread count is global in torch: it is set on opening and put back on closing."""

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, list[str]], target: Target) -> None:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(thread_count(target))
        self._device = torch.device(target.device)
        self._model = model.to(self._device).eval()
        self._inputs = inputs

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        import torch

        feeds = {name: torch.from_numpy(batch[name]).to(self._device) for name in self._inputs[graph] if name in batch}
        with torch.inference_mode():
            return {"logits": self._model(**feeds).logits.float().cpu().numpy()}

    def placement(self) -> dict[str, object]:
        return {"device": str(self._device), "dtype": str(self._model.dtype).removeprefix("torch.")}

    def memory(self) -> dict[str, int]:
        import torch

        if self._device.type != "cuda":
            return {}
        return {"gpu_allocator_bytes": int(torch.cuda.max_memory_allocated(self._device))}

    def close(self) -> None:
        import torch

        if hasattr(self, "_model"):
            torch.set_num_threads(self._threads_before)
            del self._model
