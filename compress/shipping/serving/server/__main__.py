"""Start the server: ``python -m server [--host ADDRESS] [--http_port PORT]``.

Without an address it listens on this machine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # keep to the threads that were asked for
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports to its makers otherwise

from fastapi.exceptions import RequestValidationError
from kserve import ModelServer, model_server
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from starlette.requests import Request
from starlette.responses import JSONResponse

from compress.shipping.serving.server.model import Classifier
from compress.shipping.serving.server.settings import HOME, BadSettings, Settings, read_settings

_BINARY = "inference-header-content-length"


class OneModelServer(ModelServer):  # type: ignore[misc]
    """KServe's server, on one address, with one model that nobody loads or unloads over HTTP."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(
            http_port=settings.http_port,
            grace_period=settings.grace_s,
            enable_grpc=False,
            enable_latency_logging=False,
            workers=1,
            **options,
        )
        self.http_port, self._host = settings.http_port, settings.host  # with a certificate KServe takes another port
        self.dataplane = StrictDataPlane(model_registry=self.registered_models)
        self.model_repository_extension = FixedRepository(model_registry=self.registered_models)

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host  # KServe writes 0.0.0.0 there and has no option for it
        await super()._serve()


class StrictDataPlane(DataPlane):  # type: ignore[misc]
    """Calls a request that cannot be decoded a bad request, whatever it was that broke the decoder."""

    def decode(self, body: Any, headers: Any, *words: Any, **options: Any) -> Any:
        if isinstance(body, bytes) and _BINARY not in headers:
            raise InvalidInput(f"Send JSON as 'content-type: application/json', or binary tensors with {_BINARY!r}.")
        try:
            if isinstance(body, bytes):  # KServe checks what is JSON alone, and not the header of binary tensors
                head = json.loads(body[: int(headers[_BINARY])])
                tensors = [{"data": []} | tensor for tensor in head["inputs"]]
                InferenceRequest.model_validate(head | {"inputs": tensors})
            return super().decode(body, headers, *words, **options)
        except InvalidInput as error:
            reason = f": {error}" if not isinstance(body, bytes) else ""
        except Exception as error:  # its text may repeat what was sent
            reason = f": {type(error).__name__}"
        raise InvalidInput(f"The request cannot be decoded{reason}.")


class FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses to load and unload (501)."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError("This server has one model, for as long as it runs.")

    unload = load


async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
    """Say in one line what a body lacks, with 400."""
    found: Mapping[str, Any] = next((e for e in error.errors() if "InferenceRequest" in e["loc"]), error.errors()[0])
    place = ".".join(str(part) for part in found["loc"][1:] if part != "InferenceRequest")
    return JSONResponse(
        {"error": f"Not a request of the protocol: {found['msg']} ({place or 'body'})."}, status_code=400
    )


class WithoutTraceback(logging.Filter):
    """What a sender did wrong is one line in the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, InvalidInput | ModelNotFound | ModelNotReady | NotImplementedError):
            reason = " ".join(str(error).split())[:300]
            record.msg, record.args, record.exc_info = "refused: %s", (reason,), None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def settings_from(words: Sequence[str]) -> tuple[Settings, argparse.Namespace]:
    """Read the command line over ``settings.json``."""
    parser = argparse.ArgumentParser(prog="python -m server", allow_abbrev=False, description=__doc__)
    for field in fields(Settings):
        kind = str if field.type == "str" else int
        parser.add_argument(f"--{field.name}", type=kind, help="in the place of the one in settings.json")
    parser.add_argument("--settings", type=Path, default=HOME / "settings.json", help="another settings.json")
    parser.add_argument("--ssl_certfile", help="certificate, for HTTPS")
    parser.add_argument("--ssl_keyfile", help="its key")
    parser.add_argument("--timeout-keep-alive", type=int, default=65, help="seconds for an idle connection")
    parser.add_argument("--log_config_file", help="YAML or JSON for Python's logging; KServe reads it by itself")
    given = parser.parse_args(words)
    own = {field.name: getattr(given, field.name) for field in fields(Settings)}
    over = {name: value for name, value in own.items() if value is not None}
    return read_settings(given.settings, **over), given


def main(words: Sequence[str]) -> int:
    """Serve until SIGTERM; what was accepted by then is answered."""
    try:
        settings, given = settings_from(words)
    except BadSettings as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asyncio.set_event_loop(asyncio.new_event_loop())  # KServe asks for one before it runs its own
    server = OneModelServer(
        settings,
        ssl_certfile=given.ssl_certfile,
        ssl_keyfile=given.ssl_keyfile,
        timeout_keep_alive=given.timeout_keep_alive,
    )
    logging.getLogger("kserve").addFilter(WithoutTraceback())
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)  # two lines for every request
    model_server.app.add_exception_handler(RequestValidationError, refuse)
    model = Classifier(settings)
    model.load()
    print(json.dumps(asdict(settings)), flush=True)
    server.start([model])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
