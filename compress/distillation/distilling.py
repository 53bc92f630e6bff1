"""One distillation from two artifacts to a trained student: checks, teacher outputs, training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.artifact import Artifact, hash_json
from compress.data.encoded import Encoded
from compress.distillation.examples import Examples, join
from compress.distillation.internals import predict
from compress.distillation.losses import uniform_layers
from compress.distillation.objectives import DistillationObjective
from compress.distillation.teacher import CACHE_BYTES, TeacherOutputs, Terms, read_outputs, token_bytes, write_outputs
from compress.distillation.trainer import Learner
from compress.distillation.training import Place, Schedule, train
from compress.errors import DataError, RunError, UsageError
from compress.models.depth import choose_layers, drop_layers
from compress.models.families import encoder_layers
from compress.models.loading import load_torch
from compress.store import Store
from compress.tasks.base import Row, Score, Task, task_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """What to minimise and for how long.

    Attributes:
        weights: factor of task, logits, hidden and relations.
        temperature: of the logits term.
        schedule: epochs, rates, sizes.
        student_layers: make the student from these layers of the teacher; None: train the incoming model.
        max_length: longest training example in tokens; None: the task's.
        min_teacher: worst validation score at which the teacher may teach; None: any.
    """

    weights: Mapping[str, float]
    temperature: float
    schedule: Schedule
    student_layers: int | Sequence[int] | None = None
    max_length: int | None = None
    min_teacher: float | None = None


@dataclass(frozen=True)
class Material:
    """The rows to learn from, and how they are encoded for one model."""

    labelled: Sequence[Row]
    unlabelled: Sequence[Row]
    task: Task

    def encode(self, folder: Path) -> tuple[Encoded, Encoded | None]:
        """Return the labelled examples, and the unlabelled ones if there are any."""
        bare = [{**row, "label": None} for row in self.unlabelled]
        return self.task.encode(folder, self.labelled), self.task.encode(folder, bare) if bare else None


def distill(
    student: Artifact,
    teacher: Artifact,
    settings: Settings,
    task: Task,
    train_rows: Sequence[Row],
    transfer_rows: Sequence[Row],
    validation_rows: Sequence[Row],
    store: Store,
    place: Place,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train a student to imitate a teacher.

    Args:
        student: the incoming model; ignored when the settings make one from the teacher's layers.
        teacher: a torch artifact with the same labels; it is measured first and never changed.
        settings: what to minimise and for how long.
        task: labels, lengths, losses.
        train_rows: rows with labels, and perhaps some without.
        transfer_rows: unlabelled rows; the teacher labels them.
        validation_rows: labelled rows; decide which epoch is kept.
        store: keeps the teacher's outputs.
        place: where to train.

    Returns:
        The student with its best weights, and what to put on record.

    Raises:
        UsageError: labels, tokenizers or layers of the two models do not allow what is asked for.
        DataError: no training row has a label.
        RunError: the teacher is worse than ``min_teacher``, or training diverged.
    """
    _check_labels(task, {"teacher": teacher} | ({"student": student} if settings.student_layers is None else {}))
    master = load_torch(teacher.path, task).to(place.device).requires_grad_(False)
    score = _measure(master, teacher, task, validation_rows, settings.min_teacher)
    place.emit(f"teacher: validation {score.metric} {score.value:.4f}")
    if settings.student_layers is None:
        home, learner = student, load_torch(student.path, task)
    else:
        home, learner = teacher, _from_layers(master, settings.student_layers)
    material = _material(train_rows, transfer_rows, task, settings.max_length)
    labelled, unlabelled = material.encode(home.path)
    own = labelled if unlabelled is None else join(labelled, unlabelled)
    theirs = own if home.path == teacher.path else _encode_for(teacher, material)
    terms, pairs = _terms(settings.weights, learner, master, _same_tokens(own, theirs))
    live = token_bytes(master, theirs, terms) > CACHE_BYTES and set(own.inputs) == set(theirs.inputs)
    outputs = _teacher_outputs(store, teacher, master, theirs, Terms() if live else terms, place)
    objective = DistillationObjective(
        task=material.task,
        weights=settings.weights,
        temperature=settings.temperature,
        terms=terms,
        student_layers=tuple(layer for layer, _ in pairs),
        most_heads=int(master.config.num_attention_heads),
        teacher=master if live else None,
    )
    history = train(
        Learner(learner, _map_widths(learner, master, len(pairs)), seed=place.seed),
        objective,
        Examples(labelled, unlabelled, outputs),
        task.encode(home.path, validation_rows),
        task,
        settings.schedule,
        place,
    )
    return learner, history.notes() | {
        "teacher_validation": score.value,
        "examples": len(labelled),
        "unlabelled": len(own) - len(labelled),
        "layer_pairs": [list(pair) for pair in pairs],
        "teacher_outputs": "computed in every step" if live else "stored",
    }


