"""The model as KServe's server calls it: from a request to a response."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from uuid import uuid4

import numpy as np
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput, ModelNotReady
from prometheus_client import Gauge, Histogram

from compress.shipping.serving.server.batching import Batcher, Busy
from compress.shipping.serving.server.encoding import PAIR, TEXT, BadRequest, Encoder, Example
from compress.shipping.serving.server.settings import HOME, Settings, read_manifest

BATCHES = Histogram("model_batch_rows", "examples that ran together", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
WAITING = Gauge("model_waiting_rows", "examples that wait for the model")
_LONGEST_REASON = 300
"""Characters of an error: it may repeat what was sent."""
DATATYPES = {"int64": "INT64", "float32": "FP32"}
_TYPES: dict[str, frozenset[type]] = {"BYTES": frozenset({str, bytes})}
_TYPES |= dict.fromkeys(("INT64", "INT32", "INT16", "INT8", "UINT8"), frozenset({int}))
_TYPES |= dict.fromkeys(("FP32", "FP64", "FP16"), frozenset({int, float}))
"""Datatype of the protocol that is taken -> what may stand in a request's JSON."""


class Classifier(Model):  # type: ignore[misc]
    """One ONNX model with its tokenizer and labels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_name)
        self._settings = settings
        self._manifest = read_manifest()
        graph = self._manifest["graphs"]["model"]
        self._file = HOME / graph["file"]
        self._encoder = Encoder(self._file.parent, self._manifest["task"], graph["inputs"])

    def load(self) -> bool:
        """Open the model and run its golden inputs once, so that the first request waits for nothing."""
        options = onnxruntime.SessionOptions()
        threads = self._settings.threads or _cores()
        options.intra_op_num_threads = max(1, threads - self._settings.streams + 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
            (logits,) = session.run(["logits"], {name: arrays[name] for name in names})
            return np.asarray(logits, dtype=np.float32)

        golden = self._manifest.get("golden")
        if golden:
            types = {name: each["dtype"] for name, each in self._encoder.inputs.items()}
            run({name: np.array(rows[:1], dtype=types[name]) for name, rows in golden["inputs"].items()})
        self._batcher = Batcher(
            run,
            batch=self._settings.batch,
            streams=self._settings.streams,
            queue=self._settings.queue,
            seen=BATCHES.observe,
        )
        WAITING.set_function(lambda: self._batcher.waiting)
        self.ready = True
        return True

    async def preprocess(self, payload: Any, headers: Any = None) -> tuple[InferRequest, list[Example]]:
        """Turn a request into examples.

        Raises:
            InvalidInput: it cannot be answered (400).
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput(f"Ask with the Open Inference Protocol: POST /v2/models/{self.name}/infer.")
        try:
            tensors = {tensor.name: _array(tensor, self._settings.queue) for tensor in payload.inputs}
            if len(tensors) != len(payload.inputs):
                raise BadRequest("An input stands there twice.")
            examples = await asyncio.to_thread(self._encoder.examples, tensors)
        except BadRequest as error:
            raise InvalidInput(str(error)[:_LONGEST_REASON]) from None
        return payload, examples

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Run the examples, together with those of other requests.

        Raises:
            ModelNotReady: too many wait (503).
        """
        request, examples = payload
        try:
            return request, await self._batcher.ask(examples)
        except Busy as error:
            raise ModelNotReady(self.name, str(error)) from None

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Turn logits into ``logits``, ``label`` and ``score``."""
        request, logits = result
        outputs = []
        for name, array in self._encoder.answers(logits).items():
            datatype = "BYTES" if array.dtype == object else "FP32"
            outputs.append(InferOutput(name, list(array.shape), datatype, data=array))
        return InferResponse(
            request.id or str(uuid4()),
            self.name,
            outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the inputs for ``/v2/models/NAME``: texts, or what the model itself takes."""
        texts = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in (TEXT, PAIR) if self._encoder.texts]
        return texts + [_described(each) for each in self._manifest["graphs"]["model"]["inputs"]]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the outputs for ``/v2/models/NAME``."""
        several = self._encoder.problem == "multi_label"
        outputs = [_described(self._manifest["graphs"]["model"]["outputs"][0])]
        if self._encoder.problem != "regression":
            outputs.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
        width = [len(self._encoder.labels)] if several else []
        return [*outputs, {"name": "score", "datatype": "FP32", "shape": [-1, *width]}]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _described(each: dict[str, Any]) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in each["shape"]]
    return {"name": each["name"], "datatype": DATATYPES[each["dtype"]], "shape": shape}


def _array(tensor: Any, most: int) -> np.ndarray:
    """Return the values of one input in their shape; what is too much is refused before anything is made of it.

    Raises:
        BadRequest: type, shape and values do not fit each other, or there are more than ``most`` rows.
    """
    types = _TYPES.get(tensor.datatype)
    if types is None:
        raise BadRequest(f"{tensor.name!r} has the type {tensor.datatype!r}, not {', '.join(_TYPES)}.")
    if tensor.shape and tensor.shape[0] > most:
        raise BadRequest(f"{tensor.shape[0]:,} rows in one request; at most {most:,} are taken.")
    if any(size < 0 for size in tensor.shape):
        raise BadRequest(f"{tensor.name!r} has the shape {tensor.shape}.")
    given = _flat(tensor)
    if given is not None and not {type(value) for value in given} <= types:
        raise BadRequest(f"{tensor.name!r} holds other values than its type {tensor.datatype} says.")
    try:
        array: np.ndarray = tensor.as_numpy()
    except Exception:  # wrong sizes, numbers out of range, a length in front of bytes that are not there
        raise BadRequest(f"{tensor.name!r}: values, type and shape {tensor.shape} do not fit each other.") from None
    return array


def _flat(tensor: Any) -> list[Any] | None:
    """Return the values that stand in the JSON, out of whatever lists they are nested in; None where they are binary.

    Raises:
        BadRequest: the lists are of different lengths or depths.
    """
    if tensor.data is None:
        return None
    try:
        return list(np.asarray(tensor.data, dtype=object).reshape(-1))
    except ValueError:
        raise BadRequest(f"{tensor.name!r} holds lists of different lengths.") from None
