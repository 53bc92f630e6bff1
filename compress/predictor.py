"""Open an artifact of any kind and ask it: ``compress.load(folder)("some text")``, or about an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from compress.artifact import Artifact, open_artifact
from compress.data.pictures import IMAGE, read_picture
from compress.errors import DataError, IntegrityError, MissingCapabilityError
from compress.runtimes.base import RUNTIME_OF, Session, runtimes
from compress.runtimes.target import Target
from compress.tasks.base import Task, task_from
from compress.trust import trusting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HALF = {"fp16": 2e-2, "bf16": 1e-1}
"""Trait -> share of the largest output by which golden outputs may differ: 8 bits round 8 times as coarsely as 11."""
Text = str | tuple[str, str]
"""A text, or a pair of texts; for an image model the path of an image."""


def load(
    folder: Path | str,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    check: bool = True,
    trust_remote_code: bool = False,
) -> Predictor:
    """Open an artifact folder as a ready predictor.

    Args:
        folder: what ``mcompress run`` or ``mcompress export`` wrote.
        runtime: torch, onnxruntime, openvino or tensorrt; None = the artifact kind's own.
        device: "cpu" or "cuda"; None = the runtime's usual one.
        threads: CPU threads; None = every core.
        check: verify every file's digest, and that the golden inputs still give the golden outputs.
        trust_remote_code: run the Python files of the model's author that a torch artifact may hold, with your
            rights and in no sandbox.

    Raises:
        ModelError: the folder is not an artifact, or holds code that is not to be trusted.
        IntegrityError: a file was changed, or the golden outputs are not reproduced.
        MissingCapabilityError: the runtime is not installed, or its device is not here.
    """
    artifact = open_artifact(folder, verify=check)
    name = runtime or RUNTIME_OF.get(artifact.kind, artifact.kind)
    opener = runtimes.get(name)()
    place = device or ("cuda" if name == "tensorrt" else "cpu")
    target = Target.model_validate({"name": "predictor", "runtime": name, "device": place, "threads": threads})
    available = opener.takes(artifact, target)
    if not available.ok:
        raise MissingCapabilityError(
            f"The runtime {name!r} cannot open this artifact here.",
            value=available.reason,
            fix="Install it, or give another `runtime=`.",
        )
    with trusting(_code_in(artifact) if trust_remote_code else ()):
        session = opener.open(artifact, target)
    predictor = Predictor(artifact, task_from(artifact.manifest.task), session)
    if check:
        predictor.check_golden()
    return predictor


def load_model(folder: Path | str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Open a torch artifact as its Transformers model: float32, evaluation mode, pruned shapes rebuilt.

    Args:
        folder: the artifact.
        trust_remote_code: see ``load``.

    Raises:
        ModelError: the folder is not an artifact that holds a torch model, or holds code that is not to be trusted.
    """
    from compress.models.loading import load_torch

    artifact = open_artifact(folder)
    with trusting(_code_in(artifact) if trust_remote_code else ()):
        return load_torch(artifact.path, task_from(artifact.manifest.task))


def _code_in(artifact: Artifact) -> list[str]:
    """Return the digest of the author's code in an artifact, if there is any."""
    from compress.models.loading import read_config
    from compress.models.remote_code import read_code

    code = read_code(artifact.path, read_config(artifact.path)) if artifact.kind == "torch" else None
    return [] if code is None else [code.digest]


class Predictor:
    """An opened artifact with its tokenizer or preprocessor, labels and decoding."""

    def __init__(self, artifact: Artifact, task: Task, session: Session) -> None:
        self.artifact = artifact
        self.task = task
        self._session = session

    @overload
    def __call__(self, texts: Text | Path | np.ndarray, *, batch_size: int = 1) -> dict[str, Any]: ...
    @overload
    def __call__(
        self, texts: list[Text] | list[str] | list[Path] | list[np.ndarray], *, batch_size: int = 1
    ) -> list[dict[str, Any]]: ...
    def __call__(self, texts: Any, *, batch_size: int = 1) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer for one example, or for a list: ``{"label": ..., "score": ...}`` each.

        An example is a text, a pair of texts, or, for an image model, a path or (height, width, channels) uint8.
        """
        many = isinstance(texts, list)
        answers = self.task.predictions(self.logits(texts if many else [texts], batch_size=batch_size))
        return answers if many else answers[0]

    def logits(self, texts: Sequence[Any], *, batch_size: int = 1) -> np.ndarray:
        """Return raw outputs, (texts, labels) float32.

        Raises:
            DataError: something in ``texts`` is not an example of this task.
        """
        rows = [self._row(text) for text in texts]
        if not rows:
            return np.zeros((0, max(len(self.task.labels), 1)), dtype=np.float32)
        encoded = self.task.encode(self.artifact.path, rows)
        parts = [self._session.run(encoded.batch(indices))["logits"] for indices in encoded.batches(batch_size)]
        return np.concatenate(parts)

    def check_golden(self) -> None:
        """Run the golden inputs and compare with the golden outputs.

        Float32 must agree to 1e-3 of the largest output (at least 1e-3), FP16 to 2e-2 of it, BF16 to 1e-1. Integer
        kernels round differently on different CPUs: there the mean cosine must be at least 0.95.

        Raises:
            IntegrityError: they differ by more.
        """
        golden = self.artifact.manifest.golden
        if golden is None:
            return
        dtypes = {spec.name: spec.dtype for graph in self.artifact.manifest.graphs.values() for spec in graph.inputs}
        batch = {name: np.array(rows, dtype=dtypes.get(name, "int64")) for name, rows in golden.inputs.items()}
        wanted = np.array(golden.outputs["logits"], dtype=np.float64)
        integers = bool(self.artifact.traits & {"int8", "int4"})
        found = self._run_one_by_one(batch) if integers else self._session.run(batch)["logits"]
        gap, size = np.abs(found - wanted).max(), max(1.0, np.abs(wanted).max())
        if integers:
            norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
            fine = bool(((found * wanted).sum(axis=1) / np.maximum(norms, 1e-12)).mean() >= 0.95)
        else:
            allowed = next((share for trait, share in _HALF.items() if trait in self.artifact.traits), 1e-3)
            fine = bool(gap <= allowed * size)
        if not fine:
            raise IntegrityError(
                "The artifact does not give its golden outputs on this machine.",
                value=f"largest difference {gap:.3g} where outputs reach {np.abs(wanted).max():.3g}",
                fix="Check the runtime's version against artifact.json, or open it with `check=False` and measure.",
            )

    def close(self) -> None:
        """Free what the session holds."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run_one_by_one(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Dynamic INT8 scales depend on what else is in the batch and on padding: run rows at their real length."""
        outputs = []
        mask = batch.get("attention_mask")
        for i in range(len(next(iter(batch.values())))):
            row = {name: array[i : i + 1] for name, array in batch.items()}
            if mask is not None:
                row = {name: array[:, : int(mask[i].sum())] for name, array in row.items()}
            outputs.append(self._session.run(row)["logits"])
        return np.concatenate(outputs)

    def _row(self, example: Any) -> dict[str, Any]:
        if self.task.columns[0] == IMAGE:
            return {IMAGE: read_picture(example, None, "an image given to the predictor")}
        return _text_row(example)


def _text_row(text: Any) -> dict[str, Any]:
    if isinstance(text, str):
        return {"text": text}
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return {"text": text[0], "text_pair": text[1]}
    raise DataError(
        "A predictor takes strings or pairs of strings.", value=repr(text)[:80], fix="Pass a str or a (str, str)."
    )
