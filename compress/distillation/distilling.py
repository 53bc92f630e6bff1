"""One distillation from two artifacts to a trained student: checks, teacher outputs, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.distillation.defaults import choose_epochs, choose_rate, halvings
from compress.distillation.examples import Examples, join
from compress.distillation.internals import predict
from compress.distillation.material import Material, gather, same_inputs, same_tokens
from compress.distillation.objectives import DistillationObjective
from compress.distillation.seeds import best_of, describe, train_seeds
from compress.distillation.students import Form, Student, make_student
from compress.distillation.teacher import CACHE_BYTES, Terms, token_bytes
from compress.distillation.teacher_store import teacher_outputs
from compress.distillation.terms import Comparison, compare
from compress.distillation.trainer import Learner
from compress.distillation.training import History, Place, Schedule, train
from compress.errors import RunError, UsageError
from compress.models.loading import load_torch
from compress.store import Store
from compress.tasks.base import Row, Score, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """What to minimise and for how long.

    Attributes:
        weights: factor of task, logits, hidden and relations; None for hidden: where it can be compared.
        temperature: of the logits term.
        batch_size: examples per step.
        epochs, learning_rate: None: by how much was removed, and by how many examples there are.
        warmup: share of all steps during which the rate rises.
        patience: stop after so many epochs without a better validation score; None: never.
        form: which student is trained.
        max_length: longest training example in tokens; None: the task's.
        min_teacher: worst validation score at which the teacher may teach; None: any.
        variants: unlabelled variants made of every training row.
        seeds: trainings; the best is kept.
        freeze_embeddings: None: where the student has the teacher's own.
        dropout: whether the student's dropout is on while it learns.
    """

    weights: Mapping[str, float | None]
    temperature: float = 2.0
    batch_size: int = 32
    epochs: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.06
    patience: int | None = None
    form: Form = field(default_factory=Form)
    max_length: int | None = None
    min_teacher: float | None = None
    variants: int = 0
    seeds: int = 1
    freeze_embeddings: bool | None = None
    dropout: bool = False


@dataclass(frozen=True)
class Splits:
    """The rows of a distillation.

    Attributes:
        train: rows with labels, and perhaps some without.
        transfer: unlabelled rows; the teacher labels them.
        validation: labelled rows; decide which epoch and which seed is kept.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    transfer: Sequence[Row] = ()


@dataclass(frozen=True)
class Distilled:
    """A trained student, the folder of its tokenizer, and what to put on record."""

    model: PreTrainedModel
    home: Path
    notes: dict[str, Any]


def distill(
    incoming: Artifact,
    teacher: Artifact,
    settings: Settings,
    task: Task,
    splits: Splits,
    store: Store,
    place: Place,
    scratch: Path,
    adapt: Callable[[PreTrainedModel], None] | None = None,
) -> Distilled:
    """Train a student to imitate a teacher.

    Args:
        incoming: the student, unless the settings make another one.
        teacher: a torch artifact with the same labels; it is measured first and never changed.
        settings: what to minimise and for how long.
        task: labels, lengths, losses.
        splits: the rows.
        store: keeps the teacher's outputs.
        place: where to train.
        scratch: an empty folder.
        adapt: changes the student in place before it learns; what it put in is trained, validated and returned.

    Raises:
        UsageError: labels, tokenizers or layers of the two models do not allow what is asked for.
        DataError: no training row has a label.
        RunError: the teacher is worse than ``min_teacher``, or training diverged.
    """
    _check_labels(task, {"teacher": teacher} | ({"student": incoming} if settings.form.incoming else {}))
    master = load_torch(teacher.path, task).to(place.device).requires_grad_(False)
    reference, score = _measure(master, teacher, task, splits.validation, settings.min_teacher)
    place.emit(f"teacher: validation {score.metric} {score.value:.4f}")
    material = gather(
        splits.train,
        splits.transfer,
        task,
        max_length=settings.max_length,
        variants=settings.variants,
        seed=place.seed,
    )
    student = make_student(settings.form, incoming, teacher, master, material, task, scratch, place.seed)
    if adapt is not None:
        adapt(student.model)
    frozen = _prepare(student, master, settings)
    examples, objective, notes = _lesson(student, teacher, master, settings, material, store, place)
    schedule, halved = _schedule(student, master, settings, len(examples))
    validation = task.encode(student.home, splits.validation)

    def run(model: PreTrainedModel, where: Place) -> History:
        widths = _map_widths(model, master, len(objective.student_layers))
        learner = Learner(model, widths, where.seed, student.features)
        return train(learner, objective, examples, validation, task, schedule, where, reference)

    trials = train_seeds(student.model, run, settings.seeds, place)
    best = best_of(trials, higher=score.direction == "higher")
    return Distilled(
        best.student,
        student.home,
        best.history.notes()
        | describe(trials)
        | student.notes
        | notes
        | {
            "teacher_validation": score.value,
            "trained_epochs": schedule.epochs,
            "peak_learning_rate": schedule.learning_rate,
            "encoder_halved": round(halved, 3),
            "frozen_embeddings": frozen,
        },
    )


