"""What a report shows of a request: enough to repeat it, and no place of this machine."""

from __future__ import annotations

import json

from compress.pipeline.public import command_line, public_path, public_recipe
from compress.recipe import parse_recipe

RECIPE = parse_recipe('{recipe: 1, model: "${MODELS}/m", data: {train: "${DATA}/a.csv"}, steps: [export]}')


def test_only_absolute_paths_are_cut() -> None:
    assert public_path("/home/ann/models/bert") == "bert"
    assert public_path("~/models/bert") == "bert"
    assert public_path(r"C:\Users\ann\bert") == "bert"
    assert public_path("models/bert") == "models/bert"
    assert public_path("${MODEL}") == "${MODEL}"
    assert public_path("org/bert") == "org/bert"


def test_a_command_keeps_overrides_and_variables_but_no_folders() -> None:
    sets = ["model=/home/ann/bert", "data.train={path: /home/ann/a.csv}", "int8.exclude=[/bert/layer.0/*]"]
    text = command_line(RECIPE, "/home/ann/recipe.yaml", "runs/a", sets, ["DATA=/home/ann/data", "SEED=1"])
    assert "ann" not in text
    assert text.startswith("mcompress run recipe.yaml --out runs/a --set model=bert --set ")
    assert "/bert/layer.0/*" in text
    assert text.endswith("--var DATA=data --var SEED=1 --var MODELS=..."), "what the environment gave is named"


def test_a_recipe_keeps_everything_but_its_folders() -> None:
    raw = {
        "recipe": 1,
        "model": "/home/ann/bert",
        "data": {"train": "/home/ann/a.csv", "validation": {"from": "train", "fraction": 0.1}},
        "steps": [{"export": {}}, {"quantize": {"exclude": ["/bert/layer.0/*"]}}],
        "measure": {"targets": ["ort-cpu-1t", "/home/ann/board.yaml"]},
    }
    shown = parse_recipe(public_recipe(parse_recipe(json.dumps(raw))))
    assert shown.model == "bert"
    assert shown.data.train is not None
    assert shown.data.train.path == "a.csv"
    assert shown.measure.targets == ["ort-cpu-1t", "board.yaml"]
    assert shown.steps[1].config == {"exclude": ["/bert/layer.0/*"]}
