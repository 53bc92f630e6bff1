"""Open an artifact of any kind and ask it: ``compress.load(folder)("some text")``, or about an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from pydantic import ValidationError

from compress.artifact import Artifact, open_artifact
from compress.errors import CompressError, IntegrityError, MissingCapabilityError, ModelError, UsageError
from compress.runtimes.base import RUNTIME_OF, Session, runtimes
from compress.runtimes.onnxruntime import device_of
from compress.runtimes.target import Target
from compress.tasks.asking import is_one, rows_of
from compress.tasks.base import Row, Task, task_from
from compress.trust import trusting
from compress.verifying import difference, run_golden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOW = 1024
"""Examples that are encoded at a time."""
Text = str | tuple[str, str]
"""A text, or a pair of texts; for an image model the path of an image."""


def load(
    folder: Path | str,
    *,
    runtime: str | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    check: bool = True,
    trust_remote_code: bool = False,
) -> Predictor:
    """Open an artifact folder as a ready predictor.

    Args:
        folder: what ``mcompress run`` or ``mcompress export`` wrote; one of several models in an export by its
            manifest, ``folder/artifact.fp16.json``.
        runtime: torch, onnxruntime, openvino, tensorrt or a plug-in's; None = the artifact kind's own.
        device: "cpu" or "cuda"; None = the runtime's usual one.
        provider: the same as ``device`` by the name of ONNX Runtime's execution provider, CPUExecutionProvider or
            CUDAExecutionProvider. No other is taken in its place.
        threads: CPU threads that the model computes on; None = every core.
        check: verify every file's digest, and that the golden inputs still give the golden outputs.
        trust_remote_code: run the Python files of the model's author that a torch artifact may hold, with your
            rights and in no sandbox.

    Raises:
        ModelError: the folder is not an artifact, holds code that is not to be trusted, or the runtime cannot read its
            files.
        IntegrityError: a file was changed, or the golden outputs are not reproduced.
        MissingCapabilityError: the runtime is not installed, or its device or provider is not here.
        UsageError: an argument has no such value, or does not fit the artifact or another argument.
    """
    artifact = open_artifact(folder, verify=check)
    target = _target(artifact, runtime, device, provider, threads)
    task = task_from(artifact.manifest.task)
    with trusting(_code_in(artifact) if trust_remote_code is True else ()):
        session = _open(artifact, target)
    try:
        predictor = Predictor(artifact, task, session, target)
        if check:
            predictor.check_golden()
    except BaseException:
        session.close()
        raise
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
    with trusting(_code_in(artifact) if trust_remote_code is True else ()):
        return load_torch(artifact.path, task_from(artifact.manifest.task))


def _code_in(artifact: Artifact) -> list[str]:
    """Return the digest of the author's code in an artifact, if there is any."""
    from compress.models.loading import read_config
    from compress.models.remote_code import read_code

    code = read_code(artifact.path, read_config(artifact.path)) if artifact.kind == "torch" else None
    return [] if code is None else [code.digest]


