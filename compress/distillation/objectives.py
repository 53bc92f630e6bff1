"""What is minimised: the task's own loss, or a weighted sum of distillation terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from compress.distillation.examples import LABELLED, TARGETS, model_inputs
from compress.distillation.internals import Internals, read_internals
from compress.distillation.losses import hidden_loss, relation_heads, relation_loss, task_loss
from compress.distillation.teacher import LOGITS, RELATIONS, Terms, hidden_column
from compress.distillation.trainer import Learner
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskObjective:
    """The task's loss on labelled examples.

    Attributes:
        task: gives the loss.
        smoothing: label smoothing, 0 to 1.
    """

    task: Task
    smoothing: float = 0.0

    def __call__(self, learner: Learner, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = learner(**model_inputs(batch)).logits
        return task_loss(self.task, logits, batch[TARGETS], batch[LABELLED], self.smoothing), logits


@dataclass(frozen=True)
class DistillationObjective:
    """``task * L_task + logits * L_KD + hidden * L_hidden + relations * L_relations``.

    Attributes:
        task: gives the loss and the divergence of logits.
        weights: term -> factor; a term with factor 0 is not computed.
        temperature: of the logits term.
        terms: the teacher's layers and projections that are compared.
        student_layers: the student's layers, paired with ``terms.hidden``.
        most_heads: relation heads, at most.
        teacher: runs in every step; None when its token-wise outputs come with the batch.
    """

    task: Task
    weights: Mapping[str, float]
    temperature: float
    terms: Terms
    student_layers: tuple[int, ...] = ()
    most_heads: int = 12
    teacher: PreTrainedModel | None = field(default=None, repr=False)

    def __call__(self, learner: Learner, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = model_inputs(batch)
        seen = read_internals(learner.student, inputs, self.student_layers, self.terms.relations)
        wanted = self._teacher_internals(batch)
        loss = seen.logits.new_zeros(())
        if self.weights["task"]:
            loss = loss + self.weights["task"] * task_loss(self.task, seen.logits, batch[TARGETS], batch[LABELLED])
        if self.weights["logits"]:
            loss = loss + self.weights["logits"] * self.task.divergence(seen.logits, wanted.logits, self.temperature)
        mask = inputs.get("attention_mask")
        if self.terms.hidden:
            mapped = [to_teacher(states) for to_teacher, states in zip(learner.maps, seen.hidden, strict=True)]
            loss = loss + self.weights["hidden"] * hidden_loss(mapped, wanted.hidden, mask)
        if seen.relations is not None and wanted.relations is not None:
            heads = relation_heads(seen.relations.shape[-1] // 3, wanted.relations.shape[-1] // 3, self.most_heads)
            loss = loss + self.weights["relations"] * relation_loss(seen.relations, wanted.relations, mask, heads)
        return loss, seen.logits

    def _teacher_internals(self, batch: Mapping[str, torch.Tensor]) -> Internals:
        if self.teacher is not None:
            with torch.no_grad():
                return read_internals(self.teacher, model_inputs(batch), self.terms.hidden, self.terms.relations)
        hidden = tuple(batch[hidden_column(layer)] for layer in self.terms.hidden)
        return Internals(batch[LOGITS], hidden, batch.get(RELATIONS))
