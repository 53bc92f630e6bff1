"""Several labels, regression and pairs of texts: export and INT8, from a recipe to a report, through Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.errors import RecipeError

PROBLEMS = {"multi_label": "multi_label_classification", "regression": "regression", "pairs": None}


def variant(lab, tmp_path: Path, problem: str) -> Path:
    """Copy the laboratory's model with another ``problem_type``; regression keeps one row of the head."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(lab.model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": PROBLEMS[problem]}
    if problem == "regression":
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
        weights = load_file(folder / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][:1].contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write(lab, tmp_path: Path, problem: str) -> None:
    rng = np.random.default_rng(1)
    labels: Any = {"multi_label": ["bad", "bad,good", "fine"], "regression": [0.5, -1.25, 2], "pairs": ["bad", "good"]}
    for split in ("train", "validation", "test"):
        texts = [line.rsplit(",", 1)[0] for line in (lab.data / f"{split}.csv").read_text().splitlines()[1:]]
        rows = [{"text": text, "label": rng.choice(labels[problem])} for text in texts]
        if problem == "pairs":
            rows = [row | {"text_pair": f"{row['text']} too"} for row in rows]
        lines = [json.dumps(row | {"label": np.asarray(row["label"]).item()}) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("bound", ["max_drop_points", "min"])
def test_a_gate_on_an_error_metric_bounds_it_from_above(lab, tmp_path, monkeypatch, bound) -> None:
    model = variant(lab, tmp_path, "regression")
    write(lab, tmp_path, "regression")
    monkeypatch.setenv("DATA", str(tmp_path))
    data = {split: f"${{DATA}}/{split}.jsonl" for split in ("train", "validation", "test")}
    recipe = lab.recipe("wrong-side", [{"export": {}}], model=str(model), gates={"mae": {bound: 1}}, data=data)
    with pytest.raises(RecipeError, match="'mae' on the wrong side: lower is better") as caught:
        compress.run(recipe, tmp_path / "out", store=compress.Store(lab.home))
    assert caught.value.fix == "Use `max_increase` or `max`."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("problem", "metric"), [("multi_label", "exact_match"), ("regression", "mae"), ("pairs", "accuracy")]
)
def test_the_chain_of_another_problem(lab, tmp_path, monkeypatch, problem, metric) -> None:
    model = variant(lab, tmp_path, problem)
    write(lab, tmp_path, problem)
    monkeypatch.setenv("DATA", str(tmp_path))
    gates = {metric: {"max_increase": 10} if metric == "mae" else {"max_drop_points": 100}}
    recipe = lab.recipe(
        problem,
        [{"export": {}}, {"quantize": {}}],
        model=str(model),
        gates=gates,
        data={split: f"${{DATA}}/{split}.jsonl" for split in ("train", "validation", "test")}
        | {"calibration": {"samples": 8}},
        measure={**lab.measure, "baselines": ["onnx"]},
    )
    out = tmp_path / "out"
    result = compress.run(recipe, out, store=compress.Store(lab.home))
    assert result.exit_code == 0
    row = next(row for row in result.report.rows if row.step == "quantize")
    assert row.status == "ok"
    assert row.accuracy.metric == metric
    assert row.accuracy.direction == ("lower" if metric == "mae" else "higher")
    assert row.difference is not None
    assert [gate.metric for gate in result.report.steps[2].gates] == [metric]
    assert metric.split("_")[0] in (out / "report.md").read_text().lower()

    text = ("the film was good", "she works") if problem == "pairs" else "the film was good"
    with compress.load(out / "deliverables" / "quantize", threads=1) as predictor:
        answer = predictor(text)
        assert predictor([text, text]) == [answer, answer]
    if problem == "regression":
        assert answer["label"] is None
        assert isinstance(answer["score"], float)
    elif problem == "multi_label":
        assert set(answer["score"]) == {"bad", "fine", "good"}
        assert set(answer["label"]) == {name for name, chance in answer["score"].items() if chance > 0.5}
    else:
        assert answer["label"] in {"bad", "fine", "good"}
        with compress.load(out / "deliverables" / "quantize", threads=1) as predictor:
            assert predictor.logits([text]).tolist() != predictor.logits([text[0]]).tolist()
