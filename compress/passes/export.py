"""``export``: PyTorch to ONNX, with dynamic axes ``batch`` and, for texts, ``sequence``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.export.golden import missing_onnxruntime
from compress.models.remote_code import CUSTOM_CODE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan


class ExportConfig(PassConfig):
    """Where to export to."""

    format: Literal["onnx"] = Field("onnx", description="file format of the exported model")
    opset: int | None = Field(None, ge=17, description="ONNX operator set; null = the exporter's default")


class Export(Pass):
    """Traces the model once and writes ``model.onnx`` with its weights, config and tokenizer or preprocessor."""

    name: ClassVar[str] = "export"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "torch", "transformers")
    Config: ClassVar[type[PassConfig]] = ExportConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "onnx"
    removes: ClassVar[frozenset[str]] = frozenset({CUSTOM_CODE})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "exact"

    def plan(self, inputs: Mapping[str, ModelInfo], config: ExportConfig) -> Plan:
        opset = "" if config.opset is None else f", opset {config.opset}"
        summary = f"export to ONNX with dynamic axes{opset}"
        source = inputs["model"]
        return Plan(summary, replace(source, kind="onnx", traits=source.traits - self.removes), missing_onnxruntime())

    def apply(self, inputs: Mapping[str, Artifact], config: ExportConfig, context: Context) -> Artifact:
        from compress.export.companions import copy_companions
        from compress.export.golden import golden_onnx
        from compress.export.onnx_export import export_onnx
        from compress.export.signature import describe, read_graph
        from compress.models.loading import load_torch

        source = inputs["model"]
        out_file = context.out / "model.onnx"
        context.emit("tracing the model")
        notes = export_onnx(
            load_torch(source.path, context.task),
            out_file,
            inputs=context.task.inputs(source.path),
            opset=config.opset,
            metadata=describe(context.task.dump()),
        )
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits - self.removes),
            graphs={"model": read_graph(out_file)},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes=notes,
            golden=golden_onnx(context.out, context.task),
            **self.provenance(inputs, config, context),
        )
