"""The Trainer of every training loop here: Transformers' own, with another ``compute_loss``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from compress.distillation.checkpoints import rotate, seal
from compress.distillation.examples import TARGETS, Examples, model_inputs
from compress.errors import RunError
from compress.progress import Observed
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Emit = Callable[..., None]
"""Called as ``emit(message, done, total)``."""
SCORE = "score"
RANK = "rank"
"""The score, with ties broken: the checkpoint with the best rank is kept."""


class Learner(nn.Module):  # type: ignore[misc]
    """A student, and the maps that only training needs: checkpoints hold both, artifacts the student alone.

    Args:
        student: the model that will be kept.
        widths: for each pair of compared layers (student width, teacher width); where they differ a linear
            map without bias leads from one to the other, as in TinyBERT (arXiv:1909.10351, eq. 8).
        seed: of the maps' initial weights.
        features: the teacher's features that a narrower student kept: its maps begin by handing these through.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        widths: tuple[tuple[int, int], ...] = (),
        seed: int = 0,
        features: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.student = student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps = [nn.Identity() if inner == outer else nn.Linear(inner, outer, bias=False) for inner, outer in widths]
        self.maps = nn.ModuleList(maps)
        for linear in self.maps:
            if features and isinstance(linear, nn.Linear):
                with torch.no_grad():
                    linear.weight[list(features)] = torch.eye(linear.in_features)

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.student(**inputs)


Objective = Callable[[Learner, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
"""What is minimised: (learner, collated batch) -> (scalar loss, logits (batch, labels))."""


class ObjectiveTrainer(Trainer):  # type: ignore[misc]
    """Minimises an ``Objective`` in training and reports the plain task loss in evaluation.

    Args:
        objective: what is minimised.
        task: gives the loss in evaluation.
        **options: as ``transformers.Trainer`` takes them.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, objective: Objective, task: Task, **options: Any) -> None:
        super().__init__(**options)
        self._objective = objective
        self._task = task
        self._latest: torch.Tensor | None = None

    def latest_loss(self) -> float | None:
        """Return the loss of the last training batch; None before the first."""
        return None if self._latest is None else float(self._latest)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if model.training:
            loss, logits = self._objective(self.accelerator.unwrap_model(model), inputs)
            if not bool(torch.isfinite(loss)):
                raise RunError(
                    "Training diverged: the loss is not finite.",
                    value=f"step {self.state.global_step}, learning rate {self.args.learning_rate}",
                    fix="Lower learning_rate, or lengthen warmup.",
                )
            self._latest = loss.detach()
        else:
            logits = model(**model_inputs(inputs)).logits
            loss = self._task.loss(logits, inputs[TARGETS])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        seal(checkpoint)
        rotate(checkpoint, self.state.best_model_checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Group similar lengths; the lengths are known, so no example is read for it."""
        data: Examples = train_dataset or self.train_dataset
        return LengthGroupedSampler(self.args.train_batch_size, lengths=data.lengths)


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells progress, and stops when the validation score has not improved for ``patience`` epochs.

    What it knows it reads from the trainer's state, so it carries over an interruption.
    """

    def __init__(self, emit: Emit, metric: str, higher: bool, patience: int | None) -> None:
        self._emit = emit
        self._metric = metric
        self._sign = 1.0 if higher else -1.0
        self._patience = patience
        self.loss: Callable[[], float | None] = lambda: None
        """Asked for the last training loss."""

    def _observed(self, args: TrainingArguments, state: TrainerState) -> Observed:
        """Return the last loss and the last validation score."""
        epochs = round(args.num_train_epochs)
        epoch = min(int(state.epoch or 0) + 1, epochs)
        scores = [entry[f"eval_{SCORE}"] for entry in state.log_history if f"eval_{SCORE}" in entry]
        notes, values = [f"epoch {epoch}/{epochs}"], {"epoch": float(state.epoch or 0)}
        loss = self.loss()
        if loss is not None:
            notes.append(f"loss {loss:.3g}")
            values["loss"] = loss
        if scores:
            last = scores[-1]
            notes.append(f"{self._metric} {100 * last:.1f} %" if self._sign > 0 else f"{self._metric} {last:.3g}")
            values[f"validation {self._metric}"] = last
        return Observed("training", ", ".join(notes), values)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % 10 == 0 or state.global_step == state.max_steps:
            self._emit(self._observed(args, state), state.global_step, state.max_steps)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        scores = [entry[f"eval_{SCORE}"] for entry in state.log_history if f"eval_{SCORE}" in entry]
        self._emit(f"epoch {len(scores)}: validation {self._metric} {scores[-1]:.4f}")
        self._emit(self._observed(args, state), state.global_step, state.max_steps)
        signed = [self._sign * score for score in scores]
        if self._patience is not None and len(signed) - 1 - signed.index(max(signed)) >= self._patience:
            control.should_training_stop = True
