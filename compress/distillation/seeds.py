"""The same training from several seeds: the best on validation is kept, and the spread is put on record."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import load_file, save_file

from compress.disk import sync_tree, write_atomically
from compress.distillation.training import History, Place, read_history
from compress.progress import prefixed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS, _HISTORY = "student.safetensors", "history.json"


@dataclass(frozen=True)
class Trial:
    """What one seed gave."""

    seed: int
    student: PreTrainedModel
    history: History


def train_seeds(
    student: PreTrainedModel, run: Callable[[PreTrainedModel, Place], History], seeds: int, place: Place
) -> list[Trial]:
    """Train once for each seed; a seed that was finished before a kill is read back.

    Args:
        student: what every seed starts from; with one seed it is trained itself, with several its copies are.
        run: trains a student in place.
        seeds: how many: ``place.seed`` and the ones after it.
        place: where; with several seeds each gets a folder of its own among the checkpoints.
    """
    if seeds == 1:
        return [Trial(place.seed, student, run(student, place))]
    return [_trial(copy.deepcopy(student), run, place, number, seeds) for number in range(seeds)]


def best_of(trials: Sequence[Trial], *, higher: bool) -> Trial:
    """Return the trial with the best validation score; of equal ones the closest to the teacher, then the first."""

    def rank(trial: Trial) -> tuple[float, float]:
        history = trial.history
        near = history.divergences[history.kept - 1] if history.divergences else 0.0
        return (-history.best if higher else history.best, near)

    return min(trials, key=rank)


def describe(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the record of all seeds: the score of each, and their mean and standard deviation."""
    if len(trials) == 1:
        return {}
    scores = [trial.history.best for trial in trials]
    return {
        "validation_by_seed": {str(trial.seed): trial.history.best for trial in trials},
        "validation_mean": round(float(np.mean(scores)), 6),
        "validation_deviation": round(float(np.std(scores, ddof=1)), 6),
    }


def _trial(
    student: PreTrainedModel, run: Callable[[PreTrainedModel, Place], History], place: Place, number: int, seeds: int
) -> Trial:
    seed = place.seed + number
    folder = place.checkpoints / f"seed-{seed}"
    known = _finished(folder)
    if known is not None:
        student.load_state_dict(load_file(folder / _WEIGHTS), strict=True)
        return Trial(seed, student.eval(), known)

    def emit(message: str, done: int | None = None, total: int | None = None) -> None:
        place.emit(prefixed(f"seed {number + 1} of {seeds}, ", message), done, total)

    history = run(student, replace(place, checkpoints=folder, seed=seed, emit=emit))
    save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()}, folder / _WEIGHTS)
    sync_tree(folder)
    record = {"history": asdict(history), "weights": _digest(folder / _WEIGHTS)}
    write_atomically(folder / _HISTORY, json.dumps(record) + "\n")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return Trial(seed, student, history)


def _finished(folder: Path) -> History | None:
    """Return the history of a seed that was finished and whose weights are those that were written."""
    try:
        record = json.loads((folder / _HISTORY).read_text(encoding="utf-8"))
        return read_history(record["history"]) if record["weights"] == _digest(folder / _WEIGHTS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
