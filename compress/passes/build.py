"""``build``: a TensorRT engine from an ONNX model, with a GPU or without."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from compress.artifact import Artifact, Graph, Kind, create_artifact
from compress.errors import DataError
from compress.export.trt_api import missing_trt
from compress.export.trt_profile import Profile, profile_from_lengths, profile_of_shapes
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

_SAMPLE = 2000
"""Training examples whose lengths are looked at."""


class BuildConfig(PassConfig):
    """What the engine is built for."""

    engine: Literal["tensorrt"] = Field("tensorrt", description="tensorrt where installed, else tensorrt-rtx")
    max_batch: int = Field(8, ge=1, description="largest batch that the engine takes, examples")
    opt_batch: int = Field(1, ge=1, description="batch that kernels are chosen for, examples")
    workspace_mib: int = Field(1024, ge=1, description="device memory that one kernel may use for scratch, MiB")
    tf32: bool = Field(False, description="let FP32 products round their inputs to TF32 (faster, 10-bit mantissa)")
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="0 builds fast, 5 searches longest; null = the library's default"
    )

    @model_validator(mode="after")
    def _batches_fit(self) -> BuildConfig:
        if self.opt_batch > self.max_batch:
            raise ValueError("`opt_batch` must not exceed `max_batch`")
        return self


class Build(Pass):
    """Parses the ONNX model as a strongly typed network and builds one engine for the data's lengths."""

    name: ClassVar[str] = "build"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
    Config: ClassVar[type[PassConfig]] = BuildConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "tensorrt"
    preserves: ClassVar[Literal["exact", "close", "task"]] = "close"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: BuildConfig) -> Plan:
        missing = missing_trt()
        summary = f"build a TensorRT engine for up to {config.max_batch} inputs at once"
        return Plan(summary, replace(inputs["model"], kind="tensorrt"), (missing,) if missing else ())

    def settle(self, config: BuildConfig) -> dict[str, Any]:
        from compress.export.trt_build import device_name

        return {"device": device_name()}

    def apply(self, inputs: Mapping[str, Artifact], config: BuildConfig, context: Context) -> Artifact:
        from compress.export.companions import copy_companions
        from compress.export.signature import read_graph
        from compress.export.trt_build import MIB, build_engine

        source = inputs["model"]
        engine, onnx_file = context.out / "model.engine", context.out / "model.onnx"
        shutil.copyfile(source.file(), onnx_file)
        copy_companions(source.path, context.out)
        graph = read_graph(onnx_file, engine.name)
        profile = _profile(graph, source, config, context)
        context.emit("building the engine")
        started = time.perf_counter()
        info = build_engine(
            onnx_file,
            engine,
            profile,
            workspace_bytes=config.workspace_mib * MIB,
            tf32=config.tf32,
            optimization_level=config.optimization_level,
        )
        return create_artifact(
            context.out,
            kind="tensorrt",
            traits=sorted(source.traits),
            graphs={"model": graph},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes={**info, "build_seconds": round(time.perf_counter() - started, 1)},
            **self.provenance(inputs, config, context),
        )


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
