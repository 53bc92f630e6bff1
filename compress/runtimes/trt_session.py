"""Running a TensorRT engine, its buffers held by torch CUDA tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.errors import ModelError, RunError
from compress.runtimes.base import Session
from compress.runtimes.torch_session import event_ms

Tensors = dict[str, Any]
_PROFILED_RUNS = 5
SLOWEST = 20
"""Layers whose times go on record."""


class TensorrtSession(Session):
    """One engine, one execution context, one stream of its own (the default stream adds synchronisation).

    With CUDA graphs, TensorRT's kernels are recorded once for each input shape, whose buffers then stay; TensorRT-RTX
    does that itself and is only told to.

    Args:
        trt: the module that the engine belongs to.
        runtime: kept alive as long as the engine.
        engine: a deserialized plan.
        cuda_graph: whether kernels are replayed from CUDA graphs.
    """

    device = "cuda"

    def __init__(self, trt: Any, runtime: Any, engine: Any, *, cuda_graph: bool = False) -> None:
        import torch

        self._trt, self._runtime, self._engine = trt, runtime, engine
        self._context = new_context(trt, engine, cuda_graph=cuda_graph)
        self._records = cuda_graph and not hasattr(trt, "CudaGraphStrategy")
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._stream = torch.cuda.Stream()
        self._dtypes = _torch_dtypes(trt)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self._inputs = [n for n in names if is_input[n]]
        self._outputs = [n for n in names if not is_input[n]]
        self._last: Mapping[str, np.ndarray] | None = None

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        import torch

        self._last = batch
        with torch.cuda.stream(self._stream):
            # The tensors stay referenced until the stream has finished with their memory.
            feeds, results = self._prepared(batch)
            self._execute(feeds)
            host = {name: tensor.float().cpu() for name, tensor in results.items()}
        self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in host.items()}

    def device_ms(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> float | None:
        import torch

        with torch.cuda.stream(self._stream):
            feeds, _ = self._prepared(batch)
            return event_ms(lambda: self._execute(feeds))

    def placement(self) -> dict[str, Any]:
        """Say how many layers there are, and how long the slowest took in runs of their own."""
        record = {"device": "cuda", "layers": self._engine.num_layers, "cuda_graphs": len(self._graphs)}
        if self._last is None:
            return record
        layers = self._layer_times(self._last)
        slowest = sorted(layers.items(), key=lambda layer: -layer[1])[:SLOWEST]
        return record | {
            "layer_ms": {name: round(ms, 5) for name, ms in slowest},
            "layers_ms_total": round(sum(layers.values()), 5),
        }

    def close(self) -> None:
        if hasattr(self, "_context"):
            self._graphs.clear()
            del self._context, self._engine, self._runtime

    def _prepared(self, batch: Mapping[str, np.ndarray]) -> tuple[Tensors, Tensors]:
        """Return inputs and outputs on the device, at the addresses that the next ``_execute`` uses."""
        if not self._records:
            feeds = {name: self._to_device(name, batch[name]) for name in self._inputs}
            return feeds, self._bind(self._context, feeds)
        shape = tuple(batch[name].shape for name in self._inputs)
        if shape not in self._graphs:
            feeds = {name: self._to_device(name, batch[name]) for name in self._inputs}
            results = self._bind(self._context, feeds)
            self._enqueue(self._context, feeds)  # TensorRT wants one plain run after a change of shape
            self._stream.synchronize()
            self._graphs[shape] = _Graph(feeds, results, lambda: self._enqueue(self._context, feeds), self._stream)
        recorded = self._graphs[shape]
        recorded.fill({name: self._to_host(name, batch[name]) for name in self._inputs})
        return recorded.feeds, recorded.results

    def _execute(self, feeds: Tensors) -> None:
        if self._records:
            self._graphs[tuple(tuple(feeds[name].shape) for name in self._inputs)].replay()
        else:
            self._enqueue(self._context, feeds)

    def _enqueue(self, context: Any, feeds: Tensors) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise RunError(
                "TensorRT refused to run the engine.",
                value={n: tuple(t.shape) for n, t in feeds.items()},
                fix="Build the engine again on this machine, with this TensorRT.",
            )

    def _bind(self, context: Any, feeds: Tensors) -> Tensors:
        """Tell a context its inputs; return outputs of the shapes that follow, bound too."""
        for name, tensor in feeds.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ModelError(
                    "The input shape lies outside the engine's optimization profile.",
                    value=f"{name} {tuple(tensor.shape)}",
                    fix="Build the engine again with a profile that covers this batch and length.",
                )
            context.set_tensor_address(name, tensor.data_ptr())
        unknown = context.infer_shapes()
        if unknown:
            raise ModelError(
                "TensorRT could not infer every shape.",
                value=", ".join(unknown),
                fix="Give every input that the engine lists.",
            )
        results = {name: self._empty(context, name) for name in self._outputs}
        for name, tensor in results.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return results

    def _layer_times(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the mean time of each layer, ms, in a context of its own: a profiler slows down what it watches."""
        import torch

        context = new_context(self._trt, self._engine, cuda_graph=False)
        totals: dict[str, float] = {}
        profiler = context.profiler = layer_clock(self._trt, totals)
        with torch.cuda.stream(self._stream):
            feeds = {name: self._to_device(name, batch[name]) for name in self._inputs}
            results = self._bind(context, feeds)
            for _ in range(_PROFILED_RUNS):
                self._enqueue(context, feeds)
                self._stream.synchronize()
        del results, context, profiler
        return {name: ms / _PROFILED_RUNS for name, ms in totals.items()}

    def _to_host(self, name: str, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self._dtypes[self._engine.get_tensor_dtype(name)])

    def _to_device(self, name: str, array: np.ndarray) -> Any:
        return self._to_host(name, array).to(self.device).contiguous()

    def _empty(self, context: Any, name: str) -> Any:
        import torch

        dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
        return torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device=self.device)


class _Graph:
    """The kernels of one input shape, recorded on a stream; ``feeds`` and ``results`` stay at their addresses."""

    def __init__(self, feeds: Tensors, results: Tensors, enqueue: Any, stream: Any) -> None:
        import torch

        self.feeds, self.results = feeds, results
        self._recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._recorded, stream=stream):
            enqueue()
        self.replay = self._recorded.replay

    def fill(self, host: Tensors) -> None:
        for name, tensor in host.items():
            self.feeds[name].copy_(tensor)


def new_context(trt: Any, engine: Any, *, cuda_graph: bool) -> Any:
    """Return an execution context; TensorRT-RTX records CUDA graphs itself where its configuration says so.

    Raises:
        RunError: TensorRT could not create one.
    """
    if cuda_graph and hasattr(trt, "CudaGraphStrategy"):
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise RunError(
            "TensorRT could not create an execution context.",
            value="most likely too little free GPU memory",
            fix="Free the GPU, or build the engine with a smaller maximum shape.",
        )
    return context


def layer_clock(trt: Any, totals: dict[str, float]) -> Any:
    """Return a profiler that adds up the time of each layer, ms, in ``totals``."""

    class LayerClock(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return LayerClock()


def _torch_dtypes(trt: Any) -> dict[Any, Any]:
    import torch

    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.BOOL: torch.bool,
    }