def _check_labels(task: Task, models: Mapping[str, Artifact]) -> None:
    for role, artifact in models.items():
        labels = tuple(artifact.manifest.task.get("labels", ()))
        if labels != task.labels:
            raise UsageError(
                f"The {role} does not have the labels of the task, by name and in the same order.",
                value=f"{role}: {', '.join(labels[:5]) or 'none'}; task: {', '.join(task.labels[:5]) or 'none'}",
                fix="Fine-tune it on the same data first, or rename its labels with `labels:`.",
            )


def _measure(model: PreTrainedModel, artifact: Artifact, task: Task, rows: Sequence[Row], least: float | None) -> Score:
    encoded = task.encode(artifact.path, rows)
    score = task.score(predict(model, encoded), np.asarray(encoded.targets))
    worse = least is not None and (score.value < least if score.direction == "higher" else score.value > least)
    if worse:
        raise RunError(
            "The teacher is too weak to teach.",
            value=f"validation {score.metric} {score.value:.4f}; min_teacher {least}",
            fix="Fine-tune the teacher longer, choose another, or change min_teacher.",
        )
    return score


def _from_layers(teacher: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    student = copy.deepcopy(teacher).to("cpu").requires_grad_(True)
    drop_layers(student, choose_layers(layers, len(encoder_layers(student))))
    return student


def _material(train_rows: Sequence[Row], transfer_rows: Sequence[Row], task: Task, max_length: int | None) -> Material:
    labelled = [row for row in train_rows if row.get("label") is not None]
    if not labelled:
        raise DataError("The training split has no labelled row.", fix="Give `data.train` a label column.")
    unlabelled = [*(row for row in train_rows if row.get("label") is None), *transfer_rows]
    if max_length is not None:
        task = task_from(task.dump() | {"max_length": min(max_length, task.max_length)})
    return Material(labelled, unlabelled, task)


def _encode_for(artifact: Artifact, material: Material) -> Encoded:
    labelled, unlabelled = material.encode(artifact.path)
    return labelled if unlabelled is None else join(labelled, unlabelled)


def _same_tokens(first: Encoded, second: Encoded) -> bool:
    pairs = zip(first.inputs["input_ids"], second.inputs["input_ids"], strict=True)
    return first is second or all(np.array_equal(a, b) for a, b in pairs)


def _terms(
    weights: Mapping[str, float], student: PreTrainedModel, teacher: PreTrainedModel, same_tokens: bool
) -> tuple[Terms, tuple[tuple[int, int], ...]]:
    """Return what is asked of the teacher, and the pairs of (student layer, teacher layer) to compare."""
    if not same_tokens and (weights["hidden"] or weights["relations"]):
        raise UsageError(
            "Teacher and student cut texts into different tokens, so their tokens cannot be compared one by one.",
            value=f"weights hidden {weights['hidden']}, relations {weights['relations']}",
            fix="Set both weights to 0 and keep logits: `weights: {hidden: 0, relations: 0}`.",
        )
    small, large = len(encoder_layers(student)), len(encoder_layers(teacher))
    if weights["hidden"] and small > large:
        raise UsageError(
            "The student has more layers than the teacher, so its hidden states have no counterpart.",
            value=f"student {small}, teacher {large}",
            fix="Set `weights: {hidden: 0}`, or choose a deeper teacher.",
        )
    matched = tuple(enumerate(uniform_layers(small, large))) if weights["hidden"] else ()
    return Terms(tuple(layer for _, layer in matched), bool(weights["relations"])), matched


def _map_widths(student: PreTrainedModel, teacher: PreTrainedModel, pairs: int) -> tuple[tuple[int, int], ...]:
    return ((int(student.config.hidden_size), int(teacher.config.hidden_size)),) * pairs


def _teacher_outputs(
    store: Store, artifact: Artifact, model: PreTrainedModel, encoded: Encoded, terms: Terms, place: Place
) -> TeacherOutputs:
    """Return the teacher's outputs from the store; its forward runs once for each teacher and set of texts."""
    key = hash_json(
        {
            "teacher-outputs": 1,
            "teacher": artifact.digest,
            "tokens": _hash_tokens(encoded),
            "hidden": terms.hidden,
            "relations": terms.relations,
            "device": place.device,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    )

    def count(done: int, total: int) -> None:
        place.emit("teacher outputs", done, total)

    folder, _ = store.get_or_build(key, "teacher outputs", lambda out: write_outputs(model, encoded, terms, out, count))
    return read_outputs(folder)


def _hash_tokens(encoded: Encoded) -> str:
    digest = hashlib.sha256(encoded.lengths.tobytes())
    for name in sorted(encoded.inputs):
        digest.update(name.encode())
        for row in encoded.inputs[name]:
            digest.update(row.tobytes())
    return digest.hexdigest()
