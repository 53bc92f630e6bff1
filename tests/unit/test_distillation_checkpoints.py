"""Which checkpoint a training run goes on from, whatever a crash, a clock or a disk did to them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compress.distillation.checkpoints import latest, rotate, seal


def save(folder: Path, step: int, best: int | None = None, *, sealed: bool = True) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_text(f"weights {step}")
    state = {"global_step": step, "best_model_checkpoint": None if best is None else str(folder / f"checkpoint-{best}")}
    (place / "trainer_state.json").write_text(json.dumps(state))
    if sealed:
        seal(place)
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_whole_one_is_taken_and_a_half_written_one_goes(tmp_path) -> None:
    assert latest(tmp_path) is None
    save(tmp_path, 8, best=8)
    wanted = save(tmp_path, 16, best=8)
    save(tmp_path, 24, best=24, sealed=False)
    assert latest(tmp_path) == wanted
    assert names(tmp_path) == ["checkpoint-16", "checkpoint-8"]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add", "seal"])
def test_a_damaged_one_is_not_taken(tmp_path, harm) -> None:
    older, newer = save(tmp_path, 8, best=8), save(tmp_path, 16, best=8)
    weights = newer / "model.safetensors"
    if harm == "flip":
        weights.write_text("weights 17")
    elif harm == "truncate":
        os.truncate(weights, 3)
    elif harm == "remove":
        weights.unlink()
    elif harm == "add":
        (newer / "pytorch_model.bin").write_text("1")
    else:
        os.truncate(newer / "whole.json", 10)
    assert latest(tmp_path) == older
    assert names(tmp_path) == ["checkpoint-8"]


def test_one_whose_best_is_damaged_or_elsewhere_is_not_taken(tmp_path) -> None:
    """At its end training would load the best one: without it the result would be another."""
    best = save(tmp_path, 8, best=8)
    save(tmp_path, 16, best=8)
    (best / "model.safetensors").write_text("weights 9")
    assert latest(tmp_path) is None
    assert names(tmp_path) == []
    place = save(tmp_path, 24)
    (place / "whole.json").unlink()
    (place / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "elsewhere/checkpoint-24"}))
    seal(place)
    assert latest(tmp_path) is None


def test_rotation_goes_by_names_and_not_by_a_clock_that_jumped(tmp_path) -> None:
    for step in (8, 16, 24):
        place = save(tmp_path, step, best=8)
        os.utime(place, (1e9 - step, 1e9 - step))
    rotate(tmp_path / "checkpoint-24", str(tmp_path / "checkpoint-8"))
    assert names(tmp_path) == ["checkpoint-24", "checkpoint-8"]
    rotate(tmp_path / "checkpoint-24", None)
    assert names(tmp_path) == ["checkpoint-24"]
