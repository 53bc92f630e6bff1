"""``build``: a TensorRT engine from an ONNX model, with a GPU or without."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from compress.artifact import Artifact, Graph, Kind, create_artifact
from compress.errors import DataError
from compress.export.trt_api import missing_trt, present_library
from compress.export.trt_options import MIB, OPTIONS, EngineOptions, lacking
from compress.export.trt_profile import Profile, fixed_graph, fixed_profile, profile_from_lengths, profile_of_shapes
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.trt_plan import Hardware

_SAMPLE = 2000
"""Training examples whose lengths are looked at."""


class BuildConfig(PassConfig):
    """What the engine is built for.

    Each option below ``optimization_level`` costs speed or size: leave them out for headline numbers.
    """

    engine: Literal["tensorrt"] = Field("tensorrt", description="tensorrt where installed, else tensorrt-rtx")
    max_batch: int = Field(8, ge=1, description="largest batch that the engine takes, examples")
    opt_batch: int = Field(1, ge=1, description="batch that kernels are chosen for, examples")
    shapes: tuple[tuple[int, ...], ...] = Field(
        (),
        description="besides the dynamic engine, one engine for each of these shapes alone: [batch, tokens], or "
        "[batch] for images. A batch of exactly that shape runs on it. Each is a file with all weights",
    )
    workspace_mib: int = Field(1024, ge=1, description="device memory that one kernel may use for scratch, MiB")
    tf32: bool = Field(False, description="let FP32 products round their inputs to TF32 (faster, 10-bit mantissa)")
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="0 builds fast, 5 searches longest; null = the library's default"
    )
    refit: bool = Field(
        False,
        description="weights can be exchanged later without a build; they cannot be folded into kernels, which may "
        "be slower. Quantized weights cannot all be exchanged. Needs a GPU",
    )
    strip_plan: bool = Field(
        False,
        description="store the engine without its weights; they come back from model.onnx at each start, which takes "
        "longer. Needs a GPU",
    )
    version_compatible: bool = Field(
        False,
        description="later TensorRT versions, up to the next major one, can load the engine; it may be slower, and "
        "carries a copy of the lean runtime, about 100 MB of host code. Not for TensorRT-RTX",
    )
    exclude_lean_runtime: bool = Field(
        False, description="with version_compatible: without that copy; the lean runtime is then installed there"
    )
    hardware_compatibility: Hardware = Field(
        "none",
        description="other GPUs that the engine runs on: ampere_plus (compute capability 8.0 and later, fewer kernels "
        "and fusions) or same_compute_capability; slower than none. Not for TensorRT-RTX",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> BuildConfig:
        if self.opt_batch > self.max_batch:
            raise ValueError("`opt_batch` must not exceed `max_batch`")
        if any(len(shape) not in (1, 2) or min(shape) < 1 for shape in self.shapes):
            raise ValueError("each of `shapes` is [batch, tokens], or [batch] for images, from 1")
        if len(set(self.shapes)) < len(self.shapes):
            raise ValueError("`shapes` names a shape twice")
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("`exclude_lean_runtime` belongs to `version_compatible: true`")
        if self.version_compatible and (self.refit or self.strip_plan):
            raise ValueError("the lean runtime of a version-compatible engine cannot refit: leave one of them out")
        return self

    @property
    def options(self) -> EngineOptions:
        chosen = {name: getattr(self, name) for name in OPTIONS if name != "workspace_bytes"}
        return EngineOptions(workspace_bytes=self.workspace_mib * MIB, **chosen)


class Build(Pass):
    """Parses the ONNX model as a strongly typed network and builds a dynamic engine for the data's lengths."""

    name: ClassVar[str] = "build"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
    Config: ClassVar[type[PassConfig]] = BuildConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "tensorrt"
    preserves: ClassVar[Literal["exact", "close", "task"]] = "close"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: BuildConfig) -> Plan:
        missing = [reason] if (reason := missing_trt()) else []
        if not missing:
            missing += lacking(present_library(), config.options, gpu=not why_no_cuda())
        more = f" and {len(config.shapes)} for single shapes" if config.shapes else ""
        costs = "; ".join(_costs(config))
        summary = f"build a TensorRT engine for up to {config.max_batch} inputs at once{more}"
        summary += f" ({costs})" if costs else ""
        return Plan(summary, replace(inputs["model"], kind="tensorrt"), tuple(missing))

    def settle(self, config: BuildConfig) -> dict[str, Any]:
        from compress.export.trt_build import device_name

        return {"device": device_name()}

    def apply(self, inputs: Mapping[str, Artifact], config: BuildConfig, context: Context) -> Artifact:
        from compress.export.companions import copy_companions
        from compress.export.signature import read_graph

        source, onnx_file = inputs["model"], context.out / "model.onnx"
        shutil.copyfile(source.file(), onnx_file)
        copy_companions(source.path, context.out)
        dynamic = read_graph(onnx_file, "model.engine")
        graphs = {"model": dynamic}
        profiles = {"model": _profile(dynamic, source, config, context)}
        for shape in config.shapes:
            name = "x".join(str(size) for size in shape)
            graph = fixed_graph(dynamic, f"model-{name}.engine", shape, context.task.max_length)
            graphs[f"model@{name}"], profiles[f"model@{name}"] = graph, fixed_profile(graph)
        engines, records = {}, {}
        for number, (name, graph) in enumerate(graphs.items()):
            context.emit("building the engine" if name == "model" else f"building {name}", number, len(graphs))
            records[name], engines[name] = _build(onnx_file, context, graph.file, profiles[name], config)
        return create_artifact(
            context.out,
            kind="tensorrt",
            traits=sorted(source.traits),
            graphs=graphs,
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes={**records["model"], "engines": engines},
            **self.provenance(inputs, config, context),
        )


