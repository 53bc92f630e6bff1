"""The part of the record that is about TensorRT engines: what was built, and what each engine runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.report.frozen import Frozen


class EngineLayers(Frozen):
    """The layers and the memory of an engine, as TensorRT tells them."""

    source: Literal["inspector", "builder"] = Field(
        "inspector", description="the inspector of the loaded engine, or the builder's list of what it had finished"
    )
    layers: int
    precisions: dict[str, int] = Field(
        default_factory=dict,
        description="layers that compute, by the narrowest type that they read: int8, fp8, bf16, fp16, fp32",
    )
    reformats: int = Field(0, description="layers that only change a memory layout or copy")
    casts: int = Field(0, description="layers that only change a type")
    quantizers: int = Field(0, description="layers that only quantize or dequantize")
    attention: int = Field(0, description="attention blocks of the ONNX file")
    fused_attention: int = Field(0, description="layers that compute a whole attention block")
    weights_bytes: int | None = Field(None, description="weights on the device")
    activation_bytes: int | None = Field(None, description="activations and scratch of one execution context")
    profile_activation_bytes: tuple[int, ...] = Field((), description="the same for each optimization profile")
    streamable_bytes: int | None = Field(None, description="weights that could be streamed from the host")


class Engine(Frozen):
    """One engine of a ``build`` step."""

    step: str
    shape: tuple[int, ...] = Field((), description="the one shape that it takes; empty for the dynamic engine")
    profile: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="min, opt, max -> shape of the first input"
    )
    library: str = Field(description="tensorrt or tensorrt-rtx")
    version: str
    device: str = Field(description="the GPU that it was built on, or that there was none")
    compute_capability: str | None = None
    driver: str | None = Field(None, description="newest CUDA version of the driver")
    precision: str = Field(description="int8, fp8, fp16, bf16, tf32 or fp32-strict")
    float_precision: str = Field(description="what layers that are not quantized compute in")
    options: tuple[str, ...] = Field((), description="options that cost speed or size, as the recipe writes them")
    timing_cache: str = Field("", description="whether earlier timings of kernels were used, or why not")
    size_bytes: int
    seconds: float | None = Field(None, description="wall time of the build, s")
    inspected: EngineLayers | None = None
    not_inspected: str = Field("", description="why the engine was not inspected")
    findings: tuple[str, ...] = Field((), description="what makes it slower than it could be")
