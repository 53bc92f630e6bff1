"""``finetune``: train a classifier on the recipe's data, from a pretrained model or from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, RecipeError, UsageError
from compress.models.counting import planned_counts
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.tasks.base import Task


class FreshEncoder(BaseModel):
    """A new BERT with a WordPiece vocabulary learned from the training texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(4000, ge=32, description="entries of the vocabulary, at most")
    layers: int = Field(4, ge=1, description="encoder layers")
    hidden: int = Field(256, ge=8, description="width of the encoder; a multiple of heads")
    heads: int = Field(4, ge=1, description="attention heads per layer")
    intermediate: int = Field(1024, ge=1, description="feed-forward neurons per layer")


class FinetuneConfig(PassConfig):
    """How to train."""

    init: FreshEncoder | None = Field(None, description="make a new small encoder; null = start from the model")
    epochs: int = Field(3, ge=1, description="passes over the training split")
    learning_rate: float = Field(5e-5, gt=0, description="peak, AdamW with linear decay; a fresh encoder wants 5e-4")
    batch_size: int = Field(32, ge=1, description="examples per step")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of all steps during which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation score")
    max_length: int | None = Field(None, ge=4, description="longest training example in tokens; null = the task's")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="single label only: share spread over all labels")


class Finetune(Pass):
    """Trains on labelled rows, keeps the epoch with the best validation score."""

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("accelerate", "tokenizers", "torch", "transformers")
    Config: ClassVar[type[PassConfig]] = FinetuneConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    adds: ClassVar[frozenset[str]] = frozenset({"finetuned"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train", "validation")
    trains: ClassVar[bool] = True

    def plan(self, inputs: Mapping[str, ModelInfo], config: FinetuneConfig) -> Plan:
        rest = f"{config.epochs} epochs at {config.learning_rate:g}"
        if config.init is None:
            if "model" not in inputs:
                raise RecipeError(
                    "`finetune` has no model to start from.",
                    fix="Give the recipe a `model:`, or the step an `init: {...}` for a fresh encoder.",
                )
            info = inputs["model"]
            return Plan(f"train on the data, {rest}", replace(info, traits=info.traits | self.adds))
        init = config.init
        shape = _fresh_shape(init)
        parameters, macs = planned_counts(shape)
        planned = ModelInfo("torch", self.adds, shape, parameters, macs)
        return Plan(f"train a fresh encoder ({init.layers} x {init.hidden}), {rest}", planned)

    def apply(self, inputs: Mapping[str, Artifact], config: FinetuneConfig, context: Context) -> Artifact:
        from compress.distillation.examples import Examples
        from compress.distillation.objectives import TaskObjective
        from compress.distillation.trainer import Learner
        from compress.distillation.training import Place, Schedule, train
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import save_torch

        folder, model = _start(inputs, config, context)
        labelled = [row for row in context.data["train"].rows if row.get("label") is not None]
        if not labelled:
            raise DataError("The training split has no labelled row.", fix="Give `data.train` a label column.")
        task = _shortened(context.task, config.max_length)
        encoded = task.encode(folder, labelled)
        if config.label_smoothing and np.asarray(encoded.targets).dtype.kind != "i":
            raise UsageError(
                "Label smoothing needs exactly one label per example.",
                value=f"label_smoothing {config.label_smoothing}",
                fix="Leave it out.",
            )
        history = train(
            Learner(model),
            TaskObjective(task, config.label_smoothing),
            Examples(encoded),
            context.task.encode(folder, context.data["validation"].rows),
            context.task,
            Schedule(
                config.epochs,
                config.learning_rate,
                config.batch_size,
                config.warmup,
                config.weight_decay,
                config.patience,
            ),
            Place(context.checkpoint, context.device, context.threads, context.seed, context.emit),
        )
        save_torch(model, context.out, tokenizer_from=folder)
        before = inputs["model"].traits if config.init is None else frozenset()
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(before | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=history.notes() | {"examples": len(labelled)},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _start(inputs: Mapping[str, Artifact], config: FinetuneConfig, context: Context) -> tuple[Path, PreTrainedModel]:
    """Return the tokenizer's folder and the model to train, with a head that fits the task."""
    from compress.models.fresh import fresh_classifier
    from compress.models.heads import head_fits, with_fresh_head
    from compress.models.loading import load_torch

    if config.init is None:
        source = inputs["model"].path
        model = load_torch(source, context.task)
        return source, model if head_fits(model, context.task) else with_fresh_head(model, context.task, context.seed)
    folder = context.scratch / "fresh"
    folder.mkdir()
    rows = context.data["train"].rows
    fresh_classifier(
        [str(row[column]) for row in rows for column in context.task.columns if row.get(column) is not None],
        context.task,
        **config.init.model_dump(),
        seed=context.seed,
        out=folder,
    )
    return folder, load_torch(folder, context.task)


def _shortened(task: Task, max_length: int | None) -> Task:
    from compress.tasks.base import task_from

    return task if max_length is None else task_from(task.dump() | {"max_length": min(max_length, task.max_length)})


def _fresh_shape(init: FreshEncoder) -> dict[str, Any]:
    """Return the config.json that the fresh encoder will have, as far as a plan needs it."""
    return {
        "model_type": "bert",
        "vocab_size": init.vocab_size,
        "hidden_size": init.hidden,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "intermediate_size": init.intermediate,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
    }
