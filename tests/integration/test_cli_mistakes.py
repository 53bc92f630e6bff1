"""Likely mistakes: the right exit code, a message in three parts, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from compress.cli.app import app

EXPORT = {"export": {}}


@pytest.fixture(scope="module")
def warm(lab):
    """The laboratory with its model in the store, so that whatever else appears there is a mistake's."""
    from compress.pipeline.source import resolve_source
    from compress.recipe import load_recipe
    from compress.store import Store

    recipe = load_recipe(lab.recipe("warm", [EXPORT]), [], [f"MODEL={lab.model}"])
    resolve_source(recipe, Store(lab.home), lambda *_: None)
    return lab


@pytest.fixture
def call(warm, monkeypatch, tmp_path):
    for name, value in {"MCOMPRESS_HOME": warm.home, "MODEL": warm.model, "DATA": warm.data, "COLUMNS": 80}.items():
        monkeypatch.setenv(name, str(value))

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def entries(lab) -> set[str]:
    return {path.name for path in (lab.home / "entries").iterdir()}


def refuse(lab, call, recipe: Path | str, code: int, *phrases: str, sets: tuple[str, ...] = (), out=None) -> None:
    """``run`` and ``validate`` refuse a recipe alike, and leave nothing."""
    before, place = entries(lab), out or lab.root / "refused"
    options = [word for value in sets for word in ("--set", value)]
    for words in (("run", recipe, "--out", place), ("validate", recipe)):
        if out is not None and words[0] == "validate":
            continue
        result = call(*words, *options)
        assert result.exit_code == code, (words, result.output)
        for phrase in ("error: ", "\n  fix:   ", *phrases):
            assert phrase in result.stderr, (words, result.stderr)
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    assert out is not None or not place.exists()
    assert entries(lab) == before
    assert not list((lab.home / "work").iterdir())


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"stepz": []}, ["Unknown key 'stepz'", "'steps'"]),
        ({"steps": [{"prune": {"macz": 0.5}}]}, ["Unknown key 'macz'", "'macs'"]),
        ({"steps": [{"prine": {}}]}, ["unknown pass 'prine'", "'prune'"]),
        ({"steps": [{"quantize": {}}]}, ["needs a onnx model", "Put an `export` step before it"]),
        ({"steps": [EXPORT, {"quantize": {}}, {"quantize": {}}]}, ["already int8", "from:"]),
        ({"steps": [{"export": {}, "from": "prume"}]}, ["'prume'", "not an earlier step"]),
        ({"model": "./nowhere"}, ["model folder does not exist", "./nowhere"]),
        ({"model": "./nowhere.onnx"}, ["model file does not exist"]),
        ({"model": None}, ["has no model to work on"]),
        ({"model": "${NOWHERE}"}, ["variable NOWHERE", "--var NOWHERE="]),
        ({"data": {"train": "${DATA}/train.csv", "validation": "${DATA}/absent.csv"}}, ["absent.csv"]),
        ({"data": {"train": "${DATA}/train.csv", "calibration": {"samples": 4}}}, ["no validation split", "carve it"]),
        ({"data": {"validation": "${DATA}/test.csv", "columns": {"text": "sentence"}}}, ["no column 'sentence'"]),
        ({"measure": {"targets": ["ort-cpu-2t"]}}, ["Unknown target 'ort-cpu-2t'", "ort-cpu-1t"]),
        ({"measure": {"targets": ["absent.yaml"]}}, ["target file does not exist"]),
        ({"gates": {"accurcy": {"min": 0.5}}}, ["metric 'accurcy'", "'accuracy'"]),
        ({"steps": [{"export": {}, "gates": {"mae": {"max": 1}}}]}, ["metric 'mae'"]),
        ({"gates": {"accuracy": {"max_drop": 0.5}}}, ["Unknown key 'max_drop'", "max_drop_points"]),
        ({"gates": {"accuracy": {}}}, ["gates.accuracy: give `max_drop_points`"]),
        ({"gates": {"accuracy": {"max": 0.5}}}, ["'accuracy' on the wrong side", "max: 0.5", "`max_drop_points`"]),
        ({"steps": [{"export": {}, "gates": {"accuracy": {"max_increase": 1}}}]}, ["wrong side", "max_increase: 1"]),
        ({"steps": [{"export": {}, "id": "../../x"}]}, ["steps.0.id", "../../x"]),
        ({"steps": [{"prune": {"layers": 1, "samples": 49}}]}, ["'prune'", "49 samples of 48 rows"]),
        ({"steps": [{"prune": {"layers": 1, "importance": "fishy"}}]}, ["importance 'fishy'", "'fisher'"]),
        ({"steps": [{"distill": {"teacher": "model", "transfer": True}}]}, ["no transfer data", "`transfer:`"]),
    ],
)
def test_a_recipe_that_cannot_run(warm, call, changes, phrases) -> None:
    refuse(warm, call, warm.recipe("wrong", **({"steps": [EXPORT]} | changes)), 2, *phrases)


