"""An artifact: a folder that a stock loader opens, plus ``artifact.json`` that says what it is.

The digest covers the payload files only (names and contents), never times or paths, so two runs that
produce the same bytes produce the same artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compress.errors import IntegrityError, ModelError
from compress.reading import Unreadable, local_path, read_json
from compress.verifying import is_manifest

Kind = Literal["torch", "onnx", "openvino", "tensorrt", "executorch"]
MANIFEST = "artifact.json"
SCHEMA = 1
LARGEST_MANIFEST = 256 * 2**20
"""Bytes; golden images take a few million."""


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

    @field_validator("inputs", "outputs")
    @classmethod
    def _arrays(cls, values: dict[str, list[Any]]) -> dict[str, list[Any]]:
        import numpy as np

        for name, rows in values.items():
            try:
                np.asarray(rows, dtype=np.float64)  # null is what JSON has for NaN
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} is no array of numbers") from error
        return values


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

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            outside = path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name
            odd = "\\" in name or not name.isprintable() or path.as_posix() != name
            if outside or odd or name in (".", MANIFEST):
                raise ValueError(f"{name!r} is no name of a file inside the artifact")
        return files

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        for graph in self.graphs.values():
            if graph.file not in self.files:
                raise ValueError(f"the graph's file {graph.file!r} is not among the files")
        if "model" not in self.graphs or not self.graphs["model"].outputs:
            raise ValueError("there is no graph `model` with an output")
        if self.golden and self.graphs["model"].outputs[0].name not in self.golden.outputs:
            raise ValueError("the golden outputs are not those of the graph `model`")
        return self


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
        """Check every payload file against its recorded sha256, and the digest of the whole against theirs.

        Raises:
            IntegrityError: a file is missing, differs or is a link that leads outside; or the digest is another's.
        """
        if self.digest != _digest(self.manifest.files):
            raise IntegrityError(
                "The digest of an artifact is not that of its files.",
                value=f"{self.path / MANIFEST}: {self.digest[:12]}",
                fix="Produce the artifact again; do not edit files inside it.",
            )
        home = self.path.resolve()
        for name, record in self.manifest.files.items():
            path = self.path / name
            inside = path.is_file() and path.resolve().is_relative_to(home)
            if not inside or _sha256(path) != record.sha256:
                raise IntegrityError(
                    f"The file {name!r} of an artifact is missing or was changed.",
                    value=path,
                    fix="Produce the artifact again; do not edit files inside it.",
                )


_WEIGHTS = {".safetensors", ".onnx", ".data", ".bin", ".xml", ".engine", ".plan", ".pte"}


def create_artifact(path: Path, *, only: Iterable[str] | None = None, name: str = MANIFEST, **fields: Any) -> Artifact:
    """Record the files that lie in ``path`` and write ``artifact.json``.

    Args:
        path: folder that already holds the payload.
        only: names of the payload's files, where the folder holds others too; None = all.
        name: of the manifest, where the folder holds several artifacts: ``artifact.fp16.json``.
        **fields: fields of ``Manifest`` other than ``files`` and ``digest``.
    """
    names = _payload(path) if only is None else sorted(only)
    files = {n: FileRecord(sha256=_sha256(path / n), bytes=(path / n).stat().st_size) for n in names}
    manifest = Manifest(files=files, digest=_digest(files), **fields)
    text = manifest.model_dump_json(indent=1, exclude_none=True)
    (path / name).write_text(text + "\n", encoding="utf-8")
    return Artifact(path, manifest)


def open_artifact(path: Path | str, *, verify: bool = True) -> Artifact:
    """Open an artifact folder, or one of several in a folder by its manifest (``folder/artifact.fp16.json``).

    Raises:
        ModelError: the folder is not an artifact, or another version's.
        IntegrityError: a payload file differs from its record (with ``verify``).
    """
    try:
        path = local_path(str(path))
    except Unreadable as error:
        raise ModelError(
            "The artifact cannot be read.", value=f"{path}: {error}", fix="Give the folder of an artifact."
        ) from error
    source = path if is_manifest(path.name) and path.is_file() else path / MANIFEST
    if not source.exists():
        raise ModelError(
            "This folder is not an mcompress artifact: it has no artifact.json.",
            value=path,
            fix="Give a folder that `mcompress run` or `mcompress export` wrote.",
        )
    artifact = Artifact(source.parent, _read_manifest(source))
    if verify:
        artifact.verify()
    return artifact


def _read_manifest(source: Path) -> Manifest:
    try:
        record = read_json(source, LARGEST_MANIFEST)
        version = record.get("schema_version", SCHEMA) if isinstance(record, dict) else SCHEMA
        if version != SCHEMA:
            raise ModelError(
                f"artifact.json has the schema version {version!r:.20}; this mcompress reads version {SCHEMA}.",
                value=source,
                fix="Open it with the mcompress that wrote it, or produce the artifact again.",
            )
        return Manifest.model_validate(record)
    except (ValidationError, Unreadable) as error:
        first = error.errors(include_input=False)[0] if isinstance(error, ValidationError) else None
        why = error if first is None else f"{'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']}"
        raise ModelError(
            "artifact.json cannot be read.", value=f"{source}: {why}", fix="Produce the artifact again."
        ) from error


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
