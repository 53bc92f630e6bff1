"""An artifact: a folder that a stock loader opens, plus ``artifact.json`` that says what it is.

The digest covers the payload files only (names and contents), never times or paths, so two runs that
produce the same bytes produce the same artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import IntegrityError, ModelError

Kind = Literal["torch", "onnx", "openvino", "tensorrt", "executorch"]
MANIFEST = "artifact.json"
SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output: a size that varies is a name (``batch``, ``sequence``)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Frozen):
    """One callable graph of an artifact: the file that holds it and its signature."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class FileRecord(_Frozen):
    sha256: str
    bytes: int


class Golden(_Frozen):
    """Inputs of built-in examples and the outputs that the artifact gave for them when it was made.

    ``inputs``: name -> (batch, sequence) integers or (batch, channels, height, width) floats.
    ``outputs``: name -> (batch, ...) floats.
    """

    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]


class PassRecord(_Frozen):
    name: str
    version: int
    config: dict[str, Any]


class Manifest(_Frozen):
    """What ``artifact.json`` holds."""

    schema_version: int = SCHEMA
    kind: Kind
    task: dict[str, Any] = Field(description="the task and its options, see compress.tasks")
    traits: tuple[str, ...] = ()
    graphs: dict[str, Graph]
    files: dict[str, FileRecord]
    digest: str
    parameters: int | None = Field(None, description="stored weights, elements")
    macs: int | None = Field(None, description="multiply-accumulates of one 128-token input or one image")
    parents: dict[str, str] = Field(default_factory=dict, description="role -> digest")
    made_by: PassRecord
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    data: dict[str, str] = Field(default_factory=dict, description="split -> digest")
    notes: dict[str, Any] = Field(default_factory=dict, description="what the pass wants on record")
    golden: Golden | None = None


@dataclass(frozen=True)
class Artifact:
    """A folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def traits(self) -> frozenset[str]:
        return frozenset(self.manifest.traits)

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that hold the model itself (graph and weights, no tokenizer).

        An engine holds its weights, so the ONNX file that travels with it does not count, unless the engine was
        stored without them. Engines for single shapes (``model@8x128``) are the same model again.
        """
        if self.kind == "tensorrt":
            names = [graph.file for name, graph in self.manifest.graphs.items() if "@" not in name]
            if self.manifest.notes.get("strip_plan"):
                names.append("model.onnx")
            return sum(self.manifest.files[name].bytes for name in names)
        return sum(r.bytes for n, r in self.manifest.files.items() if Path(n).suffix in _WEIGHTS)

    def file(self, graph: str = "model") -> Path:
        return self.path / self.manifest.graphs[graph].file

    def verify(self) -> None:
        """Check every payload file against its recorded sha256.

        Raises:
            IntegrityError: a file is missing or differs.
        """
        for name, record in self.manifest.files.items():
            path = self.path / name
            if not path.is_file() or _sha256(path) != record.sha256:
                raise IntegrityError(
                    f"The file {name!r} of an artifact is missing or was changed.",
                    value=path,
                    fix="Produce the artifact again; do not edit files inside it.",
                )


_WEIGHTS = {".safetensors", ".onnx", ".data", ".bin", ".xml", ".engine", ".plan", ".pte"}


def create_artifact(path: Path, **fields: Any) -> Artifact:
    """Record the files that lie in ``path`` and write ``artifact.json``.

    Args:
        path: folder that already holds the payload.
        **fields: fields of ``Manifest`` other than ``files`` and ``digest``.
    """
    files = {n: FileRecord(sha256=_sha256(path / n), bytes=(path / n).stat().st_size) for n in _payload(path)}
    manifest = Manifest(files=files, digest=_digest(files), **fields)
    text = manifest.model_dump_json(indent=1, exclude_none=True)
    (path / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return Artifact(path, manifest)


def open_artifact(path: Path | str, *, verify: bool = True) -> Artifact:
    """Open an artifact folder.

    Raises:
        ModelError: the folder is not an artifact, or another version's.
        IntegrityError: a payload file differs from its record (with ``verify``).
    """
    path = Path(path)
    source = path / MANIFEST
    if not source.is_file():
        raise ModelError(
            "This folder is not an mcompress artifact: it has no artifact.json.",
            value=path,
            fix="Give a folder that `mcompress run` or `mcompress export` wrote.",
        )
    try:
        manifest = Manifest.model_validate(json.loads(source.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        raise ModelError(
            "artifact.json cannot be read.",
            value=f"{source}: {str(error).splitlines()[0]}",
            fix=f"This version reads schema {SCHEMA}; produce the artifact again.",
        ) from error
    artifact = Artifact(path, manifest)
    if verify:
        artifact.verify()
    return artifact


def hash_json(value: Any) -> str:
    """Return the sha256 (64 hex digits) of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(files: Mapping[str, FileRecord]) -> str:
    return hash_json({name: record.sha256 for name, record in files.items()})


def _payload(path: Path) -> Iterable[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name != MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
