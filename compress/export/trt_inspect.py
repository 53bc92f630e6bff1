"""What an engine really runs: precision of its layers, conversions, attention, memory, from TensorRT's inspector.

The inspector writes JSON of two schemas: up to TensorRT 10 with ``Bindings`` and ``Format/Datatype``, from 11 with
``I/O Tensors`` and two fields, ``Format`` and ``Datatype`` (also spelled ``DataType``). Source: NVIDIA's "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
_COPYING = frozenset({"Cast", "Move", "Copy"})
_ATTENTION = frozenset({"Softmax", "Attention"})


class EngineSummary(BaseModel):
    """An engine in numbers; bytes on the device.

    Attributes:
        layers: all of them, as the engine counts.
        detailed: whether types were listed; without them only names are known.
        precisions: layers that compute, by the narrowest type that they read; int8, fp8, bf16, fp16, fp32.
        reformats: layers that only change a memory layout.
        casts: layers that only change a type or copy.
        quantizers: layers that only quantize or dequantize.
        attention: attention blocks of the ONNX file.
        fused_attention: layers that compute a whole attention block.
        weights_bytes: weights, where the engine tells.
        activation_bytes: activations and scratch of one execution context, the largest of all profiles.
        profile_activation_bytes: the same for each profile.
        streamable_bytes: weights that could stay on the host and be streamed; 0 unless built for it.
    """

    model_config = ConfigDict(frozen=True)

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


def inspect_file(engine_file: Path, onnx_file: Path) -> EngineSummary | str:
    """Load an engine that was just built here and return its summary, or why there is none.

    Args:
        engine_file: our own work, so a version-compatible one may run the code that it carries.
        onnx_file: what it was built from; weights in external files are not loaded.
    """
    if why_no_cuda():
        return "no GPU"
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
        memory = {
            "weights_bytes": engine.get_engine_stat(trt.module.EngineStat.TOTAL_WEIGHTS_SIZE),
            "activation_bytes": engine.device_memory_size_v2,
            "profile_activation_bytes": tuple(engine.get_device_memory_size_for_profile_v2(i) for i in profiles),
            "streamable_bytes": engine.streamable_weights_size,
        }
    return summarise(json.loads(text), operators_of(onnx_file)).model_copy(update=memory)


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
    if converting and converting <= _QUANTIZING | {"Cast"}:
        return "cast" if converting == {"Cast"} else "quantizer"
    fused = name.removeprefix(_FUSED).partition("_")[0] if name.startswith(_FUSED) else ""
    return "cast" if fused and set(_TOKEN.findall(fused)) <= _COPYING else ""


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
    """Return the narrowest type of a layer's inputs and weights; None where it reads neither floats nor INT8."""
    texts = [_type_text(tensor) for tensor in layer.get("Inputs", ())]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        texts.append(str(weights.get("Type", "")))
    found = {_precision(text) for text in texts}
    return next((name for name in PRECISIONS if name in found), None)


def _type_text(tensor: Mapping[str, Any]) -> str:
    return str(next((tensor[key] for key in ("Datatype", "DataType", "Format/Datatype") if key in tensor), ""))


def _precision(text: str) -> str | None:
    return next((name for name, pattern in PRECISIONS.items() if pattern.search(text)), None)
