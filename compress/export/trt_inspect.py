"""What an engine really runs: precision of its layers, conversions, attention, memory, from TensorRT's inspector.

Where there is no GPU, the builder's own listing of the finished engine says the same.

The inspector writes JSON of two schemas: up to TensorRT 10 with ``Bindings`` and ``Format/Datatype``, from 11 with
``I/O Tensors`` and two fields, ``Format`` and ``Datatype`` (also spelled ``DataType``). Source: NVIDIA's "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compress.export.trt_api import load_trt, logged
from compress.runtimes.cuda import why_no_cuda

PRECISIONS = {
    "int8": re.compile(r"int8", re.IGNORECASE),
    "fp8": re.compile(r"fp8|float8", re.IGNORECASE),
    "bf16": re.compile(r"bf16|bfloat16", re.IGNORECASE),
    "fp16": re.compile(r"fp16|half|float16", re.IGNORECASE),
    "fp32": re.compile(r"fp32|float", re.IGNORECASE),
}
"""Narrowest first; each is looked for after those above it."""
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_TOKEN = re.compile(r"[A-Z][a-z]*")
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TYPES = {"Cast": "cast", "Quantize": "quantizer", "Dequantize": "quantizer"}
_FUSED = "__myl_"
"""What the name of a generated kernel begins with; the operators that it fuses follow, abbreviated."""
_MOVING = frozenset({"Conc", "Copy", "Move", "Repl", "Resh", "Slic", "Tran"})
_ROUNDING = frozenset({"Mul", "Min", "Max", "Roun", "Cast"}) | _MOVING
_LISTS = ("Inputs", "Constants", "Outputs")
_FIELDS = re.compile(r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|TacticName|Metadata): (?![^{]*\})")
_DATATYPE = re.compile(r"(?:Format/)?Datatype: ([^,}]+)")
_MEMORY = {"weights_bytes": "Total Weights Memory", "activation_bytes": "Total Activation Memory"}
_ATTENTION = frozenset({"Softmax", "Attention"})


class EngineSummary(BaseModel):
    """An engine in numbers; bytes on the device.

    Attributes:
        source: who told: the inspector of the loaded engine, or the builder when it had finished.
        layers: all of them, as the engine counts.
        detailed: whether types were listed; without them only names are known.
        precisions: layers that compute, by the narrowest type that they read; int8, fp8, bf16, fp16, fp32.
        reformats: layers that only change a memory layout or copy.
        casts: layers that only change a type.
        quantizers: layers that only quantize or dequantize.
        attention: attention blocks of the ONNX file.
        fused_attention: layers that compute a whole attention block.
        weights_bytes: weights, where the engine tells.
        activation_bytes: activations and scratch of one execution context, the largest of all profiles.
        profile_activation_bytes: the same for each profile.
        streamable_bytes: weights that could stay on the host and be streamed; 0 unless built for it.
    """

    model_config = ConfigDict(frozen=True)

    source: Literal["inspector", "builder"] = "inspector"
    layers: int
    detailed: bool
    precisions: dict[str, int]
    reformats: int
    casts: int
    quantizers: int
    attention: int
    fused_attention: int
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    profile_activation_bytes: tuple[int, ...] = ()
    streamable_bytes: int | None = None


def inspect_engine(engine_file: Path, onnx_file: Path, listing: Sequence[str]) -> EngineSummary | str:
    """Return the summary of an engine that was just built here, or why there is none.

    With a GPU the engine is loaded and its inspector asked. Without one it cannot be loaded: then what the builder
    listed when it had finished is taken.

    Args:
        engine_file: our own work, so a version-compatible one may run the code that it carries.
        onnx_file: what it was built from; weights in external files are not loaded.
        listing: what the builder told of its layers and memory.
    """
    no_gpu = why_no_cuda()
    if not no_gpu:
        return _inspect(engine_file, onnx_file)
    layers = [text for text in listing if text.startswith("Layers:")]
    if not layers:
        return "no GPU, and the builder listed no layers"
    found = summarise(parse_listing(layers[-1]), operators_of(onnx_file))
    memory = {name: _last_number(listing, title) for name, title in _MEMORY.items()}
    return found.model_copy(update={"source": "builder", **memory})


def _inspect(engine_file: Path, onnx_file: Path) -> EngineSummary | str:
    trt = load_trt()
    with logged(trt) as (logger, messages):
        runtime = trt.module.Runtime(logger)
        runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if engine is None:
            return f"{trt.library} {trt.version} could not load it: {'; '.join(messages[-2:])}"
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.module.LayerInformationFormat.JSON)
        profiles = range(engine.num_optimization_profiles)
        told = hasattr(trt.module, "EngineStat")  # not in every release of TensorRT 10
        memory = {
            "weights_bytes": engine.get_engine_stat(trt.module.EngineStat.TOTAL_WEIGHTS_SIZE) if told else None,
            "activation_bytes": engine.device_memory_size_v2,
            "profile_activation_bytes": tuple(engine.get_device_memory_size_for_profile_v2(i) for i in profiles),
            "streamable_bytes": engine.streamable_weights_size,
        }
    return summarise(json.loads(text), operators_of(onnx_file)).model_copy(update=memory)


def parse_listing(text: str) -> dict[str, Any]:
    """Return the layers of a builder's message in the form of the inspector's JSON.

    A layer is one line: ``Name: ..., LayerType: ..., Inputs: [ { ..., Datatype: Half, ... }], Constants: [...],
    Outputs: [...], TacticName: ..., Metadata: ...``. As TensorRT-RTX 1.7 writes it.
    """
    layers = []
    for line in text.split("\n"):
        parts = _FIELDS.split(line)
        if parts[0] == "" and len(parts) > 1:
            fields = dict(zip(parts[1::2], parts[2::2], strict=True))
            layers.append({name: _tensors(value) if name in _LISTS else value for name, value in fields.items()})
    return {"Layers": layers}


def _tensors(text: str) -> list[dict[str, str]]:
    return [{"Datatype": type_.strip()} for type_ in _DATATYPE.findall(text)]


def _last_number(listing: Sequence[str], title: str) -> int | None:
    found = [int(match[1]) for text in listing if (match := re.match(rf"{title}: (\d+) bytes", text))]
    return found[-1] if found else None


def operators_of(onnx_file: Path) -> dict[str, str]:
    """Return node name -> operator of an ONNX file: the inspector names the nodes that a layer comes from."""
    import onnx

    graph = onnx.load(onnx_file, load_external_data=False).graph
    return {node.name: node.op_type for node in graph.node}


def summarise(info: Mapping[str, Any], operators: Mapping[str, str]) -> EngineSummary:
    """Return the summary of the inspector's JSON, of either schema.

    Args:
        info: the parsed JSON.
        operators: node name -> operator of the ONNX file.
    """
    layers = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in info.get("Layers", ())]
    origins = [_origins(layer, operators) for layer in layers]
    kinds = [_kind(layer, of) for layer, of in zip(layers, origins, strict=True)]
    reads = [_reads(layer) for layer, kind in zip(layers, kinds, strict=True) if not kind]
    return EngineSummary(
        layers=len(layers),
        detailed=any("Inputs" in layer for layer in layers),
        precisions={name: reads.count(name) for name in PRECISIONS if name in reads},
        reformats=kinds.count("reformat"),
        casts=kinds.count("cast"),
        quantizers=kinds.count("quantizer"),
        attention=sum(operator in _ATTENTION for operator in operators.values()),
        fused_attention=sum(map(_is_fused_attention, layers, origins)),
    )


def _kind(layer: Mapping[str, Any], origins: list[str]) -> str:
    """Return "reformat", "cast" or "quantizer" for a layer that only converts; empty for one that computes."""
    name, type_, converting = str(layer.get("Name", "")), str(layer.get("LayerType", "")), set(origins)
    if type_ == "Reformat" or name.startswith("Reformatting CopyNode"):
        return "reformat"
    if type_ in _TYPES:
        return _TYPES[type_]
    fused = set(_TOKEN.findall(name.removeprefix(_FUSED).partition("_")[0])) if name.startswith(_FUSED) else set()
    if "Roun" in fused and fused <= _ROUNDING:
        return "quantizer"
    if fused and fused <= _MOVING | {"Cast"}:
        return "cast" if "Cast" in fused else "reformat"
    if converting and converting <= _QUANTIZING | {"Cast"}:
        return "cast" if converting == {"Cast"} else "quantizer"
    return ""


def _is_fused_attention(layer: Mapping[str, Any], origins: list[str]) -> bool:
    """Say whether one layer computes a softmax and the products on both sides of it."""
    if any("mha" in str(layer.get(key, "")).lower() for key in ("Name", "TacticName")):
        return True
    return "Attention" in origins or ("Softmax" in origins and origins.count("MatMul") >= 2)


def _origins(layer: Mapping[str, Any], operators: Mapping[str, str]) -> list[str]:
    """Return the operators of the ONNX nodes that a layer comes from."""
    names = dict.fromkeys(name.strip() for name in _ORIGIN.findall(str(layer.get("Metadata", ""))))
    return [operators[name] for name in names if name in operators]


def _reads(layer: Mapping[str, Any]) -> str | None:
    """Return the narrowest type of a layer's inputs and weights; None where it reads neither floats nor INT8.

    A layer that looks up a table has integers as inputs: then its constants count.
    """
    texts = [_type_text(tensor) for tensor in layer.get("Inputs", ())]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        texts.append(str(weights.get("Type", "")))
    constants = [_type_text(tensor) for tensor in layer.get("Constants", ())]
    for found in ({_precision(text) for text in texts}, {_precision(text) for text in constants}):
        if found - {None}:
            return next(name for name in PRECISIONS if name in found)
    return None


def _type_text(tensor: Mapping[str, Any]) -> str:
    return str(next((tensor[key] for key in ("Datatype", "DataType", "Format/Datatype") if key in tensor), ""))


def _precision(text: str) -> str | None:
    return next((name for name, pattern in PRECISIONS.items() if pattern.search(text)), None)
