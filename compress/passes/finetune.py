"""``finetune``: train a classifier on the recipe's data, from a pretrained model or from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from compress.artifact import Artifact, Kind, create_artifact
from compress.data.pictures import IMAGE
from compress.errors import DataError, RecipeError, UsageError
from compress.models.counting import planned_counts
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.tasks.base import Task


_Size = Annotated[int, Field(ge=1, le=2**16)]


class _Fresh(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FreshEncoder(_Fresh):
    """A new BERT with a WordPiece vocabulary learned from the training texts."""

    family: Literal["bert"] = Field("bert", description="texts")
    vocab_size: int = Field(4000, ge=32, description="entries of the vocabulary, at most")
    layers: int = Field(4, ge=1, description="encoder layers")
    hidden: int = Field(256, ge=8, description="width of the encoder; a multiple of heads")
    heads: int = Field(4, ge=1, description="attention heads per layer")
    intermediate: int = Field(1024, ge=1, description="feed-forward neurons per layer")


class FreshVit(_Fresh):
    """A new vision transformer."""

    family: Literal["vit"] = Field(description="images, as patches")
    image_size: int = Field(description="height and width of the images, pixels; a multiple of patch_size", ge=1)
    num_channels: Literal[1, 3] = Field(3, description="1: grey; 3: red, green, blue")
    patch_size: int = Field(16, ge=1, description="height and width of a patch, pixels")
    layers: int = Field(4, ge=1, description="encoder layers")
    hidden: int = Field(128, ge=8, description="width of the encoder; a multiple of heads")
    heads: int = Field(4, ge=1, description="attention heads per layer")
    intermediate: int = Field(512, ge=1, description="feed-forward neurons per layer")


class FreshResnet(_Fresh):
    """A new residual network of basic blocks."""

    family: Literal["resnet"] = Field(description="images, by convolutions")
    image_size: int = Field(description="height and width of the images, pixels", ge=1)
    num_channels: Literal[1, 3] = Field(3, description="1: grey; 3: red, green, blue")
    stem: int = Field(32, ge=8, description="channels of the first convolution")
    widths: tuple[_Size, ...] = Field((32, 64, 128), min_length=1, description="channels of each stage")
    depths: tuple[_Size, ...] = Field((1, 1, 1), min_length=1, description="blocks of each stage")


def _family(value: Any) -> str:
    return str(value.get("family", "bert") if isinstance(value, Mapping) else getattr(value, "family", "bert"))


Fresh = Annotated[
    Annotated[FreshEncoder, Tag("bert")] | Annotated[FreshVit, Tag("vit")] | Annotated[FreshResnet, Tag("resnet")],
    Discriminator(_family),
]


class FinetuneConfig(PassConfig):
    """How to train."""

    init: Fresh | None = Field(None, description="make a new small model; null = start from the model")
    epochs: int = Field(3, ge=1, description="passes over the training split")
    learning_rate: float = Field(
        5e-5, gt=0, description="peak, AdamW with linear decay; a fresh model wants 5e-4 or more"
    )
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
                    fix="Give the recipe a `model:`, or the step an `init: {...}` for a fresh model.",
                )
            info = inputs["model"]
            return Plan(f"train on the data, {rest}", replace(info, traits=info.traits | self.adds))
        init = config.init
        shape = _fresh_shape(init)
        if isinstance(init, FreshResnet):
            return Plan(f"train a fresh residual network, {rest}", ModelInfo("torch", self.adds, shape))
        kind = "vision transformer" if isinstance(init, FreshVit) else "encoder"
        parameters, macs = planned_counts(shape)
        planned = ModelInfo("torch", self.adds, shape, parameters, macs)
        return Plan(f"train a fresh {kind} ({init.layers} x {init.hidden}), {rest}", planned)

    def apply(self, inputs: Mapping[str, Artifact], config: FinetuneConfig, context: Context) -> Artifact:
        from compress.distillation.examples import Examples
        from compress.distillation.objectives import TaskObjective
        from compress.distillation.trainer import Learner
        from compress.distillation.training import Place, Schedule, train
        from compress.models.counting import count_parameters, known_macs
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
            macs=known_macs(model),
            notes=history.notes() | {"examples": len(labelled)},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _start(inputs: Mapping[str, Artifact], config: FinetuneConfig, context: Context) -> tuple[Path, PreTrainedModel]:
    """Return the tokenizer's folder and the model to train, with a head that fits the task."""
    from compress.models.heads import head_fits, with_fresh_head
    from compress.models.loading import load_torch

    if config.init is None:
        source = inputs["model"].path
        model = load_torch(source, context.task)
        return source, model if head_fits(model, context.task) else with_fresh_head(model, context.task, context.seed)
    folder = context.scratch / "fresh"
    folder.mkdir()
    _make_fresh(config.init, context, folder)
    return folder, load_torch(folder, context.task)


def _make_fresh(init: FreshEncoder | FreshVit | FreshResnet, context: Context, folder: Path) -> None:
    """Write a new model for the task into an empty folder.

    Raises:
        RecipeError: it reads images and the task texts, or the other way round.
    """
    from compress.models.fresh import fresh_classifier
    from compress.models.fresh_images import fresh_resnet, fresh_vit

    task, sizes = context.task, init.model_dump(exclude={"family"})
    if isinstance(init, FreshEncoder) == (IMAGE in task.columns):
        raise RecipeError(
            "The fresh model does not read what the task gives it.",
            value=f"family {init.family!r}, task {task.name!r}",
            fix="Use `init: {family: vit, ...}` or `{family: resnet, ...}` for images, `{family: bert}` for texts.",
        )
    if isinstance(init, FreshVit):
        fresh_vit(task, folder, **sizes, seed=context.seed)
    elif isinstance(init, FreshResnet):
        fresh_resnet(task, folder, **sizes, seed=context.seed)
    else:
        rows = context.data["train"].rows
        texts = [str(row[column]) for row in rows for column in task.columns if row.get(column) is not None]
        fresh_classifier(texts, task, **sizes, seed=context.seed, out=folder)


def _shortened(task: Task, max_length: int | None) -> Task:
    from compress.tasks.base import task_from

    return task if max_length is None else task_from(task.dump() | {"max_length": min(max_length, task.max_length)})


def _fresh_shape(init: FreshEncoder | FreshVit | FreshResnet) -> dict[str, Any]:
    """Return the config.json that the fresh model will have, as far as a plan needs it."""
    if isinstance(init, FreshResnet):
        return {"model_type": "resnet", "num_channels": init.num_channels, "image_size": init.image_size}
    encoder = {
        "model_type": init.family,
        "hidden_size": init.hidden,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "intermediate_size": init.intermediate,
    }
    if isinstance(init, FreshVit):
        sizes = {"image_size": init.image_size, "patch_size": init.patch_size, "num_channels": init.num_channels}
        return encoder | sizes
    return encoder | {"vocab_size": init.vocab_size, "max_position_embeddings": 128, "type_vocab_size": 2}
