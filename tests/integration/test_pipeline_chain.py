"""The whole chain on a tiny model, through the public command: files, report, gates, and running again."""

from __future__ import annotations

import getpass
import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.artifact import Artifact, open_artifact
from compress.recipe import parse_recipe
from compress.report.files import read_report
from compress.report.model import Report

STEPS = [
    {"export": {}, "id": "onnx"},
    {
        "quantize": {"method": "static"},
        "id": "static",
        "gates": {"accuracy": {"min": 1.5}},
        "optional": True,
    },
    {"prune": {"macs": 0.5, "samples": 16, "round_to": 8, "min_neurons": 8}, "from": "model"},
    {"distill": {"teacher": "model", "epochs": 1, "batch_size": 16}},
    {"export": {}, "id": "small"},
    {"quantize": {"method": "dynamic"}, "id": "small-int8"},
    {"quantize": {"scheme": "int4-weights"}, "id": "small-int4", "from": "small"},
    {"cast": {}, "id": "fp16", "from": "small"},
    {"build": {}, "id": "engine", "from": "fp16", "optional": True},
]
TARGETS = ["ort-cpu-1t", "torch-cpu-1t", "tensorrt"]
DELIVERED = {"small-int8", "small-int4", "fp16"}
LEAST = {"inputs": 2, "launches": 1, "rounds": 1, "warmup_seconds": 0.0, "throughput_seconds": 0.001}


@dataclass(frozen=True)
class Ran:
    """A finished run: its folder, what the command said, and its record."""

    out: Path
    said: subprocess.CompletedProcess[str]
    record: dict[str, Any]

    def deliverable(self, step: str) -> Artifact:
        return open_artifact(self.out / "deliverables" / step, verify=True)

    @property
    def report(self) -> Report:
        return read_report(self.out)


def finish(lab, recipe: Path, out: Path) -> Ran:
    said = lab.command("run", recipe, "--out", out)
    assert said.returncode == 0, said.stderr
    return Ran(out, said, json.loads((out / "run.json").read_text()))


@pytest.fixture(scope="module")
def chain(lab) -> Ran:
    measure = {**lab.measure, **LEAST, "targets": TARGETS, "baselines": ["torch", "onnx"]}
    return finish(lab, lab.recipe("chain", STEPS, measure=measure), lab.root / "chain-out")


@pytest.fixture(scope="module")
def depth(lab) -> Ran:
    """A depth-pruned model from a recipe with absolute paths, run from Python; its target measures nothing of it."""
    steps = [{"prune": {"layers": 1, "samples": 16}, "id": "shallow"}]
    data = {split: str(lab.data / f"{split}.csv") for split in ("train", "validation", "test")}
    recipe = lab.recipe("depth", steps, model=str(lab.model), data={**data, "calibration": {"samples": 16}})
    out = lab.root / "depth-out"
    result = compress.run(recipe, out, store=compress.Store(lab.home))
    assert result.exit_code == 0
    assert result.folder == out
    return Ran(out, subprocess.CompletedProcess([], 0, "", ""), json.loads((out / "run.json").read_text()))


def test_every_step_ran_and_deliverables_are_whole(chain: Ran) -> None:
    steps = chain.record["steps"]
    assert chain.record["finished"]
    assert list(steps) == [step["id"] if "id" in step else next(iter(step)) for step in STEPS]
    assert {name for name, step in steps.items() if step["delivered"]} - {"engine"} == DELIVERED
    for name in DELIVERED:
        assert chain.deliverable(name).digest == steps[name]["digest"]
    assert "Traceback" not in chain.said.stderr
    assert {path.name for path in (chain.out / "deliverables").iterdir()} - {"engine"} == DELIVERED


def test_report_is_written_in_three_forms_and_says_the_same(chain: Ran) -> None:
    report = chain.report
    for name in ("report.md", "report.html"):
        text = (chain.out / name).read_text(encoding="utf-8")
        assert all(step in text for step in DELIVERED)
    assert report.subject.labels == 3
    assert [step.id for step in report.steps] == ["model", *chain.record["steps"]]
    digests = {step.id: step.digest for step in report.steps if step.id != "model"}
    assert digests == {name: step["digest"] for name, step in chain.record["steps"].items()}


def test_rows_cover_every_stage_on_every_target_with_both_baselines(chain: Ran) -> None:
    rows = {(row.step, row.target): row for row in chain.report.rows}
    onnx = {"onnx", "static", "small", "small-int8", "small-int4", "fp16"}
    wanted = {(step, "ort-cpu-1t") for step in onnx} | {(s, "torch-cpu-1t") for s in ("model", "prune", "distill")}
    assert {cell for cell in rows if cell[1] != "tensorrt"} == wanted
    assert all(rows[cell].status == "ok" for cell in wanted)
    assert all(set(rows[cell].speedups) == {"torch FP32", "ONNX Runtime FP32"} for cell in wanted)
    assert rows["model", "torch-cpu-1t"].accuracy.value == 1.0
    if chain.record["steps"]["engine"]["status"] == "done" and rows["engine", "tensorrt"].status != "ok":
        assert rows["engine", "tensorrt"].status == "skipped"
        assert "NVIDIA" in rows["engine", "tensorrt"].reason


