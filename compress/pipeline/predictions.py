"""Validation outputs of artifacts: computed once by the exact artifact in a child, then kept in the store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from compress import __version__
from compress.artifact import Artifact, create_artifact, hash_json
from compress.bench.environment import environment
from compress.bench.protocol import predict
from compress.data.encoded import Encoded
from compress.data.splits import TaskData
from compress.passes.base import Progress, library_versions
from compress.recipe import RunConfig
from compress.runtimes.base import RUNTIME_OF, runtimes
from compress.runtimes.target import Target
from compress.store import Store
from compress.tasks.base import Task, tasks


class Prediction(NamedTuple):
    """Raw outputs (n, labels) float32 with the inputs they belong to, or the reason why there are none."""

    outputs: np.ndarray | None
    encoded: Encoded | None
    reason: str = ""


class Predictions:
    """Outputs on the validation split, by artifact: one example at a time, on one thread, as deployed.

    FP16 and BF16 graphs are emulated, see ``compress.quantization.half_emulation``.
    """

    def __init__(self, store: Store, run: RunConfig, emit: Progress) -> None:
        self._store = store
        self._run = run
        self._emit = emit
        self._known: dict[str, Prediction] = {}

    def of(self, artifact: Artifact, task: Task, data: TaskData) -> Prediction:
        """Return the outputs of an artifact on validation."""
        if artifact.digest not in self._known:
            self._known[artifact.digest] = self._predict(artifact, task, data)
        return self._known[artifact.digest]

    def _predict(self, artifact: Artifact, task: Task, data: TaskData) -> Prediction:
        runtime = RUNTIME_OF.get(artifact.kind)
        if runtime is None:
            return Prediction(None, None, f"no runtime here opens a {artifact.kind} artifact")
        device = self._run.device if runtime == "torch" else "cuda" if runtime == "tensorrt" else "cpu"
        target = Target(name=f"{runtime}-{device}", runtime=runtime, device=device, threads=1)
        opener = runtimes.get(runtime)()
        available = opener.available(target)
        if not available.ok:
            return Prediction(None, None, available.reason)
        split = data["validation"]
        encoded = task.encode(artifact.path, split.rows)
        key = hash_json(
            {
                "mcompress": __version__,
                "predictions": artifact.digest,
                "split": split.digest,
                "task": task.dump(),
                "target": target.model_dump(mode="json"),
                "cpu": environment()["cpu"]["flags"],
                "versions": library_versions((opener.package,)) | tasks.versions(task.name),
            }
        )

        def build(payload: object) -> None:
            with self._store.workspace() as work:
                outputs = predict(_runnable(artifact, work), target, encoded, work=work)
            np.save(f"{payload}/outputs.npy", outputs, allow_pickle=False)

        label = f"outputs on validation of {artifact.digest[:12]}"
        path, _ = self._store.get_or_build(key, label, build, made_from=[artifact.path])
        return Prediction(np.load(path / "outputs.npy", allow_pickle=False), encoded)


def _runnable(artifact: Artifact, work: Path) -> Artifact:
    """Return the artifact, or what a 16-bit graph computes on a GPU: a CPU does not round, or has no kernels."""
    if artifact.kind != "onnx" or not {"fp16", "bf16"} & artifact.traits:
        return artifact
    import onnx

    from compress.export.companions import copy_companions
    from compress.quantization.half_emulation import emulate_half

    folder, manifest = work / "emulated", artifact.manifest
    folder.mkdir()
    (folder / "model.onnx").write_bytes(emulate_half(onnx.load(artifact.file())).SerializeToString())
    copy_companions(artifact.path, folder)
    return create_artifact(
        folder, kind="onnx", task=manifest.task, graphs=manifest.graphs, made_by=manifest.made_by, seed=manifest.seed
    )
