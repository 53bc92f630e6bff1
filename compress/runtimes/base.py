"""The contract of a runtime: say whether it is here, open an artifact, run a batch."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from compress.artifact import Artifact, Kind
from compress.errors import MissingCapabilityError
from compress.registry import Registry
from compress.runtimes.target import Target


class Availability(NamedTuple):
    """Whether a runtime can run here; ``reason`` says what is missing and how to get it."""

    ok: bool
    reason: str = ""


class Session(ABC):
    """An opened artifact. Use it as a context manager."""

    concurrent: bool = False
    """Whether several threads may call ``run`` at once. Where they may not, a predictor lets them take turns."""

    @abstractmethod
    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        """Run one padded batch.

        Args:
            batch: input name -> (batch, sequence) int64 or (batch, *shape) float32; names the graph lacks are ignored.
            graph: which of the artifact's graphs.

        Returns:
            output name -> float32 array, on the host.
        """

    def stream(self, streams: int) -> Callable[[Iterable[Mapping[str, np.ndarray]]], None]:
        """Return a function that runs batches to the end, that many in flight at once, and drops their outputs.

        Whatever several streams need is opened here; it is freed with the function.

        Raises:
            MissingCapabilityError: this runtime runs one batch at a time.
        """
        if streams > 1:
            raise MissingCapabilityError(
                "This runtime is opened for one batch at a time.",
                value=f"{streams} streams",
                fix="Sweep streams on a target of ONNX Runtime or OpenVINO.",
            )

        def run(batches: Iterable[Mapping[str, np.ndarray]]) -> None:
            for batch in batches:
                self.run(batch)

        return run

    def device_ms(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> float | None:
        """Run one batch and return the time of its kernels by the device's own clock, copies left out, ms.

        None where the runtime has no such clock.
        """
        return None

    def placement(self) -> dict[str, Any]:
        """Say which operators run in which precision on which provider; empty if unknown."""
        return {}

    def memory(self) -> dict[str, int]:
        """Return ``gpu_allocator_bytes``, the peak of the framework's own GPU allocator, where there is one."""
        return {}

    def close(self) -> None:  # noqa: B027 - a hook, not every session holds something
        """Free what the session holds; closing again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Runtime(ABC):
    """One way to run artifacts. A subclass is a module in this folder plus a test."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    package: ClassVar[str]
    """Import name whose version goes into the record."""

    @abstractmethod
    def available(self, target: Target) -> Availability:
        """Say whether ``target`` can run on this machine, without loading a model."""

    def takes(self, artifact: Artifact, target: Target) -> Availability:
        """Say whether ``target`` can run this very artifact here, by what its manifest says."""
        return self.available(target)

    @abstractmethod
    def open(self, artifact: Artifact, target: Target) -> Session:
        """Open an artifact under the target's threads and device.

        Raises:
            MissingCapabilityError: the runtime is not available here.
        """

    def require(self, target: Target) -> None:
        """Raise MissingCapabilityError, with the reason, if ``target`` cannot run here."""
        found = self.available(target)
        if not found.ok:
            raise MissingCapabilityError(
                f"The target {target.name!r} cannot run here.",
                value=found.reason,
                fix="Follow the hint above, or choose another target (`mcompress ls targets`).",
            )

    def preload(self, target: Target) -> None:
        """Import what ``open`` needs, so that neither its time nor its memory counts as the model's."""
        importlib.import_module(self.package)


runtimes: Registry[Runtime] = Registry("runtime", Runtime, group="mcompress.runtimes")  # type: ignore[type-abstract]
runtimes.register("torch", "compress.runtimes.torch:TorchRuntime")
runtimes.register("onnxruntime", "compress.runtimes.onnxruntime:OnnxRuntime")
runtimes.register("onnxruntime-arm64", "compress.runtimes.onnxruntime_arm64:OnnxRuntimeArm64")
runtimes.register("openvino", "compress.runtimes.openvino:OpenvinoRuntime")
runtimes.register("tensorrt", "compress.runtimes.tensorrt:TensorrtRuntime")

RUNTIME_OF: Mapping[str, str] = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
"""Kind of an artifact -> the runtime that opens it unless another is asked for."""
