"""``distill``: train a student to imitate a teacher: recovery after pruning, or a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from compress.artifact import Artifact, Kind, create_artifact, hash_json
from compress.errors import RecipeError
from compress.models.counting import count_parameters, known_macs
from compress.models.files import hash_files
from compress.models.signature import torch_graph
from compress.models.sparsity import SPARSE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.passes.students import plan_student

Position = Annotated[int, Field(ge=0)]
Auto = Literal["auto"]


class StudentConfig(BaseModel):
    """Make the student out of the teacher, or take another model, instead of the incoming one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(ge=1)] | list[Position] | None = Field(
        None, description="encoder layers of the teacher: how many, evenly spaced, or their positions from 0"
    )
    hidden: int | None = Field(
        None, ge=1, description="features of a narrower student, a multiple of the head size; null = the teacher's"
    )
    model: str | None = Field(
        None, description="folder of another, smaller model with its own tokenizer; `${NAME}` is replaced"
    )

    @model_validator(mode="after")
    def _is_one_form(self) -> StudentConfig:
        if (self.model is None) == (self.layers is None and self.hidden is None):
            raise ValueError("give `layers`, `hidden` or both, or else `model`")
        return self

    @field_serializer("model")
    def _without_path(self, model: str | None) -> str | None:
        return None if model is None else Path(model).name

    @property
    def folder(self) -> Path | None:
        return None if self.model is None else Path(self.model).expanduser()


