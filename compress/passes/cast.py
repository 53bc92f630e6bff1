"""``cast``: an ONNX model in FP16, for GPUs and for half the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.export.golden import missing_onnxruntime
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan


class CastConfig(PassConfig):
    """Which precision, and what stays in FP32."""

    dtype: Literal["float16"] = Field("float16", description="precision of weights and computation")
    keep_float32: tuple[str, ...] = Field(
        (), description="operator types or globs of node names that stay in FP32, besides those that overflow"
    )


class Cast(Pass):
    """Converts weights and nodes to FP16 with casts at every border; inputs and outputs keep their types."""

    name: ClassVar[str] = "cast"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx",)
    Config: ClassVar[type[PassConfig]] = CastConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "onnx"
    forbids: ClassVar[frozenset[str]] = frozenset({"fp16", "int8", "int4"})
    adds: ClassVar[frozenset[str]] = frozenset({"fp16"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "close"

    def plan(self, inputs: Mapping[str, ModelInfo], config: CastConfig) -> Plan:
        info = inputs["model"]
        kept = f", {', '.join(config.keep_float32)} in FP32" if config.keep_float32 else ""
        return Plan(f"cast to FP16{kept}", replace(info, traits=info.traits | self.adds), missing_onnxruntime())

    def apply(self, inputs: Mapping[str, Artifact], config: CastConfig, context: Context) -> Artifact:
        import onnx

        from compress.export.companions import copy_companions
        from compress.export.golden import golden_onnx
        from compress.export.onnx_clean import write_onnx
        from compress.export.signature import read_graph
        from compress.quantization.fp16 import cast_fp16

        source = inputs["model"]
        context.emit("casting to FP16")
        model, notes = cast_fp16(onnx.load(source.file()), config.keep_float32)
        write_onnx(model, context.out / "model.onnx")
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.adds),
            graphs={"model": read_graph(context.out / "model.onnx")},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes=notes,
            golden=golden_onnx(context.out, context.task),
            **self.provenance(inputs, config, context),
        )
