"""One training run: epochs, validation after each, the best checkpoint kept, resumable after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments

from compress.data.encoded import Encoded
from compress.distillation.checkpoints import latest
from compress.distillation.examples import TARGETS, Examples
from compress.distillation.internals import predict
from compress.distillation.sparsity import zeros_kept
from compress.distillation.trainer import RANK, SCORE, Emit, Learner, Objective, ObjectiveTrainer, Reporter
from compress.models.loading import limit_threads, quiet
from compress.tasks.base import Task

_DIVERGENCE = "divergence"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: AdamW with linear warm-up and linear decay.

    Attributes:
        epochs: passes over the training examples.
        learning_rate: peak.
        batch_size: examples per step.
        warmup: share of all steps during which the rate rises.
        weight_decay: AdamW's.
        patience: stop after this many epochs without a better validation score; None: never.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    warmup: float = 0.06
    weight_decay: float = 0.0
    patience: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a training run happens.

    Attributes:
        checkpoints: folder that survives a kill; a whole checkpoint in it is resumed.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of the order of examples and of dropout.
        emit: progress sink, called as ``emit(message, done, total)``.
    """

    checkpoints: Path
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    emit: Emit = lambda message, done=None, total=None: None


@dataclass(frozen=True)
class History:
    """What happened, epoch by epoch.

    Attributes:
        metric: name of the validation score.
        start: the score before training.
        scores: after each epoch.
        losses: mean training loss of each epoch.
        divergences: from the reference after each epoch, at temperature 1; empty without a reference.
        kept: the epoch whose weights were kept, from 1.
        sparse: linear layers that are 2:4 and stayed so.
    """

    metric: str
    start: float
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    divergences: tuple[float, ...]
    kept: int
    sparse: int = 0

    @property
    def best(self) -> float:
        """The score of the kept checkpoint."""
        return self.scores[self.kept - 1]

    def notes(self) -> dict[str, Any]:
        """Return the record for a manifest."""
        notes: dict[str, Any] = {
            "metric": self.metric,
            "validation_before": self.start,
            "validation_by_epoch": list(self.scores),
            "validation": self.best,
            "loss_by_epoch": [round(loss, 6) for loss in self.losses],
            "kept_epoch": self.kept,
        }
        if self.divergences:
            notes["divergence_by_epoch"] = [round(x, 6) for x in self.divergences]
        if self.sparse:
            notes["sparse_layers"] = self.sparse
        return notes


def read_history(record: Mapping[str, Any]) -> History:
    """Rebuild a history from its JSON form."""
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in record.items()}
    return History(**fields)


def train(
    learner: Learner,
    objective: Objective,
    examples: Examples,
    validation: Encoded,
    task: Task,
    schedule: Schedule,
    place: Place,
    reference: np.ndarray | None = None,
) -> History:
    """Train in place; afterwards the learner holds the weights of the best epoch by validation score.

    With equal arguments the result is the same, also when the run was killed in between and resumed from
    the last epoch that was finished. Linear layers that are 2:4 sparse stay so.

    Args:
        learner: the student and its maps.
        objective: what is minimised.
        examples: the training examples.
        validation: labelled examples; decides which epoch is kept.
        task: scores.
        schedule: how long and how fast.
        place: where.
        reference: (n, labels) logits of the teacher for the validation examples: of epochs with equal scores the
            one closest to them is kept. A few hundred examples make ties common. None: the first is kept.

    Raises:
        RunError: the loss is not finite, or a 2:4 layer did not stay so.
    """
    with limit_threads(place.threads), quiet():
        learner.to(place.device)
        start = task.score(predict(learner.student, validation), np.asarray(validation.targets))
        order = np.argsort(validation.lengths, kind="stable")
        aim = None if reference is None else reference[order]
        reporter = Reporter(place.emit, start.metric, start.direction == "higher", schedule.patience)
        trainer = ObjectiveTrainer(
            objective,
            task,
            model=learner,
            args=_arguments(schedule, place, higher=start.direction == "higher"),
            train_dataset=examples,
            eval_dataset=Examples(validation.select(order)),
            data_collator=examples.collate,
            compute_metrics=lambda seen: _judge(task, seen.predictions, seen.label_ids, aim),
            callbacks=[reporter],
        )
        reporter.loss = trainer.latest_loss
        trainer.remove_callback(PrinterCallback)
        checkpoint = latest(place.checkpoints)
        with zeros_kept(learner.student) as sparse:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    learner.to("cpu").eval()
    log = trainer.state.log_history

    def column(name: str) -> tuple[float, ...]:
        return tuple(float(entry[name]) for entry in log if name in entry)

    ranks = column(f"eval_{RANK}")
    best = max(ranks) if start.direction == "higher" else min(ranks)
    return History(
        metric=start.metric,
        start=start.value,
        scores=column(f"eval_{SCORE}"),
        losses=column("loss"),
        divergences=column(f"eval_{_DIVERGENCE}"),
        kept=ranks.index(best) + 1,
        sparse=len(sparse),
    )


def _judge(task: Task, outputs: np.ndarray, targets: np.ndarray, reference: np.ndarray | None) -> dict[str, float]:
    """Return the score, and a rank that is the score less up to half an example for the distance to the reference."""
    score = task.score(outputs, targets)
    if reference is None:
        return {SCORE: score.value, RANK: score.value}
    distance = float(task.divergence(torch.from_numpy(outputs), torch.from_numpy(reference), 1.0))
    tie = 0.5 / len(outputs) * distance / (1 + distance) if score.direction == "higher" else 0.0
    return {SCORE: score.value, RANK: score.value - tie, _DIVERGENCE: distance}


def _arguments(schedule: Schedule, place: Place, *, higher: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(place.checkpoints),
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        optim="adamw_torch_fused",
        lr_scheduler_type="linear",
        warmup_steps=schedule.warmup,
        weight_decay=schedule.weight_decay,
        per_device_train_batch_size=schedule.batch_size,
        per_device_eval_batch_size=64,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=None,  # ObjectiveTrainer rotates: Transformers goes by the clock of the files
        load_best_model_at_end=True,
        metric_for_best_model=RANK,
        greater_is_better=higher,
        label_names=[TARGETS],
        remove_unused_columns=False,
        dataloader_pin_memory=place.device != "cpu",
        use_cpu=place.device == "cpu",
        seed=place.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
