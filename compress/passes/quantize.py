"""``quantize``: INT8, the best form for a target or one that is named; or weights only, in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, MissingCapabilityError, RecipeError
from compress.export.golden import missing_onnxruntime
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.quantization.isa import reduced_range_for
from compress.quantization.rules import rules_for, runtimes_with_rules
from compress.runtimes.target import find_target

if TYPE_CHECKING:
    import onnx

    from compress.data.encoded import Encoded

ACTIVATION_FIELDS = ("method", "goal", "max_drop_points", "per_channel", "reduce_range", "activation", "target", "rest")
WEIGHT_FIELDS = ("block_size", "embedding_bits")
BLOCK_SIZE = 128
"""Numbers that share a scale by default: within 2 % of the smallest file, and with the fastest kernels."""


class QuantizeConfig(PassConfig):
    """How to quantize."""

    scheme: Literal["int8", "int8-weights", "int4-weights"] = Field(
        "int8",
        description="8-bit integers; or the size first: weights in blocks of 8 or 4 bits, for ONNX Runtime on a CPU",
    )
    method: Literal["auto", "dynamic", "static"] | None = Field(
        None,
        description="auto = try what can win on `target`, and choose; dynamic = activations quantized at run time; "
        "static = with ranges measured on `data.calibration`; null = auto where a target is given, else dynamic",
    )
    goal: Literal["latency", "accuracy"] = Field(
        "latency", description="auto only: the fastest within `max_drop_points`, or the most accurate that is faster"
    )
    max_drop_points: float = Field(
        1.0, ge=0, description="auto only: points of the metric that the choice may lose on validation"
    )
    per_channel: bool = Field(True, description="one scale for each output column of a weight, not one for all")
    reduce_range: Literal["auto"] | bool = Field(
        "auto", description="7-bit weights, which cannot saturate; auto = on x86 without VNNI"
    )
    activation: Literal["uint8", "int8"] = Field(
        "uint8", description="static only: asymmetric uint8 (CPU), or symmetric int8 (TensorRT)"
    )
    embeddings: bool = Field(True, description="store embedding tables in 8 bits too (not with int8 activations)")
    exclude: tuple[str, ...] = Field((), description="globs of node names that stay in float32")
    target: str | None = Field(
        None, pattern=r"^[^/\\]+$", description="built-in target that the model is for; decides what `auto` tries"
    )
    rest: Literal["float16", "float32"] | None = Field(
        None, description="TensorRT only: precision of what is not in 8 bits; null = float16"
    )
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        None, description="weights only: numbers that share a scale; null = 128"
    )
    embedding_bits: Literal[4, 8] | None = Field(
        None, description="weights only: bits of embedding tables; null = those of the other weights"
    )

    @model_validator(mode="after")
    def _fields_apply(self) -> QuantizeConfig:
        foreign = ACTIVATION_FIELDS if self.weights_only else WEIGHT_FIELDS
        changed = [name for name in foreign if getattr(self, name) != type(self).model_fields[name].default]
        if changed:
            others = "`scheme: int8`" if self.weights_only else "`scheme: int8-weights` or `int4-weights`"
            raise ValueError(f"`{changed[0]}` does not apply to `scheme: {self.scheme}`; leave it out, or use {others}")
        if self.method == "auto" and self.target is None:
            raise ValueError("`method: auto` measures on a target: give `target`, for example ort-cpu-1t")
        if self.embedding_bits and not self.embeddings:
            raise ValueError("`embedding_bits` does not apply to `embeddings: false`; leave one of them out")
        if self.rest and (self.target is None or self.method not in ("auto", None)):
            raise ValueError("`rest` is of the search for TensorRT: give `target: tensorrt` and no `method`")
        return self

    @property
    def weights_only(self) -> bool:
        return self.scheme != "int8"


class Quantize(Pass):
    """Quantizes in the form that is named, or in the best of those that it tries; records what stays in float."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    Config: ClassVar[type[PassConfig]] = QuantizeConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "onnx"
    forbids: ClassVar[frozenset[str]] = frozenset({"int8", "int4", "fp16"})
    adds: ClassVar[frozenset[str]] = frozenset({"int8", "int4", "fp16"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("calibration", "validation")

    def plan(self, inputs: Mapping[str, ModelInfo], config: QuantizeConfig) -> Plan:
        info = inputs["model"]
        result = replace(info, traits=info.traits | self.added(config))
        if config.weights_only:
            return Plan(_weights_summary(config), result, missing_onnxruntime())
        bits = f"{7 if reduced_range(config)[0] else 8}-bit weights"
        if searches(config) and on_gpu(config):
            rest = "FP16" if rest_of(config) == "float16" else "FP32"
            summary = (
                f"INT8 for {config.target}: most accurate, at most {config.max_drop_points:.1f} points off, not timed"
            )
            return Plan(f"{summary}; {bits}, {rest} for the rest", result, missing_onnxruntime())
        if searches(config):
            points = f"{config.max_drop_points:.1f} points"
            wanted = f"fastest within {points}" if config.goal == "latency" else f"most accurate, at most {points} off"
            return Plan(f"INT8 on {config.target}: {wanted}, {bits}", result, _missing(config))
        kind = f"static INT8, {config.activation} activations" if config.method == "static" else "dynamic INT8"
        return Plan(f"{kind}, {bits}", result, missing_onnxruntime())

    def added(self, config: QuantizeConfig) -> frozenset[str]:
        half = searches(config) and rest_of(config) == "float16"
        return frozenset({"int4" if config.scheme == "int4-weights" else "int8", *(["fp16"] if half else [])})

    def reads(self, config: QuantizeConfig) -> tuple[str, ...]:
        if searches(config):
            return self.uses
        return ("calibration",) if config.method == "static" else ()

    def settle(self, config: QuantizeConfig) -> dict[str, Any]:
        """The range of weights follows the machine; a choice by latency belongs to the one that it is measured on.

        A choice for a GPU goes by accuracy alone, and belongs to no machine.
        """
        if config.weights_only:
            return {"block_size": config.block_size or BLOCK_SIZE}
        settled: dict[str, Any] = {"reduce_range": reduced_range(config)[0]}
        if searches(config):
            from compress.search.latency import machine

            settled["target"] = find_target(str(config.target)).model_dump(mode="json")
            settled |= {"rest": rest_of(config)} if on_gpu(config) else {"machine": machine()}
        return settled

    def apply(self, inputs: Mapping[str, Artifact], config: QuantizeConfig, context: Context) -> Artifact:
        import onnx

        from compress.export.companions import copy_companions
        from compress.export.golden import golden_onnx
        from compress.export.onnx_clean import write_onnx
        from compress.export.signature import read_graph

        source = inputs["model"]
        quantized, notes = _quantize(onnx.load(source.file()), config, source, context)
        write_onnx(quantized, context.out / "model.onnx")
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.added(config)),
            graphs={"model": read_graph(context.out / "model.onnx")},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            notes=notes,
            golden=golden_onnx(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def reduced_range(config: QuantizeConfig) -> tuple[bool, str]:
    """Return whether weights keep to 7 bits, and why: asked for, a GPU target, or this machine's instructions.

    Raises:
        RecipeError: ``target`` is unknown.
    """
    target = None if config.target is None else find_target(config.target)
    if config.reduce_range != "auto":
        return config.reduce_range, "asked for"
    return reduced_range_for(target)


def searches(config: QuantizeConfig) -> bool:
    """Say whether the form is chosen by measurement: asked for, or the default on a target that has rules.

    Raises:
        RecipeError: ``target`` is unknown, or ``method: auto`` on one without rules, or ``rest`` on a CPU.
    """
    if config.target is None or config.method not in ("auto", None):
        return False
    target = find_target(config.target)
    known = target.runtime in runtimes_with_rules() and rules_for(target.runtime).device == target.device
    if config.rest and not (known and target.device == "cuda"):
        raise RecipeError(
            "`rest` applies to TensorRT only: on a CPU what is not in 8 bits stays in float32.",
            value=config.target,
            fix="Leave out `rest`, or quantize for the target tensorrt.",
        )
    if config.method == "auto" and not known:
        raise RecipeError(
            "INT8 forms cannot be tried on this target.",
            value=config.target,
            fix=f"Name one that runs on {' or '.join(runtimes_with_rules())}, or set `method: static`.",
        )
    return known


def on_gpu(config: QuantizeConfig) -> bool:
    """Say whether the target is a GPU, whose candidates are not timed."""
    return config.target is not None and find_target(config.target).device == "cuda"


def rest_of(config: QuantizeConfig) -> Literal["float16", "float32"]:
    """Return the precision of what is not in 8 bits: on a GPU float16 unless float32 is asked for."""
    return config.rest or ("float16" if on_gpu(config) else "float32")


def _missing(config: QuantizeConfig) -> tuple[str, ...]:
    """Say what the target of a search lacks here."""
    from compress.search.deploy import require_onnx_target

    try:
        require_onnx_target(find_target(str(config.target)))
    except MissingCapabilityError as error:
        return (f"{error.what} ({error.value})",)
    return missing_onnxruntime()


def _asked(config: QuantizeConfig, context: Context) -> dict[str, Any]:
    asked = context.data.notes.get("calibration_asked")
    used = searches(config) or config.method == "static"
    return {"calibration_asked": asked} if used and asked is not None else {}


def _weights_summary(config: QuantizeConfig) -> str:
    bits = 4 if config.scheme == "int4-weights" else 8
    tables = f"{config.embedding_bits or bits}-bit embeddings" if config.embeddings else "float32 embeddings"
    return f"weights only: {bits}-bit linears, {tables}, blocks of {config.block_size or BLOCK_SIZE}"


def _quantize(
    model: onnx.ModelProto, config: QuantizeConfig, source: Artifact, context: Context
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    if config.weights_only:
        return _quantize_weights(model, config, context)
    reduced, reason = reduced_range(config)
    quantized, notes = _quantize_int8(model, config, reduced, source, context)
    notes |= _asked(config, context)
    return quantized, notes | {"reduce_range": reduced, "reduce_range_reason": reason, "target": config.target}


def _quantize_weights(
    model: onnx.ModelProto, config: QuantizeConfig, context: Context
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from compress.quantization.weight_only import quantize_weights

    context.emit(f"quantizing weights ({config.scheme})")
    return quantize_weights(
        model,
        bits=4 if config.scheme == "int4-weights" else 8,
        block_size=config.block_size or BLOCK_SIZE,
        embeddings=config.embeddings,
        embedding_bits=config.embedding_bits,
        exclude=config.exclude,
    )


def _quantize_int8(
    model: onnx.ModelProto, config: QuantizeConfig, reduced: bool, source: Artifact, context: Context
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from compress.quantization.int8 import quantize_dynamic, quantize_static

    if searches(config):
        from compress.passes.int8_search import search_int8

        return search_int8(model, source, config, reduced, context)
    method = config.method or "dynamic"
    context.emit(f"quantizing to INT8 ({method})")
    if method == "dynamic":
        return quantize_dynamic(
            model,
            per_channel=config.per_channel,
            reduce_range=reduced,
            embeddings=config.embeddings,
            exclude=config.exclude,
        )
    return quantize_static(
        model,
        calibration_examples(source, context),
        per_channel=config.per_channel,
        reduce_range=reduced,
        embeddings=config.embeddings,
        activation=config.activation,
        exclude=config.exclude,
    )


def calibration_examples(source: Artifact, context: Context) -> Encoded:
    """Return the calibration split as the model's tokenizer or preprocessor encodes it.

    Raises:
        DataError: the data has none.
    """
    if "calibration" not in context.data:
        raise DataError(
            "Static quantization needs calibration examples, and the data has none.",
            value="data.calibration",
            fix="Give `data: {train: ..., calibration: {samples: 256}}`, or use `method: dynamic`.",
        )
    return context.task.encode(source.path, context.data["calibration"].rows)
