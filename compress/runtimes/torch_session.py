"""An opened torch model: how it computes (precision, compiled, CUDA graphs) follows from the target."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.runtimes.base import Session
from compress.runtimes.cores import thread_count
from compress.runtimes.target import Target

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Tensors = dict[str, Any]
_WARM_RUNS = 3
"""Runs of a new shape before its kernels are recorded: they compile, choose algorithms and take memory."""


class _Threads:
    """PyTorch's number of threads, which is one for the whole process, and kept by each Python thread besides.

    It is set wherever a run finds another, and put back when the last session closes. Runs take turns while sessions
    with different numbers are open.
    """

    def __init__(self) -> None:
        self._lock, self._turn = RLock(), Lock()  # a session may end, by garbage collection, at any time
        self._open: Counter[int] = Counter()
        self._before = 0

    def open(self, number: int) -> None:
        import torch

        with self._lock:
            if not self._open:
                self._before = torch.get_num_threads()
            self._open[number] += 1
            torch.set_num_threads(number)

    def close(self, number: int) -> None:
        import torch

        with self._lock:
            self._open -= Counter([number])
            if not self._open:
                torch.set_num_threads(self._before)

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        import torch

        mixed = len(self._open) > 1
        with self._turn if mixed else nullcontext():
            if mixed or torch.get_num_threads() != number:  # not idly: it also drops oneDNN's prepared kernels
                torch.set_num_threads(number)
            yield


_THREADS = _Threads()


class TorchSession(Session):
    """The thread count and a GPU's TF32 switches are global in torch: set on opening, put back on closing."""

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, list[str]], target: Target) -> None:
        import torch

        self._target = target
        self._threads = thread_count(target)
        _THREADS.open(self._threads)
        self._put_back = weakref.finalize(self, _THREADS.close, self._threads)
        self._put_back.atexit = False
        self.concurrent = not target.cuda_graph  # whose buffers are one for each shape
        self._tf32_before = tf32() if target.device == "cuda" else None
        if target.device == "cuda":
            set_tf32((target.precision == "tf32",) * 2)
        self._device = torch.device(target.device)
        self._dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(target.precision or "", torch.float32)
        model = model.to(self._device).eval()
        self._model = model if self._dtype == torch.float32 else model.to(self._dtype)
        self._forward: Callable[..., Any] = torch.compile(self._model, dynamic=True) if target.compile else self._model
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._inputs = inputs

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode(), _THREADS.running(self._threads):
            logits = self._call(self._host(batch, graph))
            return {"logits": logits.float().cpu().numpy()}

    def device_ms(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> float | None:
        import torch

        if self._device.type != "cuda":
            return None
        with torch.inference_mode():
            feeds = self._host(batch, graph)
            feeds = feeds if self._target.cuda_graph else self._moved(feeds)
            run = self._graph(feeds).replay if self._target.cuda_graph else lambda: self._forward(**feeds)
            return event_ms(run)

    def placement(self) -> dict[str, object]:
        return {
            "device": str(self._device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "tf32": self._target.precision == "tf32",
            "compiled": self._target.compile,
            "cuda_graphs": len(self._graphs),
        }

    def memory(self) -> dict[str, int]:
        import torch

        if self._device.type != "cuda":
            return {}
        return {"gpu_allocator_bytes": int(torch.cuda.max_memory_allocated(self._device))}

    def close(self) -> None:
        if hasattr(self, "_model"):
            self._put_back()
            if self._tf32_before is not None:
                set_tf32(self._tf32_before)
            self._graphs.clear()
            del self._model, self._forward

    def _host(self, batch: Mapping[str, np.ndarray], graph: str) -> Tensors:
        import torch

        return {name: torch.from_numpy(batch[name]) for name in self._inputs[graph] if name in batch}

    def _moved(self, feeds: Tensors) -> Tensors:
        """Return inputs on the device; real numbers (pixels) in the model's precision."""
        return {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
            for name, tensor in feeds.items()
        }

    def _call(self, feeds: Tensors) -> torch.Tensor:
        if self._target.cuda_graph:
            recorded = self._graph(feeds)
            recorded.fill(feeds)
            recorded.replay()
            return recorded.output
        return self._forward(**self._moved(feeds)).logits

    def _graph(self, feeds: Tensors) -> _Graph:
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(feeds.items()))
        if shape not in self._graphs:
            self._graphs[shape] = _Graph(self._forward, self._moved(feeds))
        return self._graphs[shape]


class _Graph:
    """The kernels of one input shape, recorded; inputs and outputs stay at their addresses.

    Args:
        forward: the model.
        inputs: on the device; their memory becomes the graph's own.
    """

    def __init__(self, forward: Callable[..., Any], inputs: Tensors) -> None:
        import torch

        self._inputs = inputs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_RUNS):
                forward(**inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._recorded):
            self.output: torch.Tensor = forward(**inputs).logits
        self.replay: Callable[[], None] = self._recorded.replay

    def fill(self, feeds: Tensors) -> None:
        for name, tensor in feeds.items():
            self._inputs[name].copy_(tensor)


def event_ms(run: Callable[[], Any]) -> float:
    """Return the time between two CUDA events around what ``run`` puts on the current stream, ms."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def tf32() -> tuple[bool, bool]:
    """Say whether products and whether cuDNN may round float32 inputs to TF32 on a GPU."""
    import torch

    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_tf32(allowed: tuple[bool, bool]) -> None:
    """Set what ``tf32`` reads. These switches set ``fp32_precision`` too, and torch refuses to read a mixture."""
    import torch

    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
