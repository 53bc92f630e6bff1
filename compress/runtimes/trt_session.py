"""Running a TensorRT engine, its buffers held by torch CUDA tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.errors import ModelError, RunError
from compress.runtimes.base import Session


class TensorrtSession(Session):
    """One engine, one execution context, one stream of its own (the default stream adds synchronisation)."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        import torch

        self._runtime, self._engine = runtime, engine
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunError(
                "TensorRT could not create an execution context.",
                value="most likely too little free GPU memory",
                fix="Free the GPU, or build the engine with a smaller maximum shape.",
            )
        self._stream = torch.cuda.Stream()
        self._dtypes = _torch_dtypes(trt)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self._inputs = [n for n in names if is_input[n]]
        self._outputs = [n for n in names if not is_input[n]]

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        import torch

        context, stream = self._context, self._stream
        with torch.cuda.stream(stream):
            # The tensors stay referenced until the stream has finished with their memory.
            feeds = {name: self._to_device(name, batch[name]) for name in self._inputs}
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
            results = {name: self._empty(name) for name in self._outputs}
            for name, tensor in results.items():
                context.set_tensor_address(name, tensor.data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise RunError(
                    "TensorRT refused to run the engine.",
                    value={n: tuple(t.shape) for n, t in feeds.items()},
                    fix="Build the engine again on this machine, with this TensorRT.",
                )
            host = {name: tensor.float().cpu() for name, tensor in results.items()}
        stream.synchronize()
        return {name: tensor.numpy() for name, tensor in host.items()}

    def placement(self) -> dict[str, Any]:
        return {"device": "cuda", "layers": self._engine.num_layers}

    def close(self) -> None:
        if hasattr(self, "_context"):
            del self._context, self._engine, self._runtime

    def _to_device(self, name: str, array: np.ndarray) -> Any:
        import torch

        dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
        return torch.from_numpy(array).to("cuda", dtype).contiguous()

    def _empty(self, name: str) -> Any:
        import torch

        dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
        return torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda")


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