def test_data_that_does_not_fit(warm, call, tmp_path) -> None:
    """Every case differs from the laboratory's data in one file."""
    train, validation = (f"${{DATA}}/{name}.csv" for name in ("train", "validation"))
    strange = write(tmp_path / "strange.csv", "the film,awful")
    cases = [
        ({"train": train, "validation": validation, "test": strange}, ["'awful'", "unknown to the model"]),
        ({"train": train, "validation": write(tmp_path / "empty.csv")}, ["no rows"]),
        ({"train": train, "validation": train}, ["more than one split", "drop_from_train"]),
        ({"train": train, "validation": train, "on_overlap": "drop_from_train"}, ["train has no rows"]),
    ]
    for data, phrases in cases:
        recipe = warm.recipe("wrong-data", [EXPORT], data={"calibration": {"samples": 4}} | data)
        refuse(warm, call, recipe, 2, *phrases)
    refuse(warm, call, warm.recipe("wrong-data", [EXPORT]), 2, "49", "48", sets=("data.calibration.samples=49",))


def test_overlapping_splits_pass_when_allowed(warm, call) -> None:
    train = "${DATA}/train.csv"
    data = {"train": train, "validation": train, "on_overlap": "allow", "calibration": {"samples": 4}}
    result = call("validate", warm.recipe("allowed", [EXPORT], data=data))
    assert result.exit_code == 0, result.output
    assert "48 train, 48 validation" in result.stdout


