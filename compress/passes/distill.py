"""``distill``: train a student to imitate a teacher: recovery after pruning, or a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import RecipeError
from compress.models.counting import count_macs, count_parameters, encoder_macs, layer_parameters
from compress.models.depth import choose_layers
from compress.models.families import dimensions, family_of
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

Position = Annotated[int, Field(ge=0)]


class StudentConfig(BaseModel):
    """Make the student from layers of the teacher instead of taking the incoming model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(ge=1)] | list[Position] = Field(
        description="encoder layers of the teacher: how many, evenly spaced, or their positions from 0"
    )


class Weights(BaseModel):
    """Factor of each term of the loss; a term with factor 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: float = Field(0.1, ge=0, description="the task's loss on labelled examples")
    logits: float = Field(0.9, ge=0, description="divergence from the teacher's logits, times temperature squared")
    hidden: float = Field(10.0, ge=0, description="mean squared error of hidden states, token by token")
    relations: float = Field(0.0, ge=0, description="MiniLMv2 relations of the last layer's queries, keys, values")

    @model_validator(mode="after")
    def _imitates(self) -> Weights:
        if not self.logits + self.hidden + self.relations:
            raise ValueError("at least one of logits, hidden, relations is above 0")
        return self


class DistillConfig(PassConfig):
    """Who teaches, who learns, and how."""

    teacher: str = Field(description="id of the step that made the teacher, or `model` for the recipe's own model")
    student: StudentConfig | None = Field(None, description="null = the incoming model is the student")
    epochs: int = Field(3, ge=1, description="passes over the training split")
    learning_rate: float = Field(1e-4, gt=0, description="peak, AdamW with linear decay")
    batch_size: int = Field(32, ge=1, description="examples per step")
    temperature: float = Field(2.0, gt=0, description="softens both models' logits in the logits term")
    weights: Weights = Field(Weights(), description="factors of the loss terms")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of all steps during which the rate rises")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation score")
    max_length: int | None = Field(None, ge=4, description="longest training example in tokens; null = the task's")
    min_teacher: float | None = Field(None, description="worst validation score at which the teacher may teach")
    transfer: bool = Field(False, description="also learn from the unlabelled rows of `data.transfer`")


class Distill(Pass):
    """Minimises a weighted sum of task loss, logits, hidden states and relations against a fixed teacher."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("accelerate", "torch", "transformers")
    Config: ClassVar[type[PassConfig]] = DistillConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    roles: ClassVar[tuple[str, ...]] = ("model", "teacher")
    adds: ClassVar[frozenset[str]] = frozenset({"distilled"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train", "validation", "transfer")
    trains: ClassVar[bool] = True

    def plan(self, inputs: Mapping[str, ModelInfo], config: DistillConfig) -> Plan:
        teacher = inputs["teacher"]
        if teacher.kind != "torch":
            raise RecipeError(
                f"The teacher of `distill` must be a torch model; {config.teacher!r} gives a {teacher.kind} model.",
                fix="Name a step before `export`, or `model`.",
            )
        student = inputs["model"] if config.student is None else _plan_layers(teacher, config.student)
        summary = f"imitate {config.teacher!r}, {config.epochs} epochs at {config.learning_rate:g}"
        if config.student is not None:
            summary += f", student: {_layer_count(config.student)} of its layers"
        return Plan(summary, replace(student, traits=student.traits | self.adds))

    def apply(self, inputs: Mapping[str, Artifact], config: DistillConfig, context: Context) -> Artifact:
        from compress.distillation.distilling import Settings, distill
        from compress.distillation.training import Place, Schedule
        from compress.models.golden import golden_torch
        from compress.models.loading import save_torch

        data = context.data
        transfer = data["transfer"].rows if config.transfer and "transfer" in data else ()
        if config.transfer and not transfer:
            raise RecipeError("`transfer: true`, but the recipe gives no transfer data.", fix="Set `data.transfer`.")
        source = inputs["model"] if config.student is None else inputs["teacher"]
        model, history = distill(
            inputs["model"],
            inputs["teacher"],
            Settings(
                weights=config.weights.model_dump(),
                temperature=config.temperature,
                student_layers=None if config.student is None else config.student.layers,
                max_length=config.max_length,
                min_teacher=config.min_teacher,
                schedule=Schedule(
                    config.epochs, config.learning_rate, config.batch_size, config.warmup, patience=config.patience
                ),
            ),
            context.task,
            data["train"].rows,
            transfer,
            data["validation"].rows,
            context.store,
            Place(context.checkpoint, context.device, context.threads, context.seed, context.emit),
        )
        save_torch(model, context.out, tokenizer_from=source.path)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=history,
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _layer_count(student: StudentConfig) -> int:
    return student.layers if isinstance(student.layers, int) else len(student.layers)


def _plan_layers(teacher: ModelInfo, student: StudentConfig) -> ModelInfo:
    if not teacher.config:
        return replace(teacher, parameters=None, macs=None)
    size = dimensions(teacher.config)
    gone = size.layers - len(choose_layers(student.layers, size.layers))
    per_layer = encoder_macs(size) // size.layers
    return replace(
        teacher,
        config={**teacher.config, family_of(teacher.config["model_type"]).layers_key: size.layers - gone},
        parameters=None if teacher.parameters is None else teacher.parameters - gone * layer_parameters(size),
        macs=None if teacher.macs is None else teacher.macs - gone * per_layer,
    )
