"""The contract of a pass: a declared value with a config, order rules, a plan and an apply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from compress.artifact import Artifact, Kind, PassRecord
from compress.data.splits import TaskData
from compress.registry import Registry
from compress.store import Store
from compress.tasks.base import Task


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return distribution name -> installed version; a missing one reads "absent"."""
    return {name: _version(name) for name in sorted(names)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


class PassConfig(BaseModel):
    """Base of every pass configuration: frozen; an unknown key, NaN or an infinite number is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ModelInfo:
    """What a plan knows of a model: enough to check order and to predict size, no weights.

    Attributes:
        kind: kind of the artifact that holds it.
        traits: what was done to it so far ("pruned", "int8", ...).
        config: the Hugging Face config.json as a dict; empty for a bare ONNX file.
        parameters: predicted number of weights, if known.
        macs: predicted multiply-accumulates for one 128-token input, if known.
    """

    kind: Kind
    traits: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a step will do: one line for people, the predicted result, and what is missing here."""

    summary: str
    result: ModelInfo
    missing: tuple[str, ...] = ()
    """One sentence per missing capability (package, device), with the command that brings it."""


class Progress(Protocol):
    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a pass may use besides its inputs.

    Attributes:
        out: empty folder; the pass writes the payload here and ends with ``create_artifact(out, ...)``.
        scratch: folder for intermediate files, gone afterwards.
        checkpoint: folder that survives a kill of this very step, for training checkpoints.
        task: the task with its labels and lengths.
        data: the splits; a pass may read train, calibration and validation, never test.
        store: for reusable intermediate results (teacher outputs).
        seed, device ("cpu" | "cuda"), threads: as the recipe says.
        emit: progress sink.
    """

    out: Path
    scratch: Path
    checkpoint: Path
    task: Task
    data: TaskData
    store: Store
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    emit: Progress = lambda message, done=None, total=None: None


class Pass(ABC):
    """One transformation. Stateless: everything it needs comes in through ``plan`` and ``apply``."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raise it whenever the same config gives other bytes: it is part of the store key."""
    libraries: ClassVar[tuple[str, ...]]
    """Distributions whose versions are part of the store key; that of a plug-in is by itself."""
    Config: ClassVar[type[PassConfig]]
    consumes: ClassVar[frozenset[Kind]]
    """Kinds of the ``model`` input; empty for a pass that can start a recipe without a model."""
    produces: ClassVar[Kind]
    roles: ClassVar[tuple[str, ...]] = ("model",)
    """Inputs by role; each but ``model`` is a config field that names a step."""
    requires: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()
    """Traits the input must have / must not have."""
    adds: ClassVar[frozenset[str]] = frozenset()
    """Traits that the result gets; of several that depend on the config, ``added`` says which."""
    removes: ClassVar[frozenset[str]] = frozenset()
    preserves: ClassVar[Literal["exact", "close", "task"]]
    """What the parity check may demand of the outputs, compared with the ``model`` input."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Splits that the pass may read."""
    spares: ClassVar[tuple[str, ...]] = ()
    """Those of ``uses`` that it can go without: a recipe whose data lacks them still runs."""
    trains: ClassVar[bool] = False
    """Whether the result depends on the number of threads and the device (training does)."""

    @abstractmethod
    def plan(self, inputs: Mapping[str, ModelInfo], config: Any) -> Plan:
        """Say what would happen. Cheap: reads no weights, imports no heavy library."""

    @abstractmethod
    def apply(self, inputs: Mapping[str, Artifact], config: Any, context: Context) -> Artifact:
        """Do it: write a new artifact into ``context.out`` and return it. Inputs stay untouched."""

    def expand(self, config: Any, value: Callable[[str], str]) -> Any:
        """Return ``config`` with ``value`` applied to its paths: it replaces each ``${NAME}`` of a recipe.

        A pass with a path dumps only the path's name, and settles the digest of what lies there.
        """
        return config

    def reads(self, config: Any) -> tuple[str, ...]:
        """Return the splits that the pass reads under ``config``: their digests are part of the store key."""
        return self.uses

    def added(self, config: Any) -> frozenset[str]:
        """Return those of ``adds`` that the result gets under ``config``."""
        return self.adds

    def settle(self, config: Any) -> dict[str, Any]:
        """Return what ``config`` leaves to this machine, decided; it becomes part of the store key."""
        return {}

    def versions(self) -> dict[str, str]:
        """Return distribution -> version of ``libraries``, and of the plug-in that brings the pass."""
        return library_versions(self.libraries) | passes.versions(self.name)

    def provenance(self, inputs: Mapping[str, Artifact], config: PassConfig, context: Context) -> dict[str, Any]:
        """Return the manifest fields that every pass records in the same way."""
        return {
            "task": context.task.dump(),
            "parents": {role: artifact.digest for role, artifact in inputs.items()},
            "made_by": PassRecord(name=self.name, version=self.version, config=config.model_dump(mode="json")),
            "versions": self.versions(),
            "seed": context.seed,
            "data": {name: context.data[name].digest for name in self.reads(config) if name in context.data},
        }


passes: Registry[Pass] = Registry("pass", Pass, group="mcompress.passes")  # type: ignore[type-abstract]
for _name, _class in {
    "finetune": "Finetune",
    "distill": "Distill",
    "prune": "Prune",
    "trim": "Trim",
    "factorize": "Factorize",
    "sparsify": "Sparsify",
    "export": "Export",
    "qat": "Qat",
    "quantize": "Quantize",
    "cast": "Cast",
    "build": "Build",
}.items():
    passes.register(_name, f"compress.passes.{_name}:{_class}")
