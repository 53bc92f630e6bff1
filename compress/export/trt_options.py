"""What an engine may be besides fast: refittable, stored without weights, fit for other versions or GPUs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.errors import MissingCapabilityError, RunError
from compress.export.trt_api import Trt
from compress.runtimes.trt_plan import RTX, Hardware

MIB = 1024 * 1024
_BIAS_IS_LOST = "11.3"


class EngineOptions(BaseModel):
    """Options of a build.

    Attributes:
        workspace_bytes: scratch memory that a kernel may use on the device.
        tf32: let float32 products round their inputs to TF32 (10-bit mantissa), TensorRT's own default.
        optimization_level: 0 (fast build) to 5 (thorough); None = the library's default.
        refit: weights can be exchanged later; they cannot be folded, so kernels may be slower.
        strip_plan: leave the weights out of the file; they come back from the ONNX file when it is loaded.
        version_compatible: later versions can load it; it may be slower.
        exclude_lean_runtime: a version-compatible file without the copy of the runtime for later versions.
        hardware_compatibility: run on other GPUs than this one, without the kernels that only this one has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace_bytes: int = 1024 * MIB
    tf32: bool = False
    optimization_level: int | None = None
    refit: bool = False
    strip_plan: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: Hardware = "none"


OPTIONS = tuple(EngineOptions.model_fields)


def set_options(trt: Trt, config: Any, options: EngineOptions) -> None:
    """Put options into a builder configuration.

    Raises:
        MissingCapabilityError: this library cannot do what is asked.
        RunError: this version is known to do it wrongly.
    """
    _refuse_unsupported(trt, options)
    flags = trt.module.BuilderFlag
    config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.profiling_verbosity = trt.module.ProfilingVerbosity.DETAILED
    (config.set_flag if options.tf32 else config.clear_flag)(flags.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.refit:
        config.set_flag(flags.REFIT)
    elif options.strip_plan:
        config.set_flag(flags.REFIT_IDENTICAL)
    if options.strip_plan:
        config.set_flag(flags.STRIP_PLAN)
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.exclude_lean_runtime:
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    level = trt.module.HardwareCompatibilityLevel
    if options.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = level.AMPERE_PLUS
    elif options.hardware_compatibility == "same_compute_capability":
        config.hardware_compatibility_level = level.SAME_COMPUTE_CAPABILITY


def lacking(library: str, options: EngineOptions, *, gpu: bool) -> list[str]:
    """Return what options ask for that a library cannot do, or not without a GPU: a sentence each, with advice."""
    found = []
    if library != RTX and not gpu:
        found.append("the full tensorrt builds engines only where a GPU is; tensorrt-rtx builds without one")
    if library == RTX and options.version_compatible:
        found.append(
            "`version_compatible` needs the full tensorrt: each release of TensorRT-RTX reads its own engines only"
        )
    if library == RTX and options.hardware_compatibility != "none":
        found.append(
            "`hardware_compatibility` needs the full tensorrt: engines of TensorRT-RTX are finished on the GPU that "
            "loads them, and fit several as they are"
        )
    if not gpu and (options.refit or options.strip_plan):
        found.append("`refit` and `strip_plan` need a GPU while the engine is built")
    return found


def _refuse_unsupported(trt: Trt, options: EngineOptions) -> None:
    """Refuse what a library has no way to do, and what a version is known to do wrongly."""
    lacks = lacking(trt.library, options, gpu=True)
    if lacks:
        raise MissingCapabilityError(
            f"{trt.library} {trt.version} cannot build such an engine.",
            value="; ".join(lacks),
            fix="Leave the option out, or install the full tensorrt on a machine with a GPU.",
        )
    if trt.library != RTX and options.refit and f"{trt.version}.".startswith(f"{_BIAS_IS_LOST}."):
        raise RunError(
            "Refittable engines of this TensorRT may give wrong results: the bias of a product can be lost.",
            value=f"{trt.library} {trt.version}; see the known issues of its release notes",
            fix="Use another version, or `strip_plan` without `refit`: weights that stay the same are not affected.",
        )
