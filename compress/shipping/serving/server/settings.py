"""What ``settings.json`` says, and the folder it stands in."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
"""The bundle: settings.json, artifact.json and what they name."""


class BadSettings(Exception):
    """The server cannot start with these settings."""


@dataclass(frozen=True)
class Settings:
    """How the server runs.

    Attributes:
        model_name: in the paths of requests.
        host: address that it listens on; only this machine can reach 127.0.0.1.
        http_port: of everything: requests, health, metrics.
        batch: examples that run together at most, all of one length.
        streams: batches that run at once.
        threads: of the processor, all streams together; 0 = every core that the process may use.
        queue: examples that wait at most; what comes on top is answered with 503.
        grace_s: seconds that requests in flight have after SIGTERM.
    """

    model_name: str
    host: str = "127.0.0.1"
    http_port: int = 8080
    batch: int = 1
    streams: int = 1
    threads: int = 0
    queue: int = 4096
    grace_s: int = 30


def read_settings(path: Path, **over: Any) -> Settings:
    """Read a settings file.

    Args:
        path: of the file.
        **over: what stands in the place of the file's, by key.

    Raises:
        BadSettings: it is none, or has keys or values that make no sense.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) | over
    except (OSError, TypeError, ValueError) as error:
        raise BadSettings(f"{path} cannot be read: {error}") from error
    types = {field.name: str if field.type == "str" else int for field in fields(Settings)}
    least = {"http_port": 1, "batch": 1, "streams": 1, "queue": 1}
    for name, value in found.items():
        if name not in types:
            raise BadSettings(f"{path}: unknown key {name!r}; known are {', '.join(types)}")
        if type(value) is not types[name] or (isinstance(value, int) and value < least.get(name, 0)):
            raise BadSettings(f"{path}: {name} is {value!r}")
    if "model_name" not in found:
        raise BadSettings(f"{path}: model_name is missing")
    return Settings(**found)


def read_manifest() -> dict[str, Any]:
    """Read ``artifact.json``: labels, longest input, the graph's file and its inputs."""
    manifest: dict[str, Any] = json.loads((HOME / "artifact.json").read_text(encoding="utf-8"))
    return manifest
