"""``--layout kserve``: a folder that answers the Open Inference Protocol over HTTP, through KServe's own server.

The folder needs Python, ``requirements.txt`` and nothing of ours. docs/decisions/0011 says why this server.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from compress.artifact import MANIFEST, Kind
from compress.errors import UsageError
from compress.report.card import Load
from compress.runtimes.onnxruntime import NO_BF16
from compress.shipping.layouts import Laid, Layout
from compress.shipping.plain import copy, variant_of
from compress.shipping.serving.bundling import program, program_names, template
from compress.shipping.serving.memory import peak_bytes
from compress.shipping.serving.sizing import Sizing, batch_matters, find_sizing, served_name
from compress.shipping.shipment import Shipment

SERVER_BYTES = 192 * 2**20
"""Resident memory of the server with nothing loaded, as ``benchmarks/serving.py`` measures it, rounded up."""
_STEP = 16 * 2**20
_ANY = 320 * 2**20
"""What stands there where the model's memory is not known."""
_UNKNOWN = "TO BE SET: "
_PATIENCE_S = 20
"""Seconds of work that wait at most: less than ``grace_s``, so that they are done after SIGTERM."""
_MOST, _UNMEASURED = 4096, 256
"""Examples that wait at most; where nothing was measured."""


class KserveLayout(Layout):
    """The artifact as it was measured, and around it server, settings, requirements and Kubernetes manifests."""

    name: ClassVar[str] = "kserve"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    what: ClassVar[str] = "server of the Open Inference Protocol, with manifests for Kubernetes"

    def write(self, shipment: Shipment, out: Path) -> Laid:
        source, name = shipment.artifact, served_name(shipment)
        if "bf16" in source.traits:
            raise UsageError(
                "The server runs models on the CPU, and this one is for a GPU.",
                value=NO_BF16,
                fix="Name a step in float32, FP16 or INT8, or use `--layout triton`.",
            )
        copy(source.path, out, (*source.manifest.files, MANIFEST))
        sizing = find_sizing(shipment, ["onnxruntime"], "cpu", alone=batch_matters(source.file()))
        (out / "settings.json").write_text(json.dumps(settings(name, sizing), indent=1) + "\n", encoding="utf-8")
        (out / "server").mkdir()
        for module in program_names():
            (out / "server" / f"{module}.py").write_text(program(module, "server"), encoding="utf-8")
        pins = pinned()
        (out / "requirements.txt").write_text(template("requirements.txt", **pins), encoding="utf-8")
        (out / "constraints.txt").write_text(template("constraints.txt"), encoding="utf-8")
        (out / "Dockerfile").write_text(template("kserve.Dockerfile"), encoding="utf-8")
        longest = shipment.max_length or 1
        memory = peak_bytes(
            source.file(),
            source.manifest.graphs["model"].inputs,
            {"batch": sizing.batch, "sequence": longest},
            streams=sizing.streams,
            threads=max(1, (sizing.threads or 1) - sizing.streams + 1),
        )
        values = _values(name, sizing, memory, longest)
        for file in ("kubernetes.yaml", "inferenceservice.yaml"):
            (out / file).write_text(template(file, **values), encoding="utf-8")
        unknown = tuple(f"{key} in kubernetes.yaml, {values[f'{key}_source']}" for key in _open(values))
        return Laid(tuple(_loads(name, shipment)), (variant_of(source, shipment.step),), unknown)


def settings(name: str, sizing: Sizing) -> dict[str, Any]:
    """Return ``settings.json``: everything that the server reads, its defaults spelled out."""
    return {
        "model_name": name,
        "host": "127.0.0.1",
        "http_port": 8080,
        "batch": sizing.batch,
        "streams": sizing.streams,
        "threads": sizing.threads or 0,
        "queue": min(_MOST, max(sizing.batch, int(sizing.per_s * _PATIENCE_S))) if sizing.per_s else _UNMEASURED,
        "grace_s": 30,
    }


def pinned() -> dict[str, str]:
    """Return the versions that the server was tested with: distribution -> version."""
    text = (resources.files("compress.shipping.serving") / "templates" / "constraints.txt").read_text(encoding="utf-8")
    pairs = (line.partition("==") for line in text.splitlines() if "==" in line)
    return {name: version for name, _, version in pairs if name in {"kserve", "numpy", "onnxruntime", "tokenizers"}}


def memory_request(model_bytes: int) -> int:
    """Return the bytes that a container asks for: the server's and the model's, in steps of 16 MiB."""
    return -(-(SERVER_BYTES + model_bytes) // _STEP) * _STEP


def _values(name: str, sizing: Sizing, memory: int | None, longest: int) -> dict[str, str]:
    request = memory_request(memory or _ANY)
    batch = f"{sizing.batch} inputs{f' of {longest} tokens' if longest > 1 else ''}"
    at_once = f", {sizing.streams} times at once" if sizing.streams > 1 else ""
    measured = f"{SERVER_BYTES // 2**20} MiB for the server and what the model took for {batch}{at_once}, when exported"
    return {
        "name": name,
        "cpu": str(sizing.threads or 1),
        "cpu_source": f"threads in settings.json, as measured: {sizing.batch_source}"
        if sizing.threads
        else f"{_UNKNOWN}{sizing.batch_source}",
        "memory": f"{request // 2**20}Mi",
        "memory_limit": f"{request * 3 // 2 // 2**20}Mi",
        "memory_source": measured if memory else f"{_UNKNOWN}ONNX Runtime was not there to measure it",
    }


def _open(values: dict[str, str]) -> list[str]:
    """Return what is left to be set."""
    return [key for key in ("cpu", "memory") if values[f"{key}_source"].startswith(_UNKNOWN)]


def _loads(name: str, shipment: Shipment) -> list[Load]:
    texts = shipment.artifact.manifest.graphs["model"].inputs[0].name != "pixel_values"
    start = (
        "python -m venv server-env && server-env/bin/pip install -r FOLDER/requirements.txt\n"
        '(cd FOLDER && "$OLDPWD/server-env/bin/python" -m server)'
        "    # http://127.0.0.1:8080; --host and --http_port say otherwise"
    )
    body = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["please cancel my order"]}]}'
    ask = f"curl http://127.0.0.1:8080/v2/models/{name}/infer -H 'content-type: application/json' -d '{body}'"
    return [Load("sh", start), *([Load("sh", ask)] if texts else [])]