def test_rows_carry_classes_and_percentiles_and_the_waterfall_ends_with_a_deliverable(chain: Ran) -> None:
    report = chain.report
    rows = {(row.step, row.target): row for row in report.rows}
    shipped = rows["small-int8", "ort-cpu-1t"]
    assert sum(it.n for it in shipped.classes) == shipped.accuracy.n
    assert {it.label for it in shipped.classes} <= set(lab_labels(chain))
    assert all(it.reference is not None for it in shipped.classes)
    assert all(it.reference is None for it in rows["model", "torch-cpu-1t"].classes)
    assert 0 <= shipped.accuracy.calibration_error <= 1
    assert [it.q for it in shipped.latency.percentiles] == [50, 90, 95, 99]
    assert all("different inputs" in it.reason for it in shipped.latency.percentiles), "two inputs bear no percentile"
    assert len(shipped.latency.quantiles_ms) == 101
    waterfall = [it for it in report.stages if it.target == "ort-cpu-1t"]
    assert [it.step for it in waterfall[:5]] == ["model", "onnx", "prune", "distill", "small"]
    assert waterfall[-1].step in DELIVERED
    assert [bool(it.latency_ms) for it in waterfall] == [True, True, False, True, True, True]


def lab_labels(ran: Ran) -> list[str]:
    return list(ran.deliverable("small-int8").manifest.task["labels"])


def test_gates_are_judged_and_a_failed_one_holds_back(chain: Ran) -> None:
    gates = {step.id: step.gates for step in chain.report.steps}
    assert all(gates[name][0].verdict == "pass" for name in DELIVERED)
    assert gates["static"][0].verdict == "fail"
    assert not (chain.out / "deliverables" / "static").exists()
    assert not any(row.deliverable for row in chain.report.rows if row.step == "static")


def test_running_again_takes_everything_from_the_store(lab, chain: Ran) -> None:
    """In another folder, and with less to measure: neither is part of a step's key."""
    measure = {**lab.measure, **LEAST}
    again = finish(lab, lab.recipe("chain", STEPS, measure=measure), lab.root / "chain-again")
    assert all(step["cached"] for step in again.record["steps"].values() if step["status"] == "done")
    first = {name: step["digest"] for name, step in chain.record["steps"].items()}
    assert {name: step["digest"] for name, step in again.record["steps"].items()} == first
    assert contents(again.out / "deliverables") == contents(chain.out / "deliverables")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the model cards: they hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


STOCK = """
import json, sys
import numpy as np
import onnxruntime, openvino, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

onnx_folders, torch_folders = json.loads(sys.argv[1])
for folder in onnx_folders + torch_folders:
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)("the film was good", return_tensors="np")
    if folder in torch_folders:
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
        tokens = {name: torch.tensor(ids) for name, ids in tokens.items()}
        print(json.dumps([model.config.id2label[0], model(**tokens).logits.tolist()]))
        continue
    session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    feed = {name: ids.astype(np.int64) for name, ids in tokens.items() if name in names}
    logits = session.run(["logits"], feed)[0]
    openvino.Core().read_model(folder + "/model.onnx")
    print(json.dumps([folder.rsplit("/", 1)[1], logits.tolist()]))
assert not [name for name in sys.modules if name.split(".")[0] == "compress"]
"""


def test_stock_loaders_open_what_is_delivered(lab, chain: Ran, depth: Ran) -> None:
    onnx = [chain.out / "deliverables" / name for name in sorted(DELIVERED)]
    shallow = next(p for p in lab.stored() if open_artifact(p).digest == depth.record["steps"]["shallow"]["digest"])
    folders = json.dumps([[str(path) for path in onnx], [str(lab.taken_in()), str(shallow)]])
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, folders],
        env=lab.environment,
        cwd=lab.root,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for path, (name, logits) in zip([*onnx, lab.taken_in(), shallow], answers, strict=True):
        assert name in {path.name, "bad"}
        with compress.load(path, threads=1) as predictor:
            np.testing.assert_allclose(predictor.logits(["the film was good"]), logits, atol=1e-4)


def test_a_width_pruned_model_opens_as_torch_and_equals_its_export(lab, chain: Ran) -> None:
    steps = chain.record["steps"]
    find = {open_artifact(path).digest: path for path in lab.stored()}
    distilled, small = find[steps["distill"]["digest"]], find[steps["small"]["digest"]]
    assert (distilled / "structure.json").is_file()
    texts = ["the film was good", "she works", "a dull , slow film but not bad"]
    with compress.load(distilled, threads=1) as torch_model, compress.load(small, threads=1) as onnx_model:
        np.testing.assert_allclose(torch_model.logits(texts), onnx_model.logits(texts), atol=1e-4)
    assert compress.load_model(distilled).num_parameters() < compress.load_model(lab.taken_in()).num_parameters()


def traces(lab) -> list[bytes]:
    """What a byte of an artifact or a report must never hold: places of this machine and names of its owner."""
    words = {str(lab.root), lab.root.parent.name, str(Path.home()) + "/", "site-packages", socket.gethostname()}
    words |= {str(Path(compress.__file__).resolve().parents[1]) + "/", "/tmp/"}
    if getpass.getuser() != "root":
        words.add(getpass.getuser())
    return [word.encode() for word in words if len(word) > 3]


def leaks(files: list[Path], words: list[bytes]) -> list[str]:
    return [f"{path.name}: {word!r}" for path in files for word in words if word in path.read_bytes()]


def test_no_machine_path_in_artifacts_and_reports(lab, chain: Ran, depth: Ran) -> None:
    words = traces(lab)
    files = [path for path in (lab.home / "entries").rglob("*") if path.is_file()]
    files += [path for path in chain.out.rglob("*") if path.is_file()]
    files += [path for path in depth.out.rglob("*") if path.is_file() and path.name != "recipe.resolved.yaml"]
    assert len(files) > 100
    assert leaks(files, words) == []


def test_an_absolute_path_stays_in_the_users_recipe_alone(lab, depth: Ran) -> None:
    assert str(lab.model) in (depth.out / "recipe.resolved.yaml").read_text()
    recipe = depth.report.reproduce.recipe
    assert re.search(r"^model: model$", recipe, re.MULTILINE)
    assert "path: train.csv" in recipe
    assert parse_recipe(recipe).name == "depth"
