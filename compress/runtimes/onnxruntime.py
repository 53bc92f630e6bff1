"""ONNX Runtime, on its CPU provider here; its CUDA provider is in ``ort_cuda``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compress.artifact import Artifact, Kind
from compress.errors import MissingCapabilityError, UsageError, did_you_mean
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cores import thread_count
from compress.runtimes.isa_cap import require_cap, why_not
from compress.runtimes.onnx_placement import describe
from compress.runtimes.onnxruntime_package import conflict, import_onnxruntime, why_no_onnxruntime
from compress.runtimes.ort_cuda import CUDA, NO_INT8, OrtCudaSession, feeds_for, why_no_ort_cuda
from compress.runtimes.streams import run_concurrently
from compress.runtimes.target import Target

PROVIDERS = ["CPUExecutionProvider"]
DEVICES: Mapping[str, str] = {PROVIDERS[0]: "cpu", CUDA: "cuda"}
"""Execution provider -> the device of the targets that run on it, and on no other."""

NO_BF16 = (
    "ONNX Runtime has no BF16 kernels for CPUs: the file is for GPUs; gate and parity on validation were judged on a "
    "float32 emulation that rounds every value to BF16"
)


def device_of(provider: str) -> str:
    """Return the device whose targets run on an execution provider.

    Raises:
        UsageError: no target runs on it.
        MissingCapabilityError: it is not here, or ONNX Runtime is not.
    """
    here = import_onnxruntime().get_available_providers()
    usable = f"here: {', '.join(name for name in DEVICES if name in here)}"
    if provider not in DEVICES:
        raise UsageError(
            f"Artifacts are not run on ONNX Runtime's provider {provider!r}.",
            value=usable,
            fix=f"{did_you_mean(provider, DEVICES)} OpenVINO and TensorRT are runtimes of their own: `runtime=`.",
        )
    if provider not in here:
        raise MissingCapabilityError(
            f"ONNX Runtime has no {provider} here.",
            value=usable,
            fix=f"{why_no_ort_cuda() if provider == CUDA else 'Install a build of ONNX Runtime that has it'}.",
        )
    return DEVICES[provider]


class OnnxRuntime(Runtime):
    """Runs every ONNX artifact with the same session options.

    Operators run one after another on ``threads`` intra-op threads. These spin while they wait inside a
    run, as they do by default, but stop when it returns: an idle session leaves the cores to the one that
    is being timed. All graph optimizations are on; no provider but that of the target's device is offered,
    so nothing can fall back unseen.
    """

    name: ClassVar[str] = "onnxruntime"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    package: ClassVar[str] = "onnxruntime"

    def available(self, target: Target) -> Availability:
        on_gpu = target.device == "cuda"
        reason = conflict() or (why_no_ort_cuda() if on_gpu else why_no_onnxruntime() or why_not(target))
        return Availability(not reason, reason)

    def preload(self, target: Target) -> None:
        onnxruntime = import_onnxruntime()
        if target.device == "cuda":
            onnxruntime.preload_dlls()

    def takes(self, artifact: Artifact, target: Target) -> Availability:
        found = self.available(target)
        if found.ok and target.device == "cpu" and "bf16" in artifact.traits:
            return Availability(False, NO_BF16)
        if found.ok and target.device == "cuda" and "int8" in artifact.traits:
            return Availability(False, NO_INT8)
        return found

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        found = self.takes(artifact, target)
        if not found.ok:
            raise MissingCapabilityError(
                f"The target {target.name!r} does not run this artifact.",
                value=found.reason,
                fix="Choose another target (`mcompress ls targets`).",
            )
        require_cap(target)
        return (OrtCudaSession if target.device == "cuda" else _OnnxSession)(artifact, target)


class _OnnxSession(Session):
    concurrent = True

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._files = {name: artifact.file(name) for name in artifact.manifest.graphs}
        self._target = target
        self._sessions = {name: _open(path, target) for name, path in self._files.items()}
        self._inputs = {name: [i.name for i in s.get_inputs()] for name, s in self._sessions.items()}
        self._outputs = {name: [o.name for o in s.get_outputs()] for name, s in self._sessions.items()}

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        feeds = feeds_for(self._inputs[graph], batch)
        arrays = self._sessions[graph].run(None, feeds)
        return {n: np.asarray(a, dtype=np.float32) for n, a in zip(self._outputs[graph], arrays, strict=True)}

    def stream(self, streams: int) -> Callable[[Iterable[Mapping[str, np.ndarray]]], None]:
        """Open one session that several threads call; they and its own threads together are the target's number."""
        if streams == 1:
            return super().stream(streams)
        session = _open(self._files["model"], self._target, threads=max(1, thread_count(self._target) - streams + 1))

        def run_one(batch: Mapping[str, np.ndarray]) -> None:
            session.run(None, {name: batch[name] for name in self._inputs["model"]})

        return lambda batches: run_concurrently(run_one, batches, streams)

    def placement(self) -> dict[str, Any]:
        """Describe the optimized graph, see ``onnx_placement``; under a memory limit only name the providers.

        The optimized graph is written by a second session, which costs the model's size once more.
        """
        record: dict[str, Any] = {"providers": self._sessions["model"].get_providers()}
        if self._target.memory_bytes is None:
            with tempfile.TemporaryDirectory() as folder:
                optimized = Path(folder) / "optimized.onnx"
                _open(self._files["model"], self._target, optimized)
                record |= describe(optimized, self._files["model"])
        return record

    def close(self) -> None:
        self._sessions.clear()


def _open(path: Path, target: Target, optimized: Path | None = None, threads: int | None = None) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or thread_count(target)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
