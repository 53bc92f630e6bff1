"""Build a TensorRT engine from an ONNX file, on the CPU if need be, and write down what went into it.

Without a GPU, TensorRT-RTX gives the same bytes each time. With one, TensorRT chooses kernels by timing them, so
two builds of one model may differ in bytes, and a little in speed. The sidecar ties an engine to its ONNX file by
sha256.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import RunError
from compress.export.signature import traits_of
from compress.export.trt_api import Trt, load_trt, logged
from compress.export.trt_profile import Profile
from compress.runtimes.cuda import why_no_cuda

SIDECAR_SUFFIX = ".json"
MIB = 1024 * 1024
_FOLDERS = re.compile(r"(?:/[\w.+@-]+)+/(?=[\w.+@-])")


def build_engine(
    onnx_file: Path,
    out_file: Path,
    profile: Profile,
    *,
    workspace_bytes: int = 1024 * MIB,
    tf32: bool = False,
    optimization_level: int | None = None,
) -> dict[str, Any]:
    """Build an engine and write it raw to ``out_file``, with ``<out_file>.json`` beside it.

    The network is strongly typed: precision is that of the ONNX file, and nothing else.

    Args:
        onnx_file: float32, FP16, or INT8 with symmetric QuantizeLinear/DequantizeLinear pairs.
        out_file: the engine to write.
        profile: input name -> (min, opt, max) shapes.
        workspace_bytes: scratch memory that a kernel may use on the device.
        tf32: let float32 products round their inputs to TF32 (10-bit mantissa), TensorRT's own default.
        optimization_level: 0 (fast build) to 5 (thorough); None = the library's default.

    Returns:
        The sidecar's contents: library, version, device, precision, TF32, profile, digests, warnings.

    Raises:
        MissingCapabilityError: no TensorRT is installed.
        RunError: the parser or the builder refused; the error carries what TensorRT said.
    """
    trt = load_trt()
    with logged(trt) as (logger, messages):
        builder = trt.module.Builder(logger)
        flag = 1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flag)
        parser = trt.module.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx_file)):
            raise _refused(
                trt, "parse the ONNX file", [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
            )
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, workspace_bytes)
        config.profiling_verbosity = trt.module.ProfilingVerbosity.DETAILED
        (config.set_flag if tf32 else config.clear_flag)(trt.module.BuilderFlag.TF32)
        if optimization_level is not None:
            config.builder_optimization_level = optimization_level
        config.add_optimization_profile(_profile(builder, network, profile))
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _refused(trt, "build the engine", messages)
        out_file.write_bytes(memoryview(plan))
        warnings = sorted({without_folders(message) for message in messages})
    info = {
        "library": trt.library,
        "version": trt.version,
        "device": device_name(),
        "precision": precision_of(onnx_file, tf32),
        "tf32": tf32,
        "optimization_level": optimization_level,
        "workspace_bytes": workspace_bytes,
        "profiles": [{name: dict(zip(("min", "opt", "max"), shapes, strict=True)) for name, shapes in profile.items()}],
        "onnx_sha256": _sha256(onnx_file),
        "plan_sha256": _sha256(out_file),
        "messages": warnings,
    }
    sidecar = out_file.with_name(out_file.name + SIDECAR_SUFFIX)
    sidecar.write_text(json.dumps(info, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return info


def precision_of(onnx_file: Path, tf32: bool) -> str:
    """Return what a strongly typed engine of an ONNX file computes in: int8, fp16, tf32 or fp32-strict."""
    import onnx

    traits = traits_of(onnx.load(onnx_file, load_external_data=False))
    for trait in ("int8", "fp16"):
        if trait in traits:
            return trait
    return "tf32" if tf32 else "fp32-strict"


def device_name() -> str:
    """Return the GPU that an engine is built for here, or that there is none; torch is imported only for a driver."""
    if why_no_cuda():
        return "built without a GPU"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "built without a GPU"


def without_folders(text: str) -> str:
    """Shorten every absolute path in a message to its file name."""
    return _FOLDERS.sub("", text)


def _profile(builder: Any, network: Any, shapes: Mapping[str, Any]) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if name not in shapes:
            raise RunError(
                "The profile lacks an input of the network.", value=name, fix=f"It has: {', '.join(sorted(shapes))}."
            )
        profile.set_shape(name, *shapes[name])
    return profile


def _describe(error: Any) -> str:
    return f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"


def _refused(trt: Trt, what: str, messages: list[str]) -> RunError:
    said = [without_folders(message) for message in messages] or ["no reason given"]
    return RunError(
        f"{trt.library} {trt.version} could not {what}.",
        value="\n         ".join(said[:5]),
        fix=_advice(" ".join(said)),
    )


def _advice(text: str) -> str:
    if "zero point" in text or "Int32" in text or "shiftIsAllZeros" in text:
        return "TensorRT takes symmetric INT8 only: quantize with `method: static` and `activation: int8`."
    if "same input types" in text or "same type" in text:
        return "The network is strongly typed: use the `cast` pass, which puts a Cast wherever precisions meet."
    return "Change the model or the options that the message names; an FP32 or FP16 export of ours builds."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
