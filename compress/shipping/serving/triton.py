"""``--layout triton``: a model repository for NVIDIA's Triton, with the tokenizer and both of them as one ensemble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from compress.artifact import Graph, Kind, TensorSpec
from compress.errors import ModelError, UsageError
from compress.reading import read_json
from compress.report.card import Load
from compress.runtimes.trt_plan import PlanRecord, read_record
from compress.shipping.layouts import Laid, Layout
from compress.shipping.plain import derive, variant_of
from compress.shipping.serving.bundling import program, template
from compress.shipping.serving.kserve import pinned
from compress.shipping.serving.sizing import Sizing, batch_matters, find_sizing, served_name
from compress.shipping.shipment import Shipment

_TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_TOKENIZER_FILES = ("tokenizer.json", "config.json")
_SHARE_OF_A_BATCH = 10
"""A request waits for company at most this part of the time that the best batch takes."""


class TritonLayout(Layout):
    """``models/NAME`` (ONNX Runtime or TensorRT), ``NAME_tokenizer`` (Python) and ``NAME_text`` (ensemble)."""

    name: ClassVar[str] = "triton"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx", "tensorrt"})
    what: ClassVar[str] = "model repository for NVIDIA's Triton, with tokenizer and ensemble"

    def write(self, shipment: Shipment, out: Path) -> Laid:
        source, name = shipment.artifact, served_name(shipment)
        graph = source.manifest.graphs["model"]
        engine = source.kind == "tensorrt"
        alone = not engine and batch_matters(source.file())
        runtimes, device = (["tensorrt"], "cuda") if engine else (["onnxruntime"], "cpu")
        sizing = find_sizing(shipment, runtimes, device, alone=alone)
        most = _largest(read_record(source, "model")) if engine else sizing.largest
        texts = graph.inputs[0].name == "input_ids"
        places = _places(source.manifest.files, graph.file, name)
        for file, place in places.items():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / file, out / place)
        made = derive(source, out, tuple(places.values()), layout=self.name, graph=places[graph.file])
        models, labels = out / "models", [str(label) for label in source.manifest.task["labels"]]
        _write(models / name / "config.pbtxt", model_config(name, graph, sizing, most, engine=engine))
        if labels:
            _write(models / name / "labels.txt", _lines(labels))
        if texts:
            self._write_text(shipment, models, name, most, labels)
        _write(out / "serve.sh", template("serve.sh"))
        (out / "serve.sh").chmod(0o755)
        install = f"RUN pip install --no-cache-dir tokenizers=={pinned()['tokenizers']}\n" if texts else ""
        backends = "TensorRT" if engine else "ONNX Runtime"
        backends += " and Python backends" if texts else " backend"
        _write(out / "Dockerfile", template("triton.Dockerfile", install=install, backends=backends))
        left_out = [] if sizing.per_s else [f"a measured batch in config.pbtxt: {sizing.batch_source}"]
        loads = _loads(f"{name}_text" if texts else name, texts)
        return Laid(tuple(loads), (variant_of(made, shipment.step),), tuple(left_out))

    def _write_text(self, shipment: Shipment, models: Path, name: str, most: int, labels: list[str]) -> None:
        source = shipment.artifact
        graph, version = source.manifest.graphs["model"], models / f"{name}_tokenizer" / "1"
        tokens = [_tensor(spec, ()) for spec in graph.inputs]
        text = template("triton_tokenizer.pbtxt", name=name, max_batch=most, outputs=",\n".join(tokens))
        _write(version.parent / "config.pbtxt", text)
        _write(version / "model.py", program("triton_tokenizer", "", folder="compress.shipping.serving"))
        _write(version / "encoding.py", program("encoding", ""))
        for file in _TOKENIZER_FILES:
            if (source.path / file).is_file():
                shutil.copyfile(source.path / file, version / file)
        task = source.manifest.task | {"padding": _padding(source.path)}
        _write(version / "task.json", json.dumps(task, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        logits = graph.outputs[0]
        ensemble = template(
            "triton_text.pbtxt",
            name=name,
            max_batch=most,
            logits=json.dumps(logits.name),
            outputs=_tensor(logits, labels),
            tokens_out=_maps("output_map", graph.inputs),
            tokens_in=_maps("input_map", graph.inputs),
        )
        _write(models / f"{name}_text" / "config.pbtxt", ensemble)
        (models / f"{name}_text" / "1").mkdir()
        _write(
            models / f"{name}_text" / "1" / "README", "Triton wants a folder for the version, also of an ensemble.\n"
        )
        if labels:
            _write(models / f"{name}_text" / "labels.txt", _lines(labels))


def _places(files: Iterable[str], graph: str, name: str) -> dict[str, str]:
    """Say where each file of the artifact goes: what belongs to the graph into the model's folder, the rest stays."""
    version, places = f"models/{name}/1", {}
    for file in files:
        if file == graph or file == f"{graph}.json":
            places[file] = (
                f"{version}/{file.replace(graph, 'model.plan' if graph.endswith('.engine') else 'model.onnx')}"
            )
        elif file.endswith((".data", ".onnx_data", ".bin")):
            places[file] = f"{version}/{file}"
        else:
            places[file] = file
    return places


