"""ONNX Runtime for arm64 under an emulated CPU: what an artifact answers there, never how fast."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from compress.artifact import Artifact, Kind
from compress.errors import RunError
from compress.runtimes import arm64_worker
from compress.runtimes.arm64_root import arm64_command, arm64_folder, why_no_arm64
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.cores import thread_count
from compress.runtimes.target import Target

_SAID = 500
_PATIENCE_S = 5.0


class OnnxRuntimeArm64(Runtime):
    """Runs ONNX artifacts by the aarch64 wheel of ONNX Runtime in qemu's user mode."""

    name: ClassVar[str] = "onnxruntime-arm64"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    package: ClassVar[str] = "numpy"

    def available(self, target: Target) -> Availability:
        if target.emulate is None:
            return Availability(False, "the target does not say which CPU to emulate: `emulate: cortex-a72`")
        if target.device != "cpu":
            return Availability(False, f"this runtime has no device {target.device!r}; use cpu")
        reason = why_no_arm64()
        return Availability(not reason, reason)

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        return _EmulatedSession(artifact, target)


class _EmulatedSession(Session):
    """One emulated process that holds the model; examples go in and outputs come back over its pipes."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._cpu = target.emulate or ""
        words = [arm64_worker.__file__, arm64_folder() / "site", artifact.file(), thread_count(target)]
        self._process = subprocess.Popen(
            [*arm64_command(self._cpu), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            self._facts = json.loads(str(self._receive()["facts"]))
        except BaseException:
            self.close()
            raise

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        buffer = io.BytesIO()
        np.savez(buffer, **batch)  # type: ignore[arg-type]
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
                stdin.flush()
        except BrokenPipeError:
            pass  # _receive says why
        return {name: np.asarray(array, dtype=np.float32) for name, array in self._receive().items()}

    def placement(self) -> dict[str, Any]:
        """Return what the emulated process runs on: CPU model, instruction sets, versions."""
        return {"emulated_cpu": self._cpu, **self._facts}

    def close(self) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    process.kill()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def _receive(self) -> dict[str, np.ndarray]:
        stdout = self._process.stdout
        head = stdout.read(8) if stdout is not None else b""
        body = stdout.read(int.from_bytes(head, "big")) if stdout is not None and len(head) == 8 else b""
        if not body:
            raise RunError(
                f"The emulated arm64 process ended ({self._cpu}).",
                value=f"exit code {self._process.wait()}: {self._said()}",
                fix="Make the root again (`mcompress arm64 setup --force`); newer wheels crash under old emulators.",
            )
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if "error" in arrays:
            raise RunError(
                f"ONNX Runtime for arm64 could not run the model ({self._cpu}).",
                value=str(arrays["error"])[:_SAID],
                fix="Open the file with ONNX Runtime 1.23 here; an operator may be newer than that version.",
            )
        return arrays

    def _said(self) -> str:
        self._errors.seek(0)
        return " ".join(self._errors.read().decode("utf-8", errors="replace").split())[-_SAID:] or "it said nothing"
