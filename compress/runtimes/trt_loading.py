"""Loading an engine: the right library, refused where it cannot fit, with its weights."""

from __future__ import annotations

import importlib.util
import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from compress.artifact import Artifact
from compress.errors import IntegrityError, ModelError
from compress.runtimes.trt_device import present_device
from compress.runtimes.trt_log import logged
from compress.runtimes.trt_plan import (
    HEADER_BYTES,
    RTX,
    Here,
    PlanRecord,
    read_header,
    read_record,
    refuse_foreign,
)

MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": RTX, "tensorrt_rtx_bindings": RTX}
"""Import names that offer the API, most capable first -> the library they belong to."""
SOURCE = "model.onnx"
"""The file that an engine was built from; it travels with the engine."""
TRUST = "MCOMPRESS_TRUST_ENGINES"
"""Set to 1, this environment variable lets engines run the host code that they carry."""


class Loaded(NamedTuple):
    """A deserialized engine; its runtime has to live as long as it does."""

    trt: Any
    runtime: Any
    engine: Any


def load_engine(artifact: Artifact, graph: str = "model") -> Loaded:
    """Load one engine of an artifact, with its weights.

    Raises:
        ModelError: it was built by another library or version or on another GPU, or TensorRT cannot read it.
    """
    path, record = artifact.file(graph), read_record(artifact, graph)
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    trt, library = _module_for(record, start)
    device = present_device()
    refuse_foreign(record, start, Here(library, trt.__version__, device.name, device.compute_capability or ""))
    with logged(trt) as (logger, messages):
        runtime = trt.Runtime(logger)
        if record is not None and record.version_compatible and not record.exclude_lean_runtime:
            _allow_host_code(runtime, path.name)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelError(
                f"{library} {trt.__version__} cannot read this engine.",
                value="; ".join(messages[-3:]),
                fix="Build it again here, from the model.onnx beside it: a plan fits one TensorRT and one GPU.",
            )
        if record is not None and record.strip_plan:
            _check_source(artifact, record)
            _put_weights_back(trt, engine, logger, artifact.path / SOURCE, messages)
    return Loaded(trt, runtime, engine)


def installed() -> list[str]:
    """Return the import names of ``MODULES`` that are here. Imports nothing."""
    return [name for name in MODULES if importlib.util.find_spec(name) is not None]


def _module_for(record: PlanRecord | None, start: bytes) -> tuple[Any, str]:
    """Return the installed module of the library that a plan belongs to.

    Where there is none, the first is returned: the refusal says what is here.
    """
    header = read_header(start)
    wanted = record.library if record is not None else header[0] if header else ""
    found = installed()
    name = next((name for name in found if MODULES[name] == wanted), found[0])
    return import_module(name), MODULES[name]


def _allow_host_code(runtime: Any, name: str) -> None:
    """A version-compatible plan carries a runtime of its own: a library that is run on this machine."""
    if os.environ.get(TRUST) != "1":
        raise ModelError(
            "This version-compatible engine carries program code for the host, and running it has to be allowed.",
            value=name,
            fix=f"If you trust its maker, set {TRUST}=1; or build it with `exclude_lean_runtime: true`.",
        )
    runtime.engine_host_code_allowed = True


def _check_source(artifact: Artifact, record: PlanRecord) -> None:
    found = artifact.manifest.files.get(SOURCE)
    if found is None or found.sha256 != record.onnx_sha256:
        raise IntegrityError(
            "This engine was stored without its weights, and the ONNX file that holds them is not beside it.",
            value=f"{SOURCE}: sha256 {found.sha256[:12] if found else 'none'}, wanted {record.onnx_sha256[:12]}",
            fix="Put back the model.onnx that it was built from, or build the engine again.",
        )


def _put_weights_back(trt: Any, engine: Any, logger: Any, onnx_file: Path, messages: list[str]) -> None:
    """Refit an engine that was stored without its weights from the ONNX file that it was built from."""
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not parser_refitter.refit_from_file(str(onnx_file)) or not refitter.refit_cuda_engine():
        raise ModelError(
            "The weights of this engine cannot be put back.",
            value="; ".join(messages[-3:]) or onnx_file.name,
            fix="The engine needs the very model.onnx that it was built from; or build it without `strip_plan`.",
        )
