"""``cast``: an ONNX model in FP16 or BF16, for GPUs and for half the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compress.artifact import Artifact, Golden, Kind, create_artifact
from compress.export.golden import missing_onnxruntime
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.quantization.half_rules import HEADROOM

if TYPE_CHECKING:
    import onnx

    from compress.quantization.half_ranges import HalfRanges

_TRAITS = {"float16": "fp16", "bfloat16": "bf16"}


class CastConfig(PassConfig):
    """Which precision, and what stays in FP32."""

    dtype: Literal["float16", "bfloat16"] = Field(
        "float16",
        description="precision of weights and computation; bfloat16 has the range of FP32 and 8 bits instead of 11",
    )
    calibrate: bool = Field(
        True,
        description="float16 only: run `data.calibration` to find what exceeds FP16; without such examples only "
        "weights are looked at",
    )
    headroom: float = Field(
        HEADROOM,
        ge=1,
        description="what comes within this factor of 65,504 on the calibration data stays in FP32",
    )
    keep_float32: tuple[str, ...] = Field(
        (), description="operator types or globs of node names that stay in FP32, besides those that overflow"
    )


class Cast(Pass):
    """Converts weights and nodes to 16 bits with casts at every border; inputs and outputs keep their types."""

    name: ClassVar[str] = "cast"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    Config: ClassVar[type[PassConfig]] = CastConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "onnx"
    forbids: ClassVar[frozenset[str]] = frozenset({"fp16", "bf16", "int4"})
    adds: ClassVar[frozenset[str]] = frozenset({"fp16", "bf16"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "close"
    uses: ClassVar[tuple[str, ...]] = ("calibration",)
    spares: ClassVar[tuple[str, ...]] = ("calibration",)

    def plan(self, inputs: Mapping[str, ModelInfo], config: CastConfig) -> Plan:
        info = inputs["model"]
        label = "FP16" if config.dtype == "float16" else "BF16"
        kept = f", {', '.join(config.keep_float32)} in FP32" if config.keep_float32 else ""
        summary = f"cast to {label}{kept}: for GPUs, on a CPU a smaller file and not faster"
        return Plan(summary, replace(info, traits=info.traits | self.added(config)), missing_onnxruntime())

    def added(self, config: CastConfig) -> frozenset[str]:
        return frozenset({_TRAITS[config.dtype]})

    def reads(self, config: CastConfig) -> tuple[str, ...]:
        return self.uses if config.calibrate and config.dtype == "float16" else ()

    def apply(self, inputs: Mapping[str, Artifact], config: CastConfig, context: Context) -> Artifact:
        import onnx

        from compress.export.companions import copy_companions
        from compress.export.onnx_clean import write_onnx
        from compress.export.signature import read_graph
        from compress.quantization.fp16 import cast_half

        source = inputs["model"]
        model = onnx.load(source.file())
        ranges = self._ranges(model, source, config, context)
        context.emit(f"casting to {config.dtype}")
        cast, notes = cast_half(model, config.dtype, config.keep_float32, ranges=ranges, headroom=config.headroom)
        write_onnx(cast, context.out / "model.onnx")
        copy_companions(source.path, context.out)
        golden, said = _golden(cast, config, context)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.added(config)),
            graphs={"model": read_graph(context.out / "model.onnx")},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes=notes | _calibration_notes(ranges, config) | said,
            golden=golden,
            **self.provenance(inputs, config, context),
        )

    def _ranges(
        self, model: onnx.ModelProto, source: Artifact, config: CastConfig, context: Context
    ) -> HalfRanges | None:
        """Return what activations reach on the calibration examples; None where there are none or none is needed."""
        from compress.quantization.half_ranges import measure_ranges

        if not self.reads(config) or "calibration" not in context.data or not len(context.data["calibration"]):
            return None
        rows = context.data["calibration"].rows
        context.emit(f"measuring ranges on {len(rows)} examples")
        return measure_ranges(model, context.task.encode(source.path, rows))


def _calibration_notes(ranges: HalfRanges | None, config: CastConfig) -> dict[str, Any]:
    if config.dtype == "bfloat16":
        return {"calibration": "not needed: BF16 has the range of FP32"}
    if ranges is None:
        why = "there are no calibration examples" if config.calibrate else "the recipe says `calibrate: false`"
        return {"calibration": f"{why}: only weights were looked at, activations may exceed FP16"}
    return {"calibration": ranges.notes() | {"headroom": config.headroom}}


def _golden(cast: onnx.ModelProto, config: CastConfig, context: Context) -> tuple[Golden, dict[str, Any]]:
    """Return golden outputs, and how they were made where the file itself cannot run here."""
    from compress.export.golden import golden_onnx
    from compress.quantization.half_emulation import NOTE, emulate_half

    if config.dtype == "float16":
        return golden_onnx(context.out, context.task), {}
    emulated = context.scratch / "emulated.onnx"
    emulated.write_bytes(emulate_half(cast).SerializeToString())
    return golden_onnx(context.out, context.task, str(emulated)), {"golden": NOTE}
