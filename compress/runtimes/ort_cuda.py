"""ONNX Runtime on its CUDA provider: inputs and outputs bound to buffers on the GPU, never a silent fallback."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.errors import ModelError, RunError
from compress.runtimes.base import Session
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.onnx_placement import describe, nodes_by_provider
from compress.runtimes.onnxruntime_package import import_onnxruntime, installed_distributions
from compress.runtimes.target import Target

CUDA = "CUDAExecutionProvider"
NO_INT8 = "the CUDA provider has no fast path for INT8: INT8 on a GPU is measured by TensorRT"
_GRAPH, _NO_GRAPH = "gpu_graph_id", "-1"
_PROFILED_RUNS = 3


def why_no_ort_cuda() -> str:
    """Say everything that the CUDA provider lacks here; empty if nothing. Imports ONNX Runtime only beside a GPU."""
    missing, found = [why_no_cuda()], installed_distributions()
    if "onnxruntime-gpu" not in found:
        first = f"pip uninstall {' '.join(found)}, then " if found else ""
        missing.append(f"onnxruntime-gpu is not installed: {first}pip install 'mcompress[gpu]'")
    if not any(missing) and CUDA not in import_onnxruntime().get_available_providers():
        missing.append("onnxruntime-gpu has no CUDA provider on this system")
    return "; ".join(filter(None, missing))


def feeds_for(names: Iterable[str], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a batch that a graph takes.

    Raises:
        ModelError: one is not there.
    """
    try:
        return {name: batch[name] for name in names}
    except KeyError as error:
        raise ModelError(
            "The ONNX graph needs an input that the examples do not have.",
            value=error.args[0],
            fix=f"Give the model one of these inputs only: {', '.join(sorted(batch))}.",
        ) from error


def provider_options(target: Target) -> dict[str, str]:
    """Return what the CUDA provider is opened with; the rest is its default."""
    return {
        "device_id": "0",
        "use_tf32": str(int(target.precision == "tf32")),
        "enable_cuda_graph": str(int(target.cuda_graph)),
    }


class OrtCudaSession(Session):
    """Every input shape has its own buffers on the device, and its own CUDA graph where the target asks for one."""

    device = "cuda"

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._target = target
        self._files = {name: artifact.file(name) for name in artifact.manifest.graphs}
        self._sessions = {name: self._open(path) for name, path in self._files.items()}
        self._bound: dict[tuple[Any, ...], _Bound] = {}
        self._last: dict[str, np.ndarray] = {}

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        session = self._sessions[graph]
        feeds = feeds_for([value.name for value in session.get_inputs()], batch)
        shape = (graph, *((name, array.shape) for name, array in feeds.items()))
        if shape not in self._bound:
            number = str(len(self._bound) + 1) if self._target.cuda_graph else None
            self._bound[shape] = _Bound(session, feeds, self.device, number)
            self._last = dict(feeds) if graph == "model" else self._last
        return self._bound[shape].run(feeds)

    def placement(self) -> dict[str, Any]:
        """Describe the optimized graph, and which provider ran each node of it, from a profile of its own."""
        session = self._sessions["model"]
        record: dict[str, Any] = {"providers": session.get_providers(), "cuda_graphs": 0}
        if self._target.cuda_graph:
            record["cuda_graphs"] = len(self._bound)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            profiled = self._open(self._files["model"], optimized, Path(folder) / "profile")
            for _ in range(_PROFILED_RUNS if self._last else 0):
                profiled.run(None, self._last)
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
            return record | describe(optimized, self._files["model"]) | nodes_by_provider(events)

    def close(self) -> None:
        self._bound.clear()
        self._sessions.clear()

    def _open(self, path: Path, optimized: Path | None = None, profile: Path | None = None) -> Any:
        """Open a session; ``profile`` makes it one that writes down what it runs, without a CUDA graph."""
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        plain = self._target if profile is None else self._target.model_copy(update={"cuda_graph": False})
        session = onnxruntime.InferenceSession(str(path), options, providers=self._providers(plain), enable_fallback=0)
        require_first(session.get_providers(), self._providers(plain)[0])
        return session

    def _providers(self, target: Target) -> list[Any]:
        return [(CUDA, provider_options(target))]


def require_first(providers: list[str], wanted: Any) -> None:
    """Refuse a session that runs on something else than it was opened for.

    Raises:
        RunError: ONNX Runtime could not load the provider and took another.
    """
    name = wanted if isinstance(wanted, str) else wanted[0]
    if not providers or providers[0] != name:
        raise RunError(
            f"ONNX Runtime did not load {name}.",
            value=f"it would run on {', '.join(providers) or 'nothing'}",
            fix="Install the CUDA libraries that onnxruntime-gpu needs: pip install 'onnxruntime-gpu[cuda,cudnn]'.",
        )


class _Bound:
    """Buffers of one input shape, allocated and bound once; their addresses never change.

    Args:
        session: of ONNX Runtime.
        feeds: the first arrays of this shape. They are run once, plainly, to learn the shapes of the outputs.
        device: where the buffers are.
        graph: id of this shape's CUDA graph; None for none.
    """

    def __init__(self, session: Any, feeds: Mapping[str, np.ndarray], device: str, graph: str | None) -> None:
        onnxruntime = import_onnxruntime()
        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._session, self._binding = session, session.io_binding()
        self._inputs = {name: allocate(a.shape, a.dtype.type, device, 0) for name, a in feeds.items()}
        for name, value in self._inputs.items():
            value.update_inplace(feeds[name])
            self._binding.bind_ortvalue_input(name, value)
        names = [value.name for value in session.get_outputs()]
        for name in names:
            self._binding.bind_output(name, device, 0)
        session.run_with_iobinding(self._binding, _options(_NO_GRAPH if graph else None))
        first = dict(zip(names, self._binding.get_outputs(), strict=True))
        self._outputs = {name: allocate(v.shape(), v.element_type(), device, 0) for name, v in first.items()}
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = _options(graph)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy the inputs in, run, copy the outputs out."""
        for name, value in self._inputs.items():
            value.update_inplace(feeds[name])
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: np.array(value.numpy(), dtype=np.float32) for name, value in self._outputs.items()}


def _options(graph: str | None) -> Any:
    options = import_onnxruntime().RunOptions()
    if graph is not None:
        options.add_run_config_entry(_GRAPH, graph)
    return options
