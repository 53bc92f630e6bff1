"""Swap the student: a pruned model, a narrower cut and a foreign model, distilled side by side in one recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import compress
from compress.artifact import Artifact, open_artifact
from compress.models.loading import load_torch
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=64)
SHORT = {"teacher": "model", "epochs": 1, "batch_size": 16}
STEPS = [
    {"prune": {"layers": 1, "samples": 16}},
    {"distill": {**SHORT, "seeds": 2, "augment": 1}, "id": "pruned"},
    {"distill": {**SHORT, "student": {"layers": 1, "hidden": 16}}, "id": "narrow", "from": "model"},
    {"distill": {**SHORT, "student": {"model": "${MODELS}/small"}}, "id": "swapped", "from": "model"},
]


def run(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Run the recipe in the test's own store and return the record of its steps."""
    monkeypatch.setenv("MODELS", str(tmp_path))
    monkeypatch.setenv("MODEL", str(lab.model))
    monkeypatch.setenv("DATA", str(lab.data))
    out = tmp_path / "out"
    compress.run(lab.recipe("students", STEPS), out, store=compress.Store(tmp_path / "home"))
    return dict(json.loads((out / "run.json").read_text())["steps"])


def artifacts(tmp_path: Path, steps: dict[str, dict[str, Any]]) -> dict[str, Artifact]:
    made = [open_artifact(path.parent) for path in (tmp_path / "home").glob("entries/*/payload/artifact.json")]
    by_digest = {artifact.digest: artifact for artifact in made}
    return {name: by_digest[step["digest"]] for name, step in steps.items()}


@pytest.mark.slow
def test_three_students_side_by_side(lab, tiny_classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_classifier("distilbert"), tmp_path / "small"))
    steps = run(lab, tmp_path, monkeypatch)
    made = artifacts(tmp_path, steps)
    notes = {name: artifact.manifest.notes for name, artifact in made.items()}

    assert set(notes["pruned"]["validation_by_seed"]) == {"3", "4"}
    assert notes["pruned"]["validation"] == max(notes["pruned"]["validation_by_seed"].values())
    assert 0 < notes["pruned"]["unlabelled"] <= notes["pruned"]["examples"]
    assert notes["pruned"]["frozen_embeddings"] is True

    narrow = TASK.load_model(made["narrow"].path)
    assert (narrow.config.hidden_size, narrow.config.num_attention_heads, narrow.config.intermediate_size) == (
        16,
        2,
        32,
    )
    assert notes["narrow"]["layer_pairs"] == [[0, 1]]
    assert not (made["narrow"].path / "structure.json").exists()
    assert not any("maps" in name for name in load_file(made["narrow"].path / "model.safetensors"))

    swapped = made["swapped"]
    assert load_torch(swapped.path, TASK).config.model_type == "distilbert"
    assert notes["swapped"]["student"] == "small"
    assert notes["swapped"]["student_head"] == "fresh"
    assert swapped.traits == {"distilled"}
    assert swapped.manifest.made_by.config["student"]["model"] == "small"
    for artifact in made.values():
        assert str(tmp_path) not in (artifact.path / "artifact.json").read_text()

    again = run(lab, tmp_path, monkeypatch)
    assert all(step["cached"] for step in again.values())
    assert {name: step["digest"] for name, step in again.items()} == {n: s["digest"] for n, s in steps.items()}

    weights = load_file(folder / "model.safetensors")
    weights["distilbert.embeddings.LayerNorm.bias"] = weights["distilbert.embeddings.LayerNorm.bias"] + 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    changed = run(lab, tmp_path, monkeypatch)
    assert [name for name, step in changed.items() if not step["cached"]] == ["swapped"]
    assert changed["swapped"]["key"] != steps["swapped"]["key"]
    assert changed["swapped"]["digest"] != steps["swapped"]["digest"]