def _largest(record: PlanRecord | None) -> int:
    """Return the largest batch of an engine's profile.

    Raises:
        UsageError: Triton cannot run the engine.
        ModelError: it has no record.
    """
    if record is None:
        raise ModelError("The engine has no record of what it was built for.", fix="Build it again with `build`.")
    if record.library != "tensorrt" or record.strip_plan:
        why = "holds no weights (strip_plan)" if record.strip_plan else f"was built by {record.library}"
        raise UsageError(
            "Triton's TensorRT backend runs complete engines of TensorRT.",
            value=f"this one {why}",
            fix="Build it with `library: tensorrt`, or ship the ONNX step for ONNX Runtime.",
        )
    return min(next(iter(shape["max"])) for shape in record.profiles[0].values())


def model_config(name: str, graph: Graph, sizing: Sizing, most: int, *, engine: bool) -> str:
    """Return ``config.pbtxt`` of the model itself; ``most`` examples are the largest batch that it takes."""
    best, delay = min(sizing.batch, most), (sizing.batch_us or 0) // _SHARE_OF_A_BATCH
    if most == 1:
        batching = ""
    elif best == 1 and sizing.per_s:
        batching = "# No dynamic_batching: one at a time was fastest. Batches that a client makes run as they come.\n"
    else:
        preferred = f"preferred_batch_size: [ {best} ], " if best > 1 else ""
        batching = (
            f"# A request waits for company at most 1/{_SHARE_OF_A_BATCH} of the time of the best batch.\n"
            f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {delay} }}\n"
        )
    parameters = ""
    if not engine:
        threads = max(1, (sizing.threads or 0) // sizing.streams) if sizing.threads else 0
        parameters = "# 0 threads = every core.\n" + "".join(
            f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}\n'
            for key, value in (("intra_op_thread_count", threads), ("inter_op_thread_count", 1))
        )
    return template(
        "triton_model.pbtxt",
        name=name,
        backend="tensorrt" if engine else "onnxruntime",
        max_batch=most,
        batch_source=sizing.batch_source,
        inputs=",\n".join(_tensor(spec, ()) for spec in graph.inputs),
        outputs=_tensor(graph.outputs[0], ("labels",)),
        kind="KIND_GPU" if engine else "KIND_CPU",
        instances=sizing.streams,
        batching=batching,
        parameters=parameters,
    )


def _tensor(spec: TensorSpec, labels: Iterable[str]) -> str:
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in spec.shape[1:])
    named = ', label_filename: "labels.txt"' if any(True for _ in labels) else ""
    return f"  {{ name: {json.dumps(spec.name)}, data_type: {_TYPES[spec.dtype]}, dims: [ {dims} ]{named} }}"


def _maps(field: str, specs: Iterable[TensorSpec]) -> str:
    names = [json.dumps(spec.name) for spec in specs]
    return "\n".join(f"      {field} {{ key: {name}, value: {name} }}" for name in names)


def _padding(folder: Path) -> int:
    """Return the id that the tokenizer of a folder pads with."""
    tokens = read_json(folder / "tokenizer.json")
    config: Any = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    padding = config.get("pad_token", "[PAD]")
    wanted = padding.get("content") if isinstance(padding, dict) else padding
    added = {each["content"]: each["id"] for each in tokens.get("added_tokens", ())}
    return int(added.get(wanted, 0))


def _loads(name: str, texts: bool) -> list[Load]:
    found = [Load("sh", "FOLDER/serve.sh    # where `tritonserver` is; http://127.0.0.1:8000, HOST says otherwise")]
    if texts:
        body = (
            '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["please cancel my order"]}]}'
        )
        ask = f"curl http://127.0.0.1:8000/v2/models/{name}/infer -d '{body}'"
        found.append(Load("sh", ask))
    return found


def _lines(labels: Iterable[str]) -> str:
    return "".join(" ".join(label.split()) + "\n" for label in labels)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
