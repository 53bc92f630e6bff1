"""Images through the public command: a tiny network from scratch on the digits, pruned, exported, quantized."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import compress
from compress.artifact import open_artifact
from compress.data.config import DataConfig
from compress.data.sources import load_data

pytest.importorskip("torch_pruning")

LEAST = {"inputs": 2, "launches": 1, "rounds": 1, "warmup_seconds": 0.0, "throughput_seconds": 0.001}
DATA = {"builtin": {"name": "digits", "rows": 240}, "calibration": {"samples": 16}}
INIT = {"family": "resnet", "image_size": 16, "num_channels": 1, "stem": 16, "widths": [16, 24], "depths": [1, 1]}
STEPS = [
    {"finetune": {"init": INIT, "epochs": 4, "learning_rate": 0.005, "batch_size": 16}, "id": "teacher"},
    {"prune": {"macs": 0.5, "samples": 64}},
    {"export": {}, "id": "small"},
    {"quantize": {"method": "static"}, "id": "int8"},
]


def test_a_convolutional_network_goes_through_the_whole_chain(lab) -> None:
    recipe = lab.recipe(
        "images",
        STEPS,
        model=None,
        task="image-classification",
        data=DATA,
        measure={**lab.measure, **LEAST, "targets": ["ort-cpu-1t"], "baselines": []},
    )
    out = lab.root / "images-out"
    said = lab.command("run", recipe, "--out", out)
    assert said.returncode == 0, said.stderr
    record = json.loads((out / "run.json").read_text())
    assert str(lab.root) not in json.dumps(record)
    made = open_artifact(out / "deliverables" / "int8", verify=True)
    assert {"int8", "pruned"} <= made.traits
    assert made.manifest.notes["nodes_quantized"]["Conv"] == 6
    assert made.manifest.notes["nodes_left"] == {}
    assert (made.path / "preprocessor_config.json").is_file()
    check_predictions(made.path)


def check_predictions(folder: Path) -> None:
    """The golden outputs hold, and what four epochs teach survives pruning and INT8 well above chance."""
    data = load_data(DataConfig.model_validate(DATA), text_columns=("image",))
    rows = data["validation"].rows
    with compress.load(folder, threads=1) as predictor:
        answers = predictor([row["image"].pixels() for row in rows], batch_size=8)
        alone = predictor(rows[0]["image"].pixels())
    assert alone["label"] == answers[0]["label"]
    assert np.mean([answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]) > 0.3
