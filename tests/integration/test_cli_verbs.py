"""Every verb on one small run: what it prints for people and for machines, and its exit code."""

from __future__ import annotations

import csv
import json
import re
import shutil
from importlib.util import find_spec
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from compress.cli.app import app
from compress.recipe import builtin_recipes


def call(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def parsed(*words: object, code: int = 0) -> Any:
    """Return what --json gives: one line, the last and only one."""
    shown = call(*words, "--json", code=code).stdout
    assert shown.count("\n") == 1
    return json.loads(shown)


def fits_a_terminal(text: str) -> bool:
    """No line above 80 characters, but for one that a path makes long."""
    return all(len(line) <= 80 or "/" in line for line in text.splitlines())


@pytest.fixture(autouse=True)
def environment(lab, monkeypatch) -> None:
    for name in ("MCOMPRESS_HOME", "MODEL", "DATA", "COLUMNS", "OMP_NUM_THREADS", "NO_COLOR"):
        monkeypatch.setenv(name, lab.environment[name])


def test_plan_says_what_would_happen(lab) -> None:
    recipe = lab.recipe("planned", [{"prune": {"macs": 0.5}}, {"export": {}}, {"quantize": {}}])
    text = call("plan", recipe).stdout
    assert fits_a_terminal(text)
    assert "1. prune (prune) <- model" in text
    assert "deliverable" in text
    steps = parsed("plan", recipe)
    assert [step["id"] for step in steps] == ["prune", "export", "quantize"]
    assert [step["deliverable"] for step in steps] == [False, False, True]
    assert steps[2]["reads"] == []


def test_every_built_in_recipe_can_be_planned(lab) -> None:
    for name in builtin_recipes():
        model = "--var", f"MODEL={lab.model}" if name != "onnx-int8" else f"MODEL={lab.root / 'none.onnx'}"
        result = CliRunner().invoke(app, ["plan", name, *model])
        assert result.exit_code == (2 if name == "onnx-int8" else 0), result.output
        assert fits_a_terminal(result.stdout)


def test_validate_reads_the_data_and_keeps_nothing(lab) -> None:
    before = sorted(lab.home.rglob("*")) if lab.home.exists() else []
    text = call("validate", lab.recipe("fine", [{"export": {}}])).stdout
    call("validate", lab.recipe("few", [{"prune": {"layers": 1}}]))  # its default takes what there is
    assert text == "fine: 1 steps; 48 train, 24 validation, 24 test, 16 calibration; fine.\n"
    assert (sorted(lab.home.rglob("*")) if lab.home.exists() else []) == before


def test_ls_cat_and_cp(tmp_path) -> None:
    lists = parsed("ls")
    assert set(lists) == {"recipes", "passes", "targets", "runtimes", "tasks"}
    assert set(lists["recipes"]) == set(builtin_recipes())
    text = call("ls", "passes").stdout
    assert all(name in text for name in lists["passes"])
    assert "recipes" not in text
    assert "'passes'" in call("ls", "pases", code=2).stderr
    assert call("cat", "demo").stdout == builtin_recipes()["demo"]
    call("cp", "demo", tmp_path / "mine" / "demo.yaml")
    assert (tmp_path / "mine" / "demo.yaml").read_text() == builtin_recipes()["demo"]
    assert "exists already" in call("cp", "demo", tmp_path / "mine" / "demo.yaml", code=2).stderr


def test_env_names_the_machine_but_not_its_owner() -> None:
    text = call("env").stdout
    assert fits_a_terminal(text)
    found = parsed("env")
    assert found["targets"]["ort-cpu-1t"]["ok"]
    assert found["python"] in text
    assert "ort-cpu-1t" in text


def test_bench_compares_artifacts_side_by_side(lab, ran) -> None:
    folders = [ran / "deliverables" / name for name in ("int8", "fp16")]
    words = ("bench", *folders, "--data", lab.data / "test.csv", "--inputs", 4, "--rounds", 3)
    rows = parsed(*words)
    assert [(row["artifact"], row["target"], row["status"]) for row in rows] == [
        ("int8", "ort-cpu-1t", "ok"),
        ("fp16", "ort-cpu-1t", "ok"),
    ]
    assert rows[0]["n"] == 24
    assert rows[0]["speedup"] is None
    assert rows[1]["speedup_low"] <= rows[1]["speedup"] <= rows[1]["speedup_high"]
    text = call("bench", folders[0], "--data", lab.data / "test.csv", "--inputs", 2, "--rounds", 3).stdout
    assert fits_a_terminal(text)
    assert "accuracy, N = 24" in text
    assert rows[1]["p50_ms"] > 0
    assert rows[1]["difference_low"] <= rows[1]["difference"] <= rows[1]["difference_high"]


def test_report_is_rendered_again_from_its_record(ran) -> None:
    before = {name: (ran / name).read_bytes() for name in ("report.json", "report.md", "report.html")}
    (ran / "report.md").unlink()
    text = call("report", ran).stdout
    assert "int8" in text
    assert {name: (ran / name).read_bytes() for name in before} == before
    assert parsed("report", ran) == json.loads(before["report.json"])
    assert "report cannot be read" in call("report", ran / "deliverables", code=2).stderr


def test_compare_passes_the_same_run_and_fails_a_worse_one(ran, tmp_path) -> None:
    assert call("compare", ran, ran).stdout
    assert parsed("compare", ran, ran)["ok"]
    assert "the same test examples" in parsed("compare", ran, ran)["pairing"]
    worse = json.loads((ran / "report.json").read_text())
    for row in worse["rows"]:
        row["accuracy"]["value"] -= 0.5
    (tmp_path / "report.json").write_text(json.dumps(worse))
    answers = json.loads((ran / "outcomes.json").read_text())
    assert {len(text) for row in answers["rows"].values() for text in row.values()} == {24}
    for row in answers["rows"].values():
        row["ort-cpu-1t"] = "0" * 12 + row["ort-cpu-1t"][12:]
    (tmp_path / "outcomes.json").write_text(json.dumps(answers))
    text = call("compare", ran, tmp_path, code=1).stdout
    assert fits_a_terminal(text)
    assert "regression" in call("compare", ran, tmp_path, "--markdown", code=1).stdout
    deliverable = ran / "deliverables" / "int8"
    assert "mcompress bench" in call("compare", deliverable, deliverable, code=2).stderr
    assert not parsed("compare", ran, tmp_path, code=1)["ok"]
    assert call("compare", tmp_path, ran).stdout


def test_sensitivity_ranks_the_products_of_a_float_model(lab, ran) -> None:
    words = ("sensitivity", f"{ran}:export", "--data", lab.data, "--samples", 6)
    text = call(*words).stdout
    assert fits_a_terminal(text)
    assert "Most sensitive on 6 examples: bert." in text
    assert "quantize: {exclude:" in text
    record = parsed(*words)
    assert record["examples"] == 6
    ratios = [row["sqnr_db"] for row in record["rows"]]
    assert len(ratios) == 16
    assert ratios == sorted(ratios)
    assert all(row["drop_points"] is not None and row["weight_sqnr_db"] is None for row in record["rows"])
    assert sum(row["noise_share"] for row in record["rows"]) == pytest.approx(1.0)
    names = [row["node"].split("/")[0].removeprefix("bert.") for row in record["rows"]]
    assert re.findall(r"^ *\d+ +(\S+) +(?:MatMul|Gemm|Gather) ", text, re.MULTILINE) == names
    assert parsed("sensitivity", ran, *words[2:]) == record | {"step": ran.name}


def test_sensitivity_tells_tensors_apart_and_takes_ranges_and_torch_models(lab, ran) -> None:
    data = ("--data", lab.data / "test.csv", "--samples", 5)
    record = parsed("sensitivity", f"{ran}:export", *data, "--tensors")
    linear = [row for row in record["rows"] if row["operator"] != "Gather"]
    assert all(row["activation_sqnr_db"] and row["weight_sqnr_db"] for row in linear)
    static = parsed("sensitivity", f"{ran}:export", *data, "--method", "static")
    assert {row["node"] for row in static["rows"]} == {row["node"] for row in record["rows"]}
    assert static["rows"] != record["rows"]
    torch = parsed("sensitivity", lab.taken_in(), *data)
    assert [row["node"] for row in torch["rows"]] == [row["node"] for row in record["rows"]]
    assert [row["sqnr_db"] for row in torch["rows"]] == [row["sqnr_db"] for row in record["rows"]]


def test_sensitivity_without_data_runs_built_in_examples_without_a_metric(ran) -> None:
    record = parsed("sensitivity", f"{ran}:export")
    assert record["examples"] == 8
    assert {row["drop_points"] for row in record["rows"]} == {None}


def test_sensitivity_needs_the_float_model(lab, ran, tmp_path) -> None:
    packed = shutil.copytree(ran / "deliverables" / "int8", tmp_path / "packed")
    manifest = json.loads((packed / "artifact.json").read_text(encoding="utf-8"))
    (packed / "artifact.json").write_text(json.dumps(manifest | {"traits": ["int4"]}), encoding="utf-8")
    assert "it is INT4 already" in call("sensitivity", packed, code=2).stderr
    for step in ("int8", "fp16"):
        text = call("sensitivity", ran / "deliverables" / step, code=2).stderr
        assert f"it is {step.upper()} already" in text
        assert "\n  fix:   Give the ONNX or torch artifact that it was made from" in text
    assert "no artifact.json" in call("sensitivity", tmp_path, code=2).stderr
    assert "'export'" in call("sensitivity", f"{ran}:exprot", code=2).stderr
    few = ("--data", lab.data / "test.csv", "--samples", 24, "--method", "static")
    assert "No row is left" in call("sensitivity", f"{ran}:export", *few, code=2).stderr
    assert call("sensitivity", f"{ran}:export", "--method", "other", code=2).stdout == ""


SMALL = (
    "data.calibration.samples=8",
    "measure.targets=[ort-cpu-1t]",
    "measure.inputs=2",
    "measure.rounds=3",
    "measure.launches=1",
)


def test_run_takes_a_model_and_data_and_prints_the_recipe_it_chose(lab, ran, tmp_path) -> None:
    """An .onnx file, beside its tokenizer; the folder has no test split."""
    call("export", f"{ran}:export", tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "validation"):
        shutil.copyfile(lab.data / f"{name}.csv", data / f"{name}.csv")
    sets = [word for value in (*SMALL, "gates.accuracy.max_drop_points=100") for word in ("--set", value)]
    out = tmp_path / "out"
    result = call("run", tmp_path / "model" / "model.onnx", "--data", data, "--out", out, *sets, "--json")
    assert "quantize" in result.stderr
    assert "recipe: 1" in result.stderr
    assert result.stdout.count("\n") == 1
    report = json.loads(result.stdout)
    assert report["recipe"] == "onnx-int8"
    assert report["data"]["evaluated"] == "validation"
    assert report["reproduce"]["commands"][0].startswith("mcompress run model.onnx --out out --data data --set ")
    assert str(tmp_path) not in (out / "report.json").read_text() + (out / "run.json").read_text()
    made = {path.name for path in (out / "deliverables").iterdir()}
    assert {"int8-dynamic", "int8-static", "fp16"} >= made > {"int8-dynamic"}


def test_a_torch_model_gets_the_recipe_that_trains(lab) -> None:
    from compress.pipeline.picking import pick_recipe
    from compress.pipeline.planning import make_plan
    from compress.recipe import parse_recipe

    recipe = parse_recipe(pick_recipe(str(lab.model), lab.data))
    assert recipe.name == "classifier-cpu"
    assert [step.pass_.name for step in make_plan(recipe).steps][:2] == ["export", "quantize"]
    assert "no recipe" not in call("run", lab.model, "--out", lab.root / "x", code=2).stderr
    assert "is not a folder" in call("run", lab.model, "--data", "nowhere", "--out", lab.root / "x", code=2).stderr


@pytest.mark.slow
def test_dataset_text_and_trackers_only_where_asked_for(lab, tmp_path) -> None:
    steps = [
        {"finetune": {"epochs": 2, "learning_rate": 0.01, "batch_size": 4}},
        {"export": {}, "id": "plain", "from": "model"},
        {"export": {}, "id": "tuned", "from": "finetune"},
    ]
    recipe = lab.recipe("asked", steps, measure={**lab.measure, "baselines": ["onnx"]})
    texts = [row["text"] for row in csv.DictReader((lab.data / "test.csv").open(encoding="utf-8"))]
    asked, plain = tmp_path / "asked", tmp_path / "plain"
    track = ["--track", "tensorboard"] if find_spec("tensorboard") else []
    shown = call("run", recipe, "--out", asked, "--examples", *track)
    assert re.search(r"^\[1/3\] finetune: ", shown.stderr, re.MULTILINE)
    assert re.search(r"^\[measure\] |^measure: ", shown.stderr, re.MULTILINE)
    report = json.loads((asked / "report.json").read_text())
    assert "--examples" in report["reproduce"]["commands"][0]
    shipped = report["verdict"]["step"]
    row = next((r for r in report["rows"] if r["step"] == shipped and r["difference"]), None)
    if row is not None and row["agreement"] < 1:
        assert 1 <= len(report["examples"]) <= 50
    assert {example["text"] for example in report["examples"]} <= set(texts)

    call("run", recipe, "--out", plain)
    assert json.loads((plain / "report.json").read_text())["examples"] == []
    assert not (plain / "tensorboard").exists()
    written = [path for path in plain.rglob("*") if path.suffix in {".json", ".md", ".html", ".yaml"}]
    assert {"report.json", "outcomes.json", "measurements.json", "README.md"} <= {path.name for path in written}
    for path in written:
        content = path.read_text(encoding="utf-8")
        assert not [text for text in texts if text in content], path
    if track:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(asked / "tensorboard" / "asked"))
        events.Reload()
        names = events.Tags()["scalars"]
        assert {"finetune/loss", "results/tuned/ort-cpu-1t/accuracy"} <= set(names)
        assert events.Scalars("finetune/loss")[0].step == 10