def _build(
    onnx_file: Path, context: Context, file: str, profile: Profile, config: BuildConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build one engine; return its record, and what is noted of it: seconds, bytes, what it runs."""
    from compress.export.trt_build import build
    from compress.export.trt_inspect import inspect_engine

    started = time.perf_counter()
    engine = onnx_file.with_name(file)
    built = build(onnx_file, engine, profile, timings=context.store.root, **config.options.model_dump())
    seconds, record = round(time.perf_counter() - started, 1), built.record.model_dump(mode="json")
    found = inspect_engine(engine, onnx_file, built.listing)
    inspection = {"not_inspected": found} if isinstance(found, str) else {"inspection": found.model_dump(mode="json")}
    noted = {"profile": record["profiles"][0], "seconds": seconds, "bytes": engine.stat().st_size}
    return record, noted | inspection


def _costs(config: BuildConfig) -> list[str]:
    """Return what the options of a config cost, for the plan."""
    told = {
        "refit": "refittable: weights are not folded, may be slower",
        "strip_plan": "without weights: each start puts them back",
        "version_compatible": "for later versions: may be slower"
        + ("" if config.exclude_lean_runtime else ", about 100 MB larger"),
    }
    costs = [text for name, text in told.items() if getattr(config, name)]
    if config.hardware_compatibility != "none":
        costs.append(f"{config.hardware_compatibility}: fewer kernels to choose from, slower")
    return costs


def _profile(graph: Graph, source: Artifact, config: BuildConfig, context: Context) -> Profile:
    fixed = {value.name: tuple(size for size in value.shape if isinstance(size, int)) for value in graph.inputs}
    if all(len(sizes) == len(value.shape) - 1 for sizes, value in zip(fixed.values(), graph.inputs, strict=True)):
        return profile_of_shapes(fixed, opt_batch=config.opt_batch, max_batch=config.max_batch)
    return profile_from_lengths(
        list(fixed),
        sample_lengths(source, context),
        context.task.max_length,
        opt_batch=config.opt_batch,
        max_batch=config.max_batch,
    )


def sample_lengths(source: Artifact, context: Context) -> np.ndarray:
    """Return the tokens of up to 2,000 training examples, drawn by seed.

    Raises:
        DataError: there is no training split.
    """
    if "train" not in context.data or not len(context.data["train"]):
        raise DataError(
            "The engine is built for the lengths of the training data, and there is none.",
            value="data.train",
            fix="Give `data: {train: {path: ...}}`.",
        )
    rows = context.data["train"].rows
    chosen = np.random.default_rng(context.seed).permutation(len(rows))[:_SAMPLE]
    texts = [{name: rows[i].get(name) for name in context.task.columns} for i in sorted(chosen)]
    return context.task.encode(source.path, texts).lengths