def _check_labels(task: Task, models: Mapping[str, Artifact]) -> None:
    for role, artifact in models.items():
        labels = tuple(artifact.manifest.task.get("labels", ()))
        if labels != task.labels:
            raise UsageError(
                f"The {role} does not have the labels of the task, by name and in the same order.",
                value=f"{role}: {', '.join(labels[:5]) or 'none'}; task: {', '.join(task.labels[:5]) or 'none'}",
                fix="Fine-tune it on the same data first, or rename its labels with `labels:`.",
            )


def _measure(
    model: PreTrainedModel, artifact: Artifact, task: Task, rows: Sequence[Row], least: float | None
) -> tuple[np.ndarray, Score]:
    """Return the teacher's logits for the validation rows, and their score."""
    encoded = task.encode(artifact.path, rows)
    outputs = predict(model, encoded)
    score = task.score(outputs, np.asarray(encoded.targets))
    worse = least is not None and (score.value < least if score.direction == "higher" else score.value > least)
    if worse:
        raise RunError(
            "The teacher is too weak to teach.",
            value=f"validation {score.metric} {score.value:.4f}; min_teacher {least}",
            fix="Fine-tune the teacher longer, choose another, or change min_teacher.",
        )
    return outputs, score


def _prepare(student: Student, teacher: PreTrainedModel, settings: Settings) -> bool:
    """Set dropout and what is trained, in place; return whether the embeddings stay as they are."""
    if not settings.dropout:
        for module in student.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    freeze = settings.freeze_embeddings
    if freeze is None:
        freeze = not student.new and _keeps_embeddings(student.model, teacher)
    embeddings = getattr(student.model.base_model, "embeddings", None)
    if freeze and embeddings is not None:
        embeddings.requires_grad_(False)
    return bool(freeze and embeddings is not None)


def _keeps_embeddings(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    """Say whether the student reads the teacher's embeddings, perhaps with fewer rows, but not factorized."""
    own, theirs = (
        getattr(getattr(model.base_model, "embeddings", None), "word_embeddings", None) for model in (student, teacher)
    )
    if not isinstance(own, nn.Embedding) or not isinstance(theirs, nn.Embedding):
        return False
    return bool(own.embedding_dim == theirs.embedding_dim)


def _map_widths(student: PreTrainedModel, teacher: PreTrainedModel, pairs: int) -> tuple[tuple[int, int], ...]:
    return ((int(student.config.hidden_size), int(teacher.config.hidden_size)),) * pairs if pairs else ()


def _lesson(
    student: Student,
    teacher: Artifact,
    master: PreTrainedModel,
    settings: Settings,
    material: Material,
    store: Store,
    place: Place,
) -> tuple[Examples, DistillationObjective, dict[str, Any]]:
    """Return the examples with the teacher's outputs, what is minimised, and what to put on record."""
    labelled, unlabelled = material.encode(student.home)
    own = labelled if unlabelled is None else join(labelled, unlabelled)
    theirs = own if student.home == teacher.path else material.encode_joined(teacher.path)
    match = same_tokens(own, theirs, student.home, teacher.path)
    comparison, live = _fit(compare(settings.weights, student.model, master, match), master, own, theirs)
    terms = comparison.terms
    outputs = teacher_outputs(store, teacher.digest, master, theirs, Terms() if live else terms, place)
    objective = DistillationObjective(
        task=material.task,
        weights={name: float(factor or 0.0) for name, factor in comparison.weights.items()},
        temperature=settings.temperature,
        terms=terms,
        student_layers=tuple(layer for layer, _ in comparison.pairs),
        most_heads=int(getattr(master.config, "num_attention_heads", 1)),
        teacher=master if live else None,
    )
    return (
        Examples(labelled, unlabelled, outputs),
        objective,
        {
            "examples": len(labelled),
            "unlabelled": len(own) - len(labelled),
            "hidden_weight": comparison.weights["hidden"],
            "layer_pairs": [list(pair) for pair in comparison.pairs],
            "teacher_outputs": "computed in every step" if live else "stored",
        },
    )


def _fit(comparison: Comparison, master: PreTrainedModel, own: Encoded, theirs: Encoded) -> tuple[Comparison, bool]:
    """Say whether the teacher runs in every step because its states are too large to keep.

    It can where both models read the same arrays; where they do not, only the logits are compared.
    """
    if token_bytes(master, theirs, comparison.terms) <= CACHE_BYTES:
        return comparison, False
    return (comparison, True) if same_inputs(own, theirs) else (comparison.logits_only(), False)


def _schedule(student: Student, master: PreTrainedModel, settings: Settings, examples: int) -> tuple[Schedule, float]:
    halved = halvings(student.model, master)
    schedule = Schedule(
        epochs=settings.epochs or choose_epochs(halved, examples, settings.batch_size, student.new),
        learning_rate=settings.learning_rate or choose_rate(halved),
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        patience=settings.patience,
    )
    return schedule, halved