class Weights(BaseModel):
    """Factor of each term of the loss; a term with factor 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: float = Field(0.1, ge=0, description="the task's loss on labelled examples")
    logits: float = Field(0.9, ge=0, description="divergence from the teacher's logits, times temperature squared")
    hidden: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto",
        description="mean squared error of hidden states, token by token; "
        "auto = 10 where both models cut texts into the same tokens, else 0",
    )
    relations: float = Field(0.0, ge=0, description="MiniLMv2 relations of the last layer's queries, keys, values")

    @model_validator(mode="after")
    def _imitates(self) -> Weights:
        if not (self.logits or self.hidden or self.relations):
            raise ValueError("at least one of logits, hidden, relations is above 0")
        return self

    @property
    def factors(self) -> dict[str, float | None]:
        """Term -> factor, None where it is settled by the models."""
        return {name: None if value == "auto" else value for name, value in self}


class DistillConfig(PassConfig):
    """Who teaches, who learns, and how. Only ``teacher`` has to be given."""

    teacher: str = Field(description="id of the step that made the teacher, or `model` for the recipe's own model")
    student: StudentConfig | None = Field(None, description="null = the incoming model is the student")
    epochs: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="passes over the examples; auto = 400 steps, 400 more for each halving of the encoder, "
        "twice that for a narrower or foreign student; 2 to 40 epochs",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="peak, AdamW with linear decay; auto = 1e-4, times 1.41 for each halving of the encoder"
    )
    batch_size: int = Field(32, ge=1, description="examples per step")
    temperature: float = Field(2.0, gt=0, description="softens both models' logits in the logits term")
    weights: Weights = Field(Weights(), description="factors of the loss terms")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of all steps during which the rate rises")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation score")
    max_length: int | None = Field(None, ge=4, description="longest training example in tokens; null = the task's")
    min_teacher: float | None = Field(None, description="worst validation score at which the teacher may teach")
    transfer: bool = Field(False, description="also learn from the unlabelled rows of `data.transfer`")
    augment: int = Field(0, ge=0, description="also learn from so many changed copies of each training text")
    seeds: int = Field(1, ge=1, description="trainings from different seeds; the best on validation is kept")
    freeze_embeddings: bool | Auto = Field(
        "auto", description="leave the embeddings as they are; auto = where the student has the teacher's own"
    )
    dropout: bool = Field(False, description="whether the student's dropout is on while it learns")


class Distill(Pass):
    """Minimises a weighted sum of task loss, logits, hidden states and relations against a fixed teacher."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("accelerate", "tokenizers", "torch", "transformers")
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
        summary = f"imitate {config.teacher!r}, {_how_long(config)}"
        student = inputs["model"]
        if config.student is not None:
            form = config.student
            student, words = plan_student(teacher, form.layers, form.hidden, form.folder)
            summary += f", student: {words}"
        traits = _made_traits(student.traits, config)
        return Plan(summary, replace(student, traits=traits | self.adds))

    def expand(self, config: DistillConfig, value: Callable[[str], str]) -> DistillConfig:
        if config.student is None or config.student.model is None:
            return config
        student = config.student.model_copy(update={"model": value(config.student.model)})
        return config.model_copy(update={"student": student})

    def settle(self, config: DistillConfig) -> dict[str, Any]:
        digest = _student_digest(config)
        return {} if digest is None else {"student": digest}

    def apply(self, inputs: Mapping[str, Artifact], config: DistillConfig, context: Context) -> Artifact:
        from compress.distillation.distilling import Splits, distill
        from compress.distillation.training import Place
        from compress.models.golden import golden_torch
        from compress.models.loading import save_torch

        data = context.data
        transfer = data["transfer"].rows if config.transfer and "transfer" in data else ()
        if config.transfer and not transfer:
            raise RecipeError("`transfer: true`, but the recipe gives no transfer data.", fix="Set `data.transfer`.")
        digest = _student_digest(config)
        made = distill(
            inputs["model"],
            inputs["teacher"],
            _settings(config),
            context.task,
            Splits(data["train"].rows, data["validation"].rows, transfer),
            context.store,
            Place(context.checkpoint, context.device, context.threads, context.seed, context.emit),
            context.scratch,
        )
        save_torch(made.model, context.out, tokenizer_from=made.home)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(_traits(inputs, config) | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(made.model),
            macs=known_macs(made.model),
            notes=made.notes | ({} if digest is None else {"student_digest": digest}),
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _settings(config: DistillConfig) -> Any:
    from compress.distillation.distilling import Settings
    from compress.distillation.students import Form

    student = config.student
    return Settings(
        weights=config.weights.factors,
        temperature=config.temperature,
        batch_size=config.batch_size,
        epochs=None if config.epochs == "auto" else config.epochs,
        learning_rate=None if config.learning_rate == "auto" else config.learning_rate,
        warmup=config.warmup,
        patience=config.patience,
        form=Form() if student is None else Form(student.layers, student.hidden, student.folder),
        max_length=config.max_length,
        min_teacher=config.min_teacher,
        variants=config.augment,
        seeds=config.seeds,
        freeze_embeddings=None if config.freeze_embeddings == "auto" else config.freeze_embeddings,
        dropout=config.dropout,
    )


def _traits(inputs: Mapping[str, Artifact], config: DistillConfig) -> frozenset[str]:
    """Return what was done to the student before: a foreign one comes with nothing."""
    if config.student is None:
        return frozenset(inputs["model"].traits)
    return _made_traits(inputs["teacher"].traits, config) if config.student.model is None else frozenset()


def _made_traits(traits: frozenset[str], config: DistillConfig) -> frozenset[str]:
    """Return what stays true of the teacher in its student: a narrower one has other groups of four inputs."""
    narrower = config.student is not None and config.student.hidden is not None
    return traits - {SPARSE} if narrower else traits


def _student_digest(config: DistillConfig) -> str | None:
    """Return the digest of the foreign student's files, if there is one."""
    folder = None if config.student is None else config.student.folder
    return None if folder is None else hash_json(hash_files(folder))


def _how_long(config: DistillConfig) -> str:
    epochs = "automatic length" if config.epochs == "auto" else f"{config.epochs} epochs"
    rate = "" if config.learning_rate == "auto" else f" at {config.learning_rate:g}"
    return epochs + rate + (f", best of {config.seeds} seeds" if config.seeds > 1 else "")