def test_models_that_cannot_be_taken_in(warm, call, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(warm.model, tmp_path / name))

    def wrong(folder: Path, *phrases: str) -> None:
        refuse(warm, call, warm.recipe("wrong-model", [EXPORT], model=str(folder)), 2, *phrases)

    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    wrong(pickled, "pickle checkpoint", "safetensors")

    broken = copy("broken")
    weights = load_file(broken / "model.safetensors")
    weights["classifier.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    wrong(broken, "not finite", "classifier.weight")

    bare = copy("bare")
    (bare / "config.json").unlink()
    wrong(bare, "no config.json")


def test_a_model_whose_labels_do_not_match(warm, call, tmp_path) -> None:
    """It can be taken in, so its entry in the store is finished work; nothing else may appear."""
    folder = Path(shutil.copytree(warm.model, tmp_path / "unnamed"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": {f"LABEL_{i}": i for i in range(3)}}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = warm.recipe("unnamed", [EXPORT], model=str(folder))
    call("run", recipe, "--out", warm.root / "refused")
    refuse(warm, call, recipe, 2, "unknown to the model", "LABEL_0")
    mapped = warm.recipe("named", [EXPORT], model=str(folder), labels=dict(zip(config["label2id"], "abc", strict=True)))
    call("run", mapped, "--out", warm.root / "refused")
    refuse(warm, call, mapped, 2, "unknown to the model")


def test_a_model_without_a_trained_head_needs_a_finetuning(warm, call, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(warm.model, tmp_path / "headless"))
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = warm.recipe("headless", [EXPORT], model=str(folder))
    call("run", recipe, "--out", warm.root / "refused")
    refuse(warm, call, recipe, 2, "no trained head", "finetune")
    tuned = warm.recipe("tuned", [{"finetune": {"epochs": 1}}, EXPORT], model=str(folder))
    assert call("validate", tuned).exit_code == 0


def test_a_missing_package_stops_the_run_before_any_work(warm, call, monkeypatch) -> None:
    monkeypatch.setattr("compress.passes.export.missing_onnxruntime", lambda: ("onnxruntime is not installed",))
    refuse(warm, call, warm.recipe("lacking", [EXPORT]), 3, "cannot run here", "onnxruntime is not installed")


def test_two_onnxruntimes_that_overwrite_each_other_stop_the_run_before_any_work(warm, call, monkeypatch) -> None:
    both = {"onnxruntime", "onnxruntime-gpu"}
    monkeypatch.setattr("compress.runtimes.onnxruntime_package.is_installed", both.__contains__)
    for steps in ([EXPORT], [EXPORT, {"quantize": {}}], [EXPORT, {"cast": {}}]):
        refuse(warm, call, warm.recipe("twice", steps), 3, "onnxruntime and onnxruntime-gpu are both installed")


def test_a_missing_package_of_an_optional_step_is_only_noted(warm, call, monkeypatch) -> None:
    monkeypatch.setattr("compress.passes.build.missing_trt", lambda: "tensorrt is not installed")
    recipe = warm.recipe("optional", [EXPORT, {"build": {}, "optional": True}])
    result = call("validate", recipe)
    assert result.exit_code == 0
    assert "tensorrt is not installed" in result.stderr
    refuse(warm, call, warm.recipe("lacking", [EXPORT, {"build": {}}]), 3, "tensorrt is not installed")


def test_training_on_a_gpu_that_is_not_there(warm, call, monkeypatch) -> None:
    monkeypatch.setattr("compress.pipeline.planning.why_no_cuda", lambda: "no GPU (no NVIDIA driver is installed)")
    recipe = warm.recipe("gpu", [{"finetune": {"epochs": 1}}], run={"device": "cuda"})
    refuse(warm, call, recipe, 3, "no NVIDIA driver")


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("export", "NAME=VALUE"),
        ("exprt.opset=17", "neither a key"),
        ("export.opset=x", "opset"),
        ("export.opst=17", "Unknown key"),
        ("model.folder=x", "plain value"),
        ("run.seed=[", "not YAML"),
    ],
)
def test_a_bad_override(warm, call, override, phrase) -> None:
    refuse(warm, call, warm.recipe("fine", [EXPORT]), 2, phrase, sets=(override,))


def test_an_out_that_is_not_a_runs(warm, call, tmp_path) -> None:
    recipe = warm.recipe("fine", [EXPORT])
    (tmp_path / "file").write_text("mine")
    refuse(warm, call, recipe, 2, "--out names a file", out=tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    refuse(warm, call, recipe, 2, "not empty", out=tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


def test_a_model_or_a_name_in_the_place_of_a_recipe(warm, call) -> None:
    refuse(warm, call, warm.model, 2, "a model, not a recipe", "--data")
    refuse(warm, call, "dmo", 2, "Unknown recipe", "'demo'")
    result = call("run", warm.recipe("fine", [EXPORT]), "--data", warm.data, "--out", warm.root / "refused")
    assert result.exit_code == 2
    assert "--data goes with a model" in result.stderr


def test_a_failed_gate_holds_the_artifact_back(warm, call, tmp_path) -> None:
    """Also what an earlier, laxer run had delivered into the same folder."""
    recipe = warm.recipe("gated", [EXPORT])
    out = tmp_path / "out"
    assert call("run", recipe, "--out", out).exit_code == 0
    assert (out / "deliverables" / "export" / "model.onnx").is_file()
    result = call("run", recipe, "--out", out, "--set", "gates.accuracy={min: 1.5}")
    assert result.exit_code == 1, result.output
    assert "gate failed: export was not delivered" in result.stderr
    assert not (out / "deliverables" / "export").exists()
    report = json.loads((out / "report.json").read_text())
    assert [gate["verdict"] for gate in report["steps"][1]["gates"]] == ["fail"]
    assert report["verdict"]["step"] is None


def test_a_run_that_starts_removes_what_an_earlier_one_left(warm, call, tmp_path, monkeypatch) -> None:
    """The same recipe stops half-way: no report of before may stand beside its steps."""
    recipe, out = warm.recipe("again", [EXPORT]), tmp_path / "out"
    assert call("run", recipe, "--out", out).exit_code == 0
    assert {"report.json", "report.md", "report.html", "measurements.json"} <= {path.name for path in out.iterdir()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.pipeline.running._run_step", stop)
    assert call("run", recipe, "--out", out).exit_code == 130
    assert sorted(path.name for path in out.iterdir()) == ["recipe.resolved.yaml", "run.json"]


def test_an_artifact_that_cannot_be_measured_is_not_delivered(warm, call, tmp_path, monkeypatch) -> None:
    from compress.pipeline.predictions import Prediction, Predictions

    monkeypatch.setattr(Predictions, "of", lambda *_: Prediction(None, None, "the runtime is broken"))
    recipe = warm.recipe("unmeasured", [EXPORT])
    result = call("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 4, result.output
    assert "'export' cannot be measured" in result.stderr
    assert "\n  value: the runtime is broken\n  fix:   " in result.stderr
    assert not (tmp_path / "out" / "deliverables").exists()
    assert call("run", recipe, "--out", tmp_path / "out", "--set", "export.optional=true").exit_code == 0
    step = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["export"]
    assert (step["status"], step["delivered"]) == ("failed", False)
    assert not (tmp_path / "out" / "deliverables").exists()


def test_an_error_of_a_library_ends_a_step_and_only_a_required_one_the_run(warm, call, tmp_path, monkeypatch) -> None:
    from compress.passes.cast import Cast

    def crash(*_: object) -> None:
        raise RuntimeError(f"cannot read {tmp_path}/model.onnx\nsecond line")

    monkeypatch.setattr(Cast, "apply", crash)
    result = call("run", warm.recipe("crash", [EXPORT, {"cast": {}}]), "--out", tmp_path / "out")
    assert result.exit_code == 4, result.output
    assert "error: Step 'cast' failed" in result.stderr
    assert "\n  value: RuntimeError: cannot read model.onnx\n  fix:   " in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("MCOMPRESS_DEBUG", "1")
    assert "in crash" in call("run", warm.root / "crash.yaml", "--out", tmp_path / "out").stderr
    optional = warm.recipe("crash", [EXPORT, {"cast": {}, "optional": True}])
    assert call("run", optional, "--out", tmp_path / "out").exit_code == 0
    step = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["cast"]
    assert step["status"] == "failed"
    assert "RuntimeError: cannot read model.onnx" in step["reason"]


def test_a_step_from_the_store_keeps_the_seconds_of_its_build(warm, call, tmp_path) -> None:
    recipe = warm.recipe("timed", [{"export": {"opset": 18}}])
    steps = []
    for name in ("first", "second"):
        assert call("run", recipe, "--out", tmp_path / name).exit_code == 0
        steps.append(json.loads((tmp_path / name / "run.json").read_text())["steps"]["export"])
    assert steps[1]["cached"]
    assert steps[0]["seconds"] == steps[1]["seconds"] > 0


def test_a_broken_promise_ends_the_run(warm, call, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("compress.pipeline.checking._mean_cosine", lambda *_: 0.5)
    recipe = warm.recipe("parity", [EXPORT, {"cast": {}}])
    result = call("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 4, result.output
    assert "must preserve" in result.stderr
    assert "\n  fix:   " in result.stderr
    assert not (tmp_path / "out" / "deliverables" / "cast").exists()
    assert not (tmp_path / "out" / "report.json").exists()

    optional = call("run", warm.recipe("parity", [EXPORT, {"cast": {}, "optional": True}]), "--out", tmp_path / "out")
    assert optional.exit_code == 0, optional.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["steps"]["cast"]["status"] == "failed"
    assert "must preserve" in record["steps"]["cast"]["reason"]
