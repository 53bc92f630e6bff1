"""``qat``: train with the rounding of INT8 in the loop, imitating a teacher, and write the INT8 ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, RecipeError
from compress.export.golden import missing_onnxruntime
from compress.models.remote_code import CUSTOM_CODE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.passes.distill import Auto, Weights
from compress.quantization.isa import reduced_range_for
from compress.quantization.ranges import Observer
from compress.quantization.rules import rules_for
from compress.runtimes.target import find_target

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

    from compress.search.aware import Scheme


class QatConfig(PassConfig):
    """Who teaches, how long, and what becomes integers. ``qat: {}`` learns from the recipe's own model."""

    teacher: str = Field("model", description="id of the step that made the teacher, or `model` for the recipe's own")
    epochs: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="passes over the examples; auto = 400 steps, 2 to 40 epochs"
    )
    learning_rate: float = Field(2e-5, gt=0, description="peak, AdamW with linear decay; of weights and ranges")
    batch_size: int = Field(32, ge=1, description="examples per step")
    temperature: float = Field(2.0, gt=0, description="softens both models' logits in the logits term")
    weights: Weights = Field(Weights(), description="factors of the loss terms")
    observer: Observer = Field("mse", description="chooses the ranges that learning starts from, on `data.calibration`")
    per_channel: bool = Field(True, description="one scale for each output column of a weight, not one for all")
    reduce_range: Literal["auto"] | bool = Field(
        "auto", description="7-bit weights, which cannot saturate; auto = on x86 without VNNI"
    )
    embeddings: bool = Field(True, description="store embedding tables in 8 bits too")
    exclude: tuple[str, ...] = Field((), description="globs of node names that stay in float32")
    first_token: bool = Field(
        True, description="let the last layer compute only the token that the classifier reads, where that is exact"
    )
    target: str | None = Field(
        None,
        pattern=r"^[^/\\]+$",
        description="built-in target that the model is for; decides `reduce_range: auto` and what stays in float32",
    )


class Qat(Pass):
    """Learns weights and ranges under fake INT8 with the losses of `distill`, and proves the graph against them."""

    name: ClassVar[str] = "qat"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (
        "accelerate",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxscript",
        "tokenizers",
        "torch",
        "transformers",
    )
    Config: ClassVar[type[PassConfig]] = QatConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "onnx"
    roles: ClassVar[tuple[str, ...]] = ("model", "teacher")
    forbids: ClassVar[frozenset[str]] = frozenset({"int8", "fp16", CUSTOM_CODE})
    adds: ClassVar[frozenset[str]] = frozenset({"int8"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train", "validation", "calibration")
    trains: ClassVar[bool] = True

    def plan(self, inputs: Mapping[str, ModelInfo], config: QatConfig) -> Plan:
        info, teacher = inputs["model"], inputs["teacher"]
        if teacher.kind != "torch":
            raise RecipeError(
                f"The teacher of `qat` must be a torch model; {config.teacher!r} gives a {teacher.kind} model.",
                fix="Name a step before `export`, or `model`.",
            )
        bits = 7 if _reduced_range(config)[0] else 8
        rules_for(_runtime(config))
        length = "automatic length" if config.epochs == "auto" else f"{config.epochs} epochs"
        summary = f"train under INT8 with {bits}-bit weights, imitate {config.teacher!r}, {length}"
        result = replace(info, kind="onnx", traits=info.traits | self.adds)
        return Plan(f"{summary} at {config.learning_rate:g}", result, missing_onnxruntime())

    def settle(self, config: QatConfig) -> dict[str, Any]:
        return {"reduce_range": _reduced_range(config)[0]}

    def apply(self, inputs: Mapping[str, Artifact], config: QatConfig, context: Context) -> Artifact:
        from compress.distillation.distilling import Splits, distill
        from compress.distillation.internals import predict
        from compress.distillation.training import Place
        from compress.export.companions import copy_companions
        from compress.export.golden import golden_onnx
        from compress.export.onnx_clean import write_onnx
        from compress.export.signature import read_graph
        from compress.models.counting import count_parameters
        from compress.models.loading import load_torch
        from compress.search.aware import compare_logits, finish, prepare

        source, data, task = inputs["model"], context.data, context.task
        if "calibration" not in data:
            raise DataError(
                "Quantization-aware training starts from calibrated ranges, and the data has no calibration examples.",
                value="data.calibration",
                fix="Give `data: {train: ..., calibration: {samples: 256}}`.",
            )
        (reduced, reason), scheme, export = _reduced_range(config), _scheme(config), _Export(source, context)
        context.emit("choosing what becomes integers")
        calibration = task.encode(source.path, data["calibration"].rows)
        prepared = prepare(load_torch(source.path, task), export, calibration, scheme, threads=context.threads)
        made = distill(
            source,
            inputs["teacher"],
            _settings(config),
            task,
            Splits(data["train"].rows, data["validation"].rows),
            context.store,
            Place(context.checkpoint, context.device, context.threads, context.seed, context.emit),
            context.scratch,
            adapt=lambda model: prepared.insert(model, scheme.how),
        )
        context.emit("writing the INT8 model")
        validation, out_file = task.encode(source.path, data["validation"].rows), context.out / "model.onnx"
        fake = predict(made.model, validation)
        written, notes = finish(made.model, export, prepared, scheme)
        write_onnx(written, out_file)
        notes |= {"compared_with_training": compare_logits(task, fake, _run(out_file, validation, context.threads))}
        notes |= {"method": "aware", "weight_bits": scheme.how.weight_bits, "calibration_used": len(calibration)}
        notes |= {"reduce_range": reduced, "reduce_range_reason": reason, "target": config.target}
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.adds),
            graphs={"model": read_graph(out_file)},
            parameters=count_parameters(made.model),
            macs=source.manifest.macs,
            notes=made.notes | notes,
            golden=golden_onnx(context.out, task),
            **self.provenance(inputs, config, context),
        )


