"""Build a TensorRT engine from an ONNX file, on the CPU if need be, and write down what went into it.

Without a GPU, TensorRT-RTX gives the same bytes each time. With one, TensorRT chooses kernels by timing them, so
two builds of one model may differ in bytes, and a little in speed. The sidecar ties an engine to its ONNX file by
sha256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compress.errors import RunError
from compress.export.trt_api import Trt, load_trt, logged
from compress.export.trt_options import EngineOptions, set_options
from compress.export.trt_precision import precision_of
from compress.export.trt_profile import Profile
from compress.export.trt_timing import Timings
from compress.runtimes.trt_device import Device, present_device
from compress.runtimes.trt_plan import NO_DEVICE, PlanRecord, write_record

_FOLDERS = re.compile(r"(?:/[\w.+@-]+)+/(?=[\w.+@-])")


class Built(NamedTuple):
    """What a build leaves besides the engine."""

    record: PlanRecord
    listing: list[str]
    """Messages of the builder about the layers and the memory of the engine."""


def build_engine(
    onnx_file: Path, out_file: Path, profile: Profile, *, timings: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Build an engine and return its record as JSON has it, see ``build``."""
    return build(onnx_file, out_file, profile, timings=timings, **options).record.model_dump(mode="json")


def build(onnx_file: Path, out_file: Path, profile: Profile, *, timings: Path | None = None, **options: Any) -> Built:
    """Build an engine and write it raw to ``out_file``, with ``<out_file>.json`` beside it.

    The network is strongly typed: precision is that of the ONNX file, and nothing else.

    Args:
        onnx_file: float32, FP16 or BF16, or INT8 with symmetric QuantizeLinear/DequantizeLinear pairs.
        out_file: the engine to write.
        profile: input name -> (min, opt, max) shapes; three equal shapes make an engine for that shape alone.
        timings: folder for timing caches; None = none is kept.
        **options: see ``EngineOptions``.

    Raises:
        MissingCapabilityError: no TensorRT is installed, or this one cannot do what an option asks.
        RunError: the parser or the builder refused; the error carries what TensorRT said.
    """
    trt, device, chosen = load_trt(), present_device(), EngineOptions(**options)
    kept = Timings(timings, trt, device, chosen.optimization_level)
    with logged(trt) as (logger, messages):
        builder = trt.module.Builder(logger)
        network = _parsed(trt, builder, onnx_file, logger)
        config = builder.create_builder_config()
        set_options(trt, config, chosen)
        sparse = _let_sparse(trt, config, onnx_file)
        config.add_optimization_profile(_profile(builder, network, profile))
        kept.give(config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _refused(trt, "build the engine", messages, device, chosen)
        out_file.write_bytes(memoryview(plan))
        precision, floats = precision_of(onnx_file, tf32=chosen.tf32)
        record = PlanRecord(
            library=trt.library,
            version=trt.version,
            device=device.name,
            compute_capability=device.compute_capability,
            driver=device.driver,
            precision=precision,
            float_precision=floats,
            sparse_products=sparse,
            profiles=[{name: _named(shapes) for name, shapes in profile.items()}],
            timing_cache=kept.keep(config),
            onnx_sha256=_sha256(onnx_file),
            plan_sha256=_sha256(out_file),
            messages=sorted({without_folders(message) for message in messages}),
            **chosen.model_dump(),
        )
        listing = logger.listing
    write_record(out_file, record)
    return Built(record, listing)


def device_name() -> str:
    """Return the GPU that an engine is built for here, or that there is none."""
    return present_device().name


def without_folders(text: str) -> str:
    """Shorten every absolute path in a message to its file name."""
    return _FOLDERS.sub("", text)


def _parsed(trt: Trt, builder: Any, onnx_file: Path, logger: Any) -> Any:
    flag = 1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        said = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _refused(trt, "parse the ONNX file", said)
    return network


def _let_sparse(trt: Trt, config: Any, onnx_file: Path) -> int:
    """Let the builder choose sparse kernels if weights are 2:4 sparse; return how many are."""
    import onnx

    from compress.export.sparsity import sparse_weights

    found = len(sparse_weights(onnx.load(onnx_file)).sparse)
    if found:
        config.set_flag(trt.module.BuilderFlag.SPARSE_WEIGHTS)
    return found


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


def _named(shapes: tuple[tuple[int, ...], ...]) -> dict[Any, tuple[int, ...]]:
    return dict(zip(("min", "opt", "max"), shapes, strict=True))


def _describe(parser_error: Any) -> str:
    return f"{parser_error.node_operator()} {parser_error.node_name()!r}: {parser_error.desc()}"


def _refused(
    trt: Trt, what: str, messages: list[str], device: Device | None = None, options: EngineOptions | None = None
) -> RunError:
    said = [without_folders(message) for message in messages] or ["no reason given"]
    return RunError(
        f"{trt.library} {trt.version} could not {what}.",
        value="\n         ".join(said[:5]),
        fix=_advice(" ".join(said), device, options),
    )


def _advice(text: str, device: Device | None, options: EngineOptions | None) -> str:
    if options and device and device.name == NO_DEVICE and (options.refit or options.strip_plan):
        return (
            "`refit` and `strip_plan` need a GPU while the engine is built: build it where one is, or leave them out."
        )
    if options and options.version_compatible and "lean" in text:
        return "Install the lean runtime of this version (pip install tensorrt-lean), or set `exclude_lean_runtime`."
    if "zero point" in text or "Int32" in text or "shiftIsAllZeros" in text:
        return "TensorRT takes symmetric INT8 only: use `quantize: {target: tensorrt}`."
    if "same input types" in text or "same type" in text:
        return "The network is strongly typed: use the `cast` pass, which puts a Cast wherever precisions meet."
    return "Change the model or the options that the message names; an FP32 or FP16 export of ours builds."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
