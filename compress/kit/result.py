"""``result.json`` of a kit: what may stand in it. It comes from another machine: nothing is believed unread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from compress.errors import UsageError
from compress.reading import Unreadable, read_text

LARGEST_BYTES = 64 * 2**20
_AGAIN = "Run the kit's run.py again and bring back the file that it writes."

_VISIBLE = r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*$"
Text = Annotated[str, StringConstraints(max_length=500, pattern=_VISIBLE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=_VISIBLE)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class RuntimeFacts(_Strict):
    backend: Literal["onnxruntime", "openvino", "tensorrt", "torch"]
    provider: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{0,60}$")]
    threads: int = Field(ge=1, le=4096)
    version: Text


class EnvironmentFacts(_Strict):
    cpu: Text
    architecture: Text
    flags: list[Text] = Field(max_length=100)
    cores: int | None = Field(None, ge=1, le=65536)
    governor: Text | None = None
    memory_bytes: Count | None = None
    gpu: Text | None = None
    os: Text
    python: Text
    packages: dict[Name, Text] = Field(max_length=100)


class MachineState(_Strict):
    load: float | None = Field(None, ge=0, le=1e6)
    celsius: float | None = Field(None, ge=-273.15, le=1000)
    mhz: float | None = Field(None, ge=0, le=1e6)
    gpu: Text | None = None


class States(_Strict):
    before: MachineState
    after: MachineState


class ModelResult(_Strict):
    """One model: raw samples and outputs; a failed one has neither."""

    name: Name
    digest: Digest
    status: Literal["ok", "failed"]
    reason: Text = ""
    samples_ms: list[list[list[Milliseconds]]] = Field(max_length=100)
    warnings: list[Text] = Field(max_length=100)
    load_ms: Milliseconds | None = None
    first_ms: Milliseconds | None = None
    import_rss_bytes: Count | None = None
    peak_rss_bytes: Count | None = None
    golden_max_abs: float | None = Field(None, ge=0)
    outputs: list[list[float]] | None = None

    @model_validator(mode="after")
    def _failed_has_nothing(self) -> Self:
        if self.status == "failed" and (self.samples_ms or self.outputs):
            raise ValueError("a model that failed has neither times nor outputs")
        return self


class Result(_Strict):
    """The whole file."""

    schema_version: Literal[1]
    kit: Digest
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")
    device: Name
    runtime: RuntimeFacts
    environment: EnvironmentFacts
    state: States
    models: list[ModelResult] = Field(min_length=1, max_length=100)


def read_result(path: Path, *, device: str | None = None) -> Result:
    """Read a result file.

    Args:
        path: of the file.
        device: a name to put in the place of the device's; None = its own.

    Raises:
        UsageError: it is not there, too large, not JSON, of another version, or a value is not what it should be.
    """
    try:
        text = read_text(path, LARGEST_BYTES)
    except Unreadable as error:
        raise UsageError("The result cannot be read.", value=f"{path}: {error}", fix=_AGAIN) from error
    try:
        plain = json.loads(text, parse_constant=lambda word: _refuse("A number is not finite.", word))
    except (ValueError, RecursionError) as error:
        raise UsageError("The result is not valid JSON.", value=f"{path}: {error}", fix=_AGAIN) from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version != 1:
        raise UsageError(
            f"The result has schema version {version}; this mcompress reads version 1.",
            value=path,
            fix="Write the kit again with this mcompress and run it again.",
        )
    if isinstance(plain, dict) and device is not None:
        plain["device"] = device
    try:
        return Result.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200] or "the whole file"
        raise UsageError("This is not a kit's result.", value=f"{path}: {place}: {first['msg']}", fix=_AGAIN) from error


def check_against_kit(result: Result, kit: Mapping[str, Any], width: int | None) -> None:
    """Demand that a result belongs to a kit: its models, its timed sequence, its examples.

    Args:
        result: as read.
        kit: the kit.json that the run remembers.
        width: numbers that one output has; None if unknown.

    Raises:
        UsageError: one of them does not fit.
    """
    known = {model["name"]: model for model in kit["models"]}
    names = [model.name for model in result.models]
    if len(set(names)) < len(names):
        _refuse("A model stands twice in the result.", ", ".join(names))
    for model in result.models:
        if model.name not in known:
            _refuse("The kit has no such model.", model.name)
        if model.digest != known[model.name]["digest"]:
            _refuse(f"The model {model.name!r} is not the one of the kit.", model.digest[:12])
        if model.status == "ok":
            _check_numbers(model, len(kit["sequence"]), kit["examples"], width)


def _check_numbers(model: ModelResult, inputs: int, examples: int, width: int | None) -> None:
    rounds = {len(launch) for launch in model.samples_ms}
    lengths = {len(row) for launch in model.samples_ms for row in launch}
    if len(rounds) != 1 or 0 in rounds or lengths != {inputs}:
        _refuse(
            f"The times of {model.name!r} are not those of the kit's sequence.",
            f"rounds by launch {sorted(rounds)[:5]}, inputs by round {sorted(lengths)[:5]}; the kit has {inputs}",
        )
    if model.outputs is None or len(model.outputs) != examples:
        _refuse(
            f"The outputs of {model.name!r} are not those of the kit's examples.",
            f"{len(model.outputs or [])} of {examples}",
        )
    widths = {len(row) for row in model.outputs}
    if len(widths) != 1 or 0 in widths or (width is not None and widths != {width}):
        _refuse(f"The outputs of {model.name!r} have a wrong shape.", f"{sorted(widths)[:5]} numbers, expected {width}")
    if not np.isfinite(np.asarray(model.outputs, dtype=np.float32)).all():
        _refuse(f"An output of {model.name!r} is too large for float32.", model.name)


def _refuse(what: str, value: object) -> NoReturn:
    raise UsageError(what, value=value, fix=_AGAIN)
