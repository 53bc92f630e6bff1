"""What is known of an engine before TensorRT sees it: its sidecar, its header, and whether it can run here.

A plan is code for one TensorRT and one GPU. Loading one that does not fit ends in an error without a name, or in a
slow engine, so everything that can be known is compared first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.artifact import Artifact
from compress.errors import IntegrityError, ModelError

SIDECAR_SUFFIX = ".json"
RTX = "tensorrt-rtx"
NO_DEVICE = "built without a GPU"
HEADER_BYTES = 28
_TAGS = {b"ftrt": "tensorrt", b"vtrt": RTX}
_AMPERE = (8, 0)

Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
Shapes = dict[str, dict[Literal["min", "opt", "max"], tuple[int, ...]]]
"""Input name -> smallest, most frequent and largest shape."""


class TimingCache(BaseModel):
    """Whether kernels that an earlier build timed were taken over."""

    model_config = ConfigDict(frozen=True)

    used: bool
    reason: str = ""
    """Why it was not used."""
    sha256: str | None = None
    """Of the cache after this build."""


class PlanRecord(BaseModel):
    """The sidecar of an engine, ``<engine>.json``: what built it, for what, and from which ONNX file."""

    model_config = ConfigDict(frozen=True)

    library: str
    version: str
    device: str = NO_DEVICE
    compute_capability: str | None = None
    driver: str | None = None
    precision: str = ""
    float_precision: str = ""
    sparse_products: int = 0
    """Products of the ONNX file whose weight is 2:4; whether a sparse kernel runs them is TensorRT's choice."""
    tf32: bool = False
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    refit: bool = False
    strip_plan: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: Hardware = "none"
    profiles: list[Shapes] = []
    timing_cache: TimingCache | None = None
    onnx_sha256: str = ""
    plan_sha256: str = ""
    messages: list[str] = []


class Here(NamedTuple):
    """A TensorRT and the GPU that it would run on."""

    library: str
    version: str
    device: str
    compute_capability: str
    """Such as ``9.0``."""


def write_record(engine: Path, record: PlanRecord) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True)
    engine.with_name(engine.name + SIDECAR_SUFFIX).write_text(text + "\n", encoding="utf-8")


def read_record(artifact: Artifact, graph: str) -> PlanRecord | None:
    """Return the sidecar of one engine of an artifact; None if it has none.

    Raises:
        ModelError: the sidecar cannot be read.
        IntegrityError: it is about another plan than the one that the artifact holds.
    """
    name = artifact.manifest.graphs[graph].file
    path = artifact.path / (name + SIDECAR_SUFFIX)
    if not path.is_file():
        return None
    try:
        record = PlanRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(
            "The record beside an engine cannot be read.",
            value=f"{path.name}: {error.errors()[0]['msg']}",
            fix="Build the engine again from the model.onnx beside it.",
        ) from error
    if record.plan_sha256 and record.plan_sha256 != artifact.manifest.files[name].sha256:
        raise IntegrityError(
            "The record beside an engine is about another engine.",
            value=f"{name}: sha256 {artifact.manifest.files[name].sha256[:12]}, {path.name}: {record.plan_sha256[:12]}",
            fix="Produce the artifact again; do not exchange files inside it.",
        )
    return record


def read_header(start: bytes) -> tuple[str, str] | None:
    """Return library and version that a plan's first bytes tell; None if they are not those of a plan.

    Source: ``printPlanVersion`` of NVIDIA's trtexec: a tag of four bytes, a 32-bit serialization version (0), and at
    byte 24 four bytes: major, minor, patch, build. TensorRT-RTX has the same form under a tag of its own.
    """
    if len(start) < HEADER_BYTES or start[:4] not in _TAGS or start[4:8] != bytes(4):
        return None
    return _TAGS[start[:4]], ".".join(str(byte) for byte in start[24:28])


def refuse_foreign(record: PlanRecord | None, start: bytes, here: Here) -> None:
    """Refuse a plan that cannot run on ``here``, before it is loaded.

    Args:
        record: its sidecar, if there is one.
        start: its first bytes, at least ``HEADER_BYTES``.
        here: the TensorRT that would load it, and the GPU.

    Raises:
        ModelError: with what the plan was built by, what is here, and what to do.
    """
    if record is None:
        _refuse_by_header(start, here)
        return
    if record.library != here.library:
        raise _refusal("library", f"built by {record.library} {record.version}, here: {here.library} {here.version}")
    if not _version_fits(record, here.version):
        rule = ", version-compatible" if record.version_compatible else ""
        raise _refusal("version", f"built by {record.library} {record.version}{rule}, here: {here.version}")
    if record.device != NO_DEVICE and not _device_fits(record, here):
        built = f"{record.device} (compute capability {record.compute_capability or 'unknown'})"
        raise _refusal("GPU", f"built on {built}, here: {here.device} ({here.compute_capability})")


def _refuse_by_header(start: bytes, here: Here) -> None:
    found = read_header(start)
    if found is None:
        raise ModelError(
            "This engine has no record beside it, and does not begin like a TensorRT plan.",
            value=f"first bytes: {start[:8].hex(' ')}",
            fix="Build it with the `build` pass, which writes <engine>.json, or `trtexec --saveEngine`.",
        )
    library, version = found
    told = f"its header says {library} {version}, here: {here.library} {here.version}"
    if library != here.library:
        raise _refusal("library", told)
    if _numbers(version)[:3] != _numbers(here.version)[:3]:
        raise _refusal("version", told)


def _version_fits(record: PlanRecord, version: str) -> bool:
    """Say whether a version may load a plan: the same one, or a later one of this or the next major version.

    TensorRT-RTX has no version-compatible plans.
    """
    built, found = _numbers(record.version)[:3], _numbers(version)[:3]
    if built == found or not record.version_compatible:
        return built == found
    return found >= built and found[0] - built[0] <= 1


def _device_fits(record: PlanRecord, here: Here) -> bool:
    """Say whether a GPU may run a plan. One of TensorRT-RTX is finished on the GPU that loads it: it fits several."""
    if record.library == RTX:
        return True
    if record.hardware_compatibility == "ampere_plus":
        return _numbers(here.compute_capability) >= _AMPERE
    if record.hardware_compatibility == "same_compute_capability":
        return record.compute_capability == here.compute_capability
    return record.device == here.device and record.compute_capability in (None, here.compute_capability)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _refusal(what: str, value: str) -> ModelError:
    advice = {
        "library": "Install that library, or build the engine again here, from the model.onnx beside it.",
        "version": "Build the engine again here, from the model.onnx beside it; or install the version that built it.",
        "GPU": "Build the engine again on this GPU, from the model.onnx beside it; `hardware_compatibility` of the "
        "`build` pass makes engines that fit several, at a cost.",
    }
    return ModelError(f"This engine is for another {what}.", value=value, fix=advice[what])
