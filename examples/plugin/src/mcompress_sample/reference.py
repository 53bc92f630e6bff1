"""``onnx-reference``: the reference implementation of ONNX, in numpy, as a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from compress.artifact import Artifact, Kind
from compress.runtimes.base import Availability, Runtime, Session
from compress.runtimes.target import Target

STANDARD = ("", "ai.onnx")
"""Domains of the operators that the reference has."""


class OnnxReference(Runtime):
    """Runs ONNX files operator by operator, as the standard defines each: an oracle for what a file means.

    No operator is fused and none has a kernel of its own, so its times say nothing about a deployment. Threads are
    those of numpy's matrix library, which a measuring process limits to the target's.
    """

    name: ClassVar[str] = "onnx-reference"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    package: ClassVar[str] = "onnx"

    def available(self, target: Target) -> Availability:
        if target.device != "cpu":
            return Availability(False, "the ONNX reference computes in numpy, on a CPU: set `device: cpu`")
        if target.isa is not None or target.emulate is not None:
            return Availability(False, "numpy's instructions cannot be capped: leave out `isa` and `emulate`")
        if target.compile or target.precision not in (None, "fp32"):
            return Availability(False, "an ONNX file has its precision inside: leave out `precision` and `compile`")
        return Availability(True)

    def takes(self, artifact: Artifact, target: Target) -> Availability:
        found = self.available(target)
        if found.ok and (strange := _strange_operators(artifact)):
            return Availability(False, f"the ONNX reference has no {', '.join(strange)}")
        return found

    def open(self, artifact: Artifact, target: Target) -> Session:
        self.require(target)
        return _Session(artifact)

    def preload(self, target: Target) -> None:
        import onnx.reference  # noqa: F401 - so that its import counts neither as the model's time nor its memory


class _Session(Session):
    def __init__(self, artifact: Artifact) -> None:
        from onnx.reference import ReferenceEvaluator

        self._graphs = {name: ReferenceEvaluator(str(artifact.file(name))) for name in artifact.manifest.graphs}

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        evaluator = self._graphs[graph]
        outputs: Any = evaluator.run(None, {name: batch[name] for name in evaluator.input_names})
        named = zip(evaluator.output_names, outputs, strict=True)
        return {name: np.asarray(array, dtype=np.float32) for name, array in named}

    def close(self) -> None:
        self._graphs.clear()


def _strange_operators(artifact: Artifact) -> list[str]:
    import onnx

    nodes = onnx.load(artifact.file(), load_external_data=False).graph.node
    return sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