class _Export:
    """Exports float models of one artifact as graphs."""

    def __init__(self, source: Artifact, context: Context) -> None:
        self._source, self._context = source, context

    def __call__(self, model: PreTrainedModel) -> onnx.ModelProto:
        import onnx

        from compress.export.onnx_export import export_onnx
        from compress.export.signature import describe

        task, out_file = self._context.task, self._context.scratch / "float.onnx"
        inputs = task.inputs(self._source.path)
        export_onnx(model, out_file, inputs=inputs, metadata=describe(task.dump()))
        return onnx.load(out_file)


def _run(onnx_file: Any, encoded: Any, threads: int) -> Any:
    """Return (n, labels) float32 logits of an ONNX file in the order of the examples."""
    import numpy as np

    from compress.export.golden import open_session

    session = open_session(onnx_file, threads)
    names = {value.name for value in session.get_inputs()}
    parts = []
    order = encoded.batches(64, by_length=True)
    for indices in order:
        feed = {name: array for name, array in encoded.batch(indices).items() if name in names}
        parts.append(session.run(["logits"], feed)[0])
    return np.concatenate(parts)[np.argsort(np.concatenate(order), kind="stable")]


def _runtime(config: QatConfig) -> str:
    """Return the runtime whose rules the graph is written by.

    Raises:
        RecipeError: the target is unknown, or a GPU, whose residual sums and attention are not trained here.
    """
    target = None if config.target is None else find_target(config.target)
    if target is not None and target.device != "cpu":
        raise RecipeError(
            "Training under INT8 is for CPU targets.",
            value=target.name,
            fix="Name a CPU target, or use `quantize: {target: tensorrt}`, which trains nothing.",
        )
    return "onnxruntime" if target is None else target.runtime


def _reduced_range(config: QatConfig) -> tuple[bool, str]:
    """Return whether weights keep to 7 bits, and why."""
    target = None if config.target is None else find_target(config.target)
    if config.reduce_range != "auto":
        return config.reduce_range, "asked for"
    return reduced_range_for(target)


def _scheme(config: QatConfig) -> Scheme:
    from compress.quantization.writing import Int8Format
    from compress.search.aware import Scheme

    rules = rules_for(_runtime(config))
    how = Int8Format(
        weight_bits=7 if _reduced_range(config)[0] else 8, per_channel=config.per_channel, activation=rules.activation
    )
    return Scheme(rules, how, config.observer, config.embeddings, config.exclude, config.first_token)


def _settings(config: QatConfig) -> Any:
    from compress.distillation.distilling import Settings

    return Settings(
        weights=config.weights.factors,
        temperature=config.temperature,
        batch_size=config.batch_size,
        epochs=None if config.epochs == "auto" else config.epochs,
        learning_rate=config.learning_rate,
    )