class Predictor:
    """An opened artifact with its tokenizer or preprocessor, labels and decoding.

    Any number of threads may call one predictor at once. ONNX Runtime and PyTorch answer them side by side; other
    runtimes answer one batch at a time, and the others wait.

    Attributes:
        artifact: the folder and its manifest.
        task: labels, longest input, decoding.
        target: runtime, device and threads that it was opened with.
    """

    def __init__(self, artifact: Artifact, task: Task, session: Session, target: Target) -> None:
        self.artifact, self.task, self.target = artifact, task, target
        self._session, self._encode = session, task.encoder(artifact.path)
        self._output = artifact.manifest.graphs["model"].outputs[0].name
        self._turn: AbstractContextManager[Any] = nullcontext() if session.concurrent else Lock()
        self._state, self._calls, self._closed = RLock(), 0, False

    @overload
    def __call__(
        self, examples: Text | Path | Mapping[str, Any], *, batch_size: int = 1, scores: bool = False
    ) -> dict[str, Any]: ...
    @overload
    def __call__(
        self, examples: list[Any] | Iterator[Any], *, batch_size: int = 1, scores: bool = False
    ) -> list[dict[str, Any]]: ...
    @overload
    def __call__(
        self, examples: Any, *, batch_size: int = 1, scores: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]: ...
    def __call__(
        self, examples: Any, *, batch_size: int = 1, scores: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer for one example, or for several in their order: ``{"label": ..., "score": ...}`` each.

        Args:
            examples: one example is a text, a pair of texts as a tuple, or a mapping with the task's columns
                (``{"text": ..., "text_pair": ...}``); for an image model a path, (height, width, channels) uint8 or
                an image object. Anything else that can be iterated over is several: a list, a generator, an array of
                strings. Texts are cut to the artifact's longest input, as they were when it was measured.
            batch_size: examples that run together, those of like length first. With 1 an answer never depends on
                what else was asked.
            scores: give every label's score, ``{"label": "good", "score": {"bad": 0.1, "good": 0.9}}``.

        Raises:
            DataError: something in ``examples`` is not an example of this task; the error names its position.
            UsageError: the predictor is closed.
        """
        outputs = self.logits(examples, batch_size=batch_size)
        answers = self.task.predictions(outputs)
        if scores:
            every = self.task.label_scores(outputs)
            answers = [answer | {"score": score} for answer, score in zip(answers, every, strict=True)]
        return answers[0] if is_one(examples, self.task) else answers

    def logits(self, examples: Any, *, batch_size: int = 1) -> np.ndarray:
        """Return raw outputs, (examples, labels) float32; for one example a single row. Arguments as for a call."""
        if not hasattr(batch_size, "__index__") or batch_size is True or batch_size < 1:
            raise UsageError(
                "`batch_size` is the number of examples that run together.", value=batch_size, fix="Give 1 or more."
            )
        with self._call():
            parts = [self._window(rows, batch_size) for rows in _windows(rows_of(examples, self.task))]
        return np.concatenate(parts) if parts else np.zeros((0, max(len(self.task.labels), 1)), dtype=np.float32)

    def check_golden(self) -> None:
        """Run the golden inputs and compare with the golden outputs, as closely as ``verifying.difference`` says.

        Raises:
            IntegrityError: they differ by more.
            UsageError: the predictor is closed.
        """
        golden = self.artifact.manifest.golden
        if golden is None:
            return
        dtypes = {spec.name: spec.dtype for graph in self.artifact.manifest.graphs.values() for spec in graph.inputs}
        try:
            with self._call():
                found = run_golden(golden.inputs, dtypes, self.artifact.traits, self._run)
            gap = difference(found, golden.outputs[self._output], self.artifact.traits)
        except (CompressError, MemoryError):
            raise
        except Exception as error:  # inputs that the model does not take, outputs that it does not have
            gap = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if gap:
            raise IntegrityError(
                "The artifact does not give its golden outputs on this machine.",
                value=gap,
                fix="Check the runtime's version against artifact.json, or open it with `check=False` and measure.",
            )

    def close(self) -> None:
        """Refuse further calls and free what the session holds, as soon as calls under way in other threads end."""
        with self._state:
            idle = not self._closed and not self._calls
            self._closed = True
        if idle:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        labels = self.task.labels
        known = ", ".join(map(repr, labels)) if len(labels) <= 5 else f"{len(labels)} labels"
        on = f"{self.target.runtime} on {self.target.device}{', closed' if self._closed else ''}"
        return f"<Predictor {self.artifact.path.name!r}: {self.artifact.kind}, {self.task.name} ({known}), {on}>"

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Keep the session open while a thread is inside; the last one out of a closed predictor closes it."""
        with self._state:
            if self._closed:
                raise UsageError(
                    "This predictor is closed.", value=self.artifact.path, fix="Open it again with `compress.load`."
                )
            self._calls += 1
        try:
            yield
        finally:
            with self._state:
                self._calls -= 1
                last = self._closed and not self._calls
            if last:
                self._session.close()

    def _window(self, rows: list[Row], batch_size: int) -> np.ndarray:
        encoded = self._encode(rows)
        batches = encoded.batches(batch_size, by_length=batch_size > 1)
        outputs = np.concatenate([self._run(encoded.batch(indices)) for indices in batches])
        return outputs[np.argsort(np.concatenate(batches))]

    def _run(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with self._turn:
            return self._session.run(batch)[self._output]


def _target(
    artifact: Artifact, runtime: str | None, device: str | None, provider: str | None, threads: int | None
) -> Target:
    name = runtime or RUNTIME_OF.get(artifact.kind, artifact.kind)
    if artifact.kind not in runtimes.get(name).kinds:
        raise UsageError(
            f"The runtime {name!r} does not open this kind of artifact.",
            value=f"{artifact.path}: {artifact.kind}",
            fix=f"Leave `runtime` out: {RUNTIME_OF.get(artifact.kind, 'the runtime of a plug-in')} opens it.",
        )
    place = device or ("cuda" if name == "tensorrt" else "cpu")
    if provider is not None:
        if name != "onnxruntime":
            raise UsageError(
                "An execution provider is ONNX Runtime's.",
                value=f"{provider} with runtime {name!r}",
                fix="Leave `provider` out, and give `device`.",
            )
        place = device_of(provider)
        if device not in (None, place):
            raise UsageError(
                "`provider` and `device` name two devices.", value=f"{provider}, {device}", fix="Leave one out."
            )
    try:
        return Target.model_validate({"name": "predictor", "runtime": name, "device": place, "threads": threads})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise UsageError(
            "An argument of `compress.load` has no such value.",
            value=f"device={place!r}, threads={threads!r}: {first['msg']}",
            fix="`device` is 'cpu' or 'cuda', `threads` a whole number from 1, or None for every core.",
        ) from error


def _open(artifact: Artifact, target: Target) -> Session:
    opener = runtimes.get(target.runtime)()
    found = opener.takes(artifact, target)
    if not found.ok:
        others = "".join(f", or give runtime={name!r}, which is here" for name in _others(artifact, target))
        raise MissingCapabilityError(
            f"The runtime {target.runtime!r} cannot open this artifact here.",
            value=found.reason,
            fix=f"Follow the hint above{others}.",
        )
    try:
        return opener.open(artifact, target)
    except (CompressError, MemoryError):
        raise
    except ImportError as error:
        raise MissingCapabilityError(
            f"The runtime {target.runtime!r} is installed but cannot be imported.",
            value=f"{type(error).__name__}: {error}",
            fix="Install it again, with the libraries that it needs.",
        ) from error
    except Exception as error:  # every runtime raises types of its own
        raise ModelError(
            f"The runtime {target.runtime!r} cannot read this artifact.",
            value=f"{artifact.file()}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            fix="Check its files with `check=True`; a file of a newer format needs a newer runtime.",
        ) from error


def _others(artifact: Artifact, target: Target) -> Iterator[str]:
    """Yield the other built-in runtimes that could open an artifact here."""
    for name in RUNTIME_OF.values():
        opener, place = runtimes.get(name)(), target.model_copy(update={"runtime": name})
        if name != target.runtime and artifact.kind in opener.kinds and opener.takes(artifact, place).ok:
            yield name


def _windows(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while window := list(islice(rows, _WINDOW)):
        yield window
