"""Where a student comes from: the incoming model, layers of the teacher, a narrower cut of it, or a folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from compress.artifact import Artifact
from compress.distillation.material import Material
from compress.distillation.narrowing import measure_usage, narrow
from compress.errors import UsageError
from compress.models.depth import choose_layers, drop_layers
from compress.models.families import encoder_layers
from compress.models.heads import head_fits, with_fresh_head
from compress.models.loading import load_torch
from compress.models.source import take_in
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 256
"""Training examples that say which parts of the teacher a narrower student keeps."""


@dataclass(frozen=True)
class Form:
    """Which student is made; at most one of ``layers`` (perhaps with ``hidden``) and ``folder`` is given.

    Attributes:
        layers: of the teacher: how many, evenly spaced, or their positions; None: all.
        hidden: width of a narrower student; None: the teacher's.
        folder: of a foreign model, with its own tokenizer.
    """

    layers: int | Sequence[int] | None = None
    hidden: int | None = None
    folder: Path | None = None

    @property
    def incoming(self) -> bool:
        """Whether the student is the model that comes into the step."""
        return self.layers is None and self.hidden is None and self.folder is None


@dataclass(frozen=True)
class Student:
    """A model to train.

    Attributes:
        model: on the CPU, in evaluation mode.
        home: folder with its tokenizer.
        features: the teacher's hidden features that it kept; empty unless it was made narrower.
        new: whether its weights do not come from the teacher's own function (narrower, foreign).
        notes: what to put on record.
    """

    model: PreTrainedModel
    home: Path
    features: tuple[int, ...] = ()
    new: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


def make_student(
    form: Form,
    incoming: Artifact,
    teacher: Artifact,
    master: PreTrainedModel,
    material: Material,
    task: Task,
    scratch: Path,
    seed: int,
) -> Student:
    """Load or make the student.

    Args:
        form: which one.
        incoming: the model that comes into the step.
        teacher: its tokenizer serves students made of its layers.
        master: the teacher's model; it is not changed.
        material: says what a narrower student keeps.
        task: labels and lengths.
        scratch: an empty folder for a foreign model.
        seed: of a fresh head, and of the examples behind a narrower student.

    Raises:
        UsageError: the form does not fit the teacher, or the foreign model the task.
        ModelError: the foreign model cannot be taken in.
    """
    if form.incoming:
        return Student(load_torch(incoming.path, task), incoming.path)
    if form.folder is not None:
        return _foreign(form.folder, task, scratch, seed)
    total = len(encoder_layers(master))
    keep = choose_layers(total if form.layers is None else form.layers, total)
    if form.hidden is None:
        model = copy.deepcopy(master).to("cpu").requires_grad_(True)
        drop_layers(model, keep)
        return Student(model, teacher.path, notes={"teacher_layers": list(keep)})
    rows = material.labelled
    chosen = np.random.default_rng(seed).choice(len(rows), min(_SAMPLES, len(rows)), replace=False)
    sample = material.task.encode(teacher.path, [rows[i] for i in sorted(chosen)])
    model, features = narrow(master, keep, form.hidden, measure_usage(master, sample))
    return Student(model, teacher.path, features, new=True, notes={"teacher_layers": list(keep)})


def _foreign(folder: Path, task: Task, scratch: Path, seed: int) -> Student:
    """Take a foreign model in; its labels are matched by name, and a head that does not fit is made anew."""
    home = scratch / "student"
    home.mkdir()
    options = task.dump()
    taken = take_in(str(folder), home, task.name, None, task.max_length, options.get("problem"))
    if int(taken["max_length"]) < task.max_length:
        raise UsageError(
            "The student reads shorter texts than the recipe's model.",
            value=f"{folder.name}: {taken['max_length']} tokens; the task {task.max_length}",
            fix=f"Write `max_length: {taken['max_length']}` at the top of the recipe, or choose another student.",
        )
    model = load_torch(home, task)
    labels = tuple(taken.get("labels") or ())
    head = "its own"
    if labels != task.labels and sorted(labels) == sorted(task.labels):
        _reorder_labels(model, labels, task)
    if not head_fits(model, task):
        model, head = with_fresh_head(model, task, seed), "fresh"
    return Student(model.requires_grad_(True), home, new=True, notes={"student": folder.name, "student_head": head})


def _reorder_labels(model: PreTrainedModel, labels: Sequence[str], task: Task) -> None:
    """Bring the rows of the head's last linear into the task's order of labels, in place."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    order = torch.tensor([labels.index(label) for label in task.labels])
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        if last.bias is not None:
            last.bias.copy_(last.bias[order].clone())
    for key, value in task.config_options().items():
        setattr(model.config, key, value)
