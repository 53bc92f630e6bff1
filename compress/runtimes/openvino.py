"""OpenVINO on its CPU plugin: reads ONNX files and OpenVINO IR."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compress.artifact import Artifact, Kind
from compress.errors import ModelError
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cores import thread_count
from compress.runtimes.isa_cap import require_cap, why_not
from compress.runtimes.target import Target


class OpenvinoRuntime(Runtime):
    """Runs one stream tuned for latency, in float32 unless the graph itself says int8.

    Thread pinning is left to the caller's CPU affinity, which OpenVINO would otherwise override.
    """

    name: ClassVar[str] = "openvino"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx", "openvino"})
    package: ClassVar[str] = "openvino"

    def available(self, target: Target) -> Availability:
        if find_spec("openvino") is None:
            return Availability(False, "openvino is not installed: pip install 'mcompress[openvino]'")
        if target.device != "cpu":
            return Availability(False, f"this runtime has no device {target.device!r}; use cpu")
        reason = why_not(target)
        return Availability(not reason, reason)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        require_cap(target)
        return _OpenvinoSession(artifact, target)


def read_model(core: Any, path: Path) -> Any:
    """Read a graph; operators that OpenVINO does not know are named."""
    try:
        return core.read_model(path)
    except RuntimeError as error:
        unknown = re.search(r"No conversion rule found for operations: (.+)", str(error))
        if unknown is None:
            raise
        raise ModelError(
            "OpenVINO does not know all operators of the graph:",
            value=unknown[1].strip(),
            fix="Quantize with `target: openvino-cpu-1t`, or run this file with ONNX Runtime.",
        ) from error


class _OpenvinoSession(Session):
    def __init__(self, artifact: Artifact, target: Target) -> None:
        import openvino

        core, options = openvino.Core(), _options(target)
        self._core, self._target = core, target
        self._files = {name: artifact.file(name) for name in artifact.manifest.graphs}
        self._compiled = {
            name: core.compile_model(read_model(core, path), "CPU", options) for name, path in self._files.items()
        }
        self._requests = {name: compiled.create_infer_request() for name, compiled in self._compiled.items()}
        self._inputs = {name: {port.any_name for port in compiled.inputs} for name, compiled in self._compiled.items()}

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        feeds = {name: array for name, array in batch.items() if name in self._inputs[graph]}
        results = self._requests[graph].infer(feeds, share_inputs=True)
        return {port.any_name: np.array(array, dtype=np.float32) for port, array in results.items()}

    def stream(self, streams: int) -> Callable[[Iterable[Mapping[str, np.ndarray]]], None]:
        """Compile the model for that many streams, among which the target's threads are divided."""
        if streams == 1:
            return super().stream(streams)
        import openvino

        model = self._core.read_model(self._files["model"])
        compiled = self._core.compile_model(model, "CPU", _options(self._target, streams))
        queue = openvino.AsyncInferQueue(compiled, streams)

        def run(batches: Iterable[Mapping[str, np.ndarray]]) -> None:
            for batch in batches:
                queue.start_async({n: a for n, a in batch.items() if n in self._inputs["model"]}, share_inputs=True)
            queue.wait_all()

        return run

    def placement(self) -> dict[str, Any]:
        """Count the executed layers and the products on integers, as the compiled graph reports them."""
        from compress.runtimes.openvino_placement import describe

        source = self._core.read_model(self._files["model"])
        return {"device": "CPU", **describe(self._compiled["model"], source)}

    def close(self) -> None:
        self._requests.clear()
        self._compiled.clear()


def _options(target: Target, streams: int = 1) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": thread_count(target),
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
