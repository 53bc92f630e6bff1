"""Models with code of their author: what runs it, what never does, and that it is always the right code."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import compress
from compress.errors import ModelError

BAG_FILES = {"configuration_bag.py", "modeling_bag.py", "pooling.py"}


@dataclass
class Bag:
    """A finished run: its folder, its recipe, and what it said."""

    out: Path
    recipe: Path
    said: str

    @property
    def student(self) -> Path:
        return self.out / "deliverables" / "own-student"


@pytest.fixture(scope="module")
def bag(lab, own_code, tmp_path_factory) -> Bag:
    """A run that names a bag of words, with the passes that take such a model."""
    out, model, said = tmp_path_factory.mktemp("bag") / "run", str(own_code("bag")), []
    steps = [
        {"finetune": {"epochs": 1}},
        {"export": {}},
        {"quantize": {"method": "dynamic"}},
        {"distill": {"teacher": "model", "epochs": 1}, "id": "own-student", "from": "finetune"},
    ]
    recipe = lab.recipe("bag", steps, model=model, trust_remote_code=model)
    compress.run(
        recipe, out, variables=[f"DATA={lab.data}"], store=compress.Store(lab.home), emit=lambda *it: said.append(it[0])
    )
    return Bag(out, recipe, "\n".join(map(str, said)))


def test_a_run_takes_it_through_every_pass_that_can(bag: Bag) -> None:
    assert "the model's own code is run: configuration_bag.py, modeling_bag.py, pooling.py" in bag.said
    assert "in no sandbox" in bag.said
    report = json.loads((bag.out / "report.json").read_text(encoding="utf-8"))
    steps = {step["id"]: step for step in report["steps"]}
    assert {name: "custom-code" in step["traits"] for name, step in steps.items()} == {
        "model": True,
        "finetune": True,
        "export": False,
        "quantize": False,
        "own-student": True,
    }
    assert [row["reason"] for row in report["rows"] if row["status"] != "ok"] == []
    assert "modeling_bag.py" in steps["model"]["notes"]["code"]
    assert str(bag.out.parent) not in (bag.out / "report.json").read_text(encoding="utf-8")
    assert "in no sandbox" in (bag.out / "report.md").read_text(encoding="utf-8")
    for step in ("own-student", "quantize"):
        folder = bag.out / "deliverables" / step
        files = {path.name for path in folder.glob("*.py")}
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = step == "own-student"
        assert files == (BAG_FILES if own else set())
        assert ("auto_map" in config) == own
        assert set(compress.open_artifact(folder).manifest.files) >= BAG_FILES or not own


def test_an_artifact_runs_code_only_for_who_says_so(bag: Bag, lab) -> None:
    folder = bag.student
    for opening in (compress.load, compress.load_model):
        with pytest.raises(ModelError, match="needs remote code"):
            opening(folder)
    with compress.load(folder, trust_remote_code=True) as predictor:
        assert predictor("the film was great")["label"] in ("bad", "fine", "good")
    with pytest.raises(ModelError, match="needs remote code"):
        compress.load_model(folder)
    with compress.load(bag.out / "deliverables" / "quantize") as predictor:
        assert predictor("the film was great")["label"] in ("bad", "fine", "good")
    done = lab.command("bench", folder, "--data", lab.data / "test.csv", "--json")
    assert "needs remote code" in json.loads(done.stdout.splitlines()[-1])[0]["reason"]


def test_transformers_opens_it_too(bag: Bag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = bag.student
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    ours = compress.load_model(folder, trust_remote_code=True)
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert torch.equal(theirs(**inputs).logits, ours(**inputs).logits)


def test_two_folders_of_one_name_have_their_own_code(bag: Bag, tmp_path: Path) -> None:
    """Modules are named by what is in them, not by where they lie; the first does not stay for the others."""
    found = {}
    for place, answer in (("a", "logits=self"), ("b", "logits=-self"), ("c", "logits=2 * self")):
        folder = tmp_path / place / "payload"
        shutil.copytree(bag.student, folder, ignore=shutil.ignore_patterns("*.json"))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bag.student / name, folder)
        text = (folder / "modeling_bag.py").read_text(encoding="utf-8")
        (folder / "modeling_bag.py").write_text(text.replace("logits=self", answer), encoding="utf-8")
        _seal(folder, bag.student)
        with compress.load(folder, check=False, trust_remote_code=True) as predictor:
            found[place] = predictor.logits(["the film was great"])
        assert not list(folder.rglob("__pycache__"))
    np.testing.assert_array_equal(found["b"], -found["a"])
    np.testing.assert_array_equal(found["c"], 2 * found["a"])


def _seal(folder: Path, like: Path) -> None:
    from compress.artifact import create_artifact

    manifest = compress.open_artifact(like).manifest
    create_artifact(
        folder,
        kind="torch",
        task=manifest.task,
        graphs=manifest.graphs,
        made_by=manifest.made_by,
        traits=("custom-code",),
    )


def test_trust_is_for_these_very_bytes(bag: Bag, tmp_path: Path) -> None:
    """What another process put in the place of the code after it was looked at is not run."""
    from compress.models.loading import load_torch
    from compress.models.remote_code import read_code
    from compress.tasks.base import task_from
    from compress.trust import trusting

    like = bag.student
    folder = Path(shutil.copytree(like, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = task_from(compress.open_artifact(like).manifest.task)
    with trusting([read_code(folder, config).digest]):
        load_torch(folder, task)
        with (folder / "pooling.py").open("a", encoding="utf-8") as file:
            file.write("\nraise SystemExit('run')\n")
        with pytest.raises(ModelError, match="needs remote code"):
            load_torch(folder, task)


def test_what_calls_itself_bert_is_not_taken_for_it(lab, own_code, tmp_path: Path) -> None:
    from compress.models.loading import load_torch
    from compress.models.remote_code import read_code
    from compress.models.source import take_in
    from compress.tasks.base import task_from
    from compress.trust import trusting

    folder = own_code("bert")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with trusting([read_code(folder, config).digest]):
        options = take_in(str(folder), tmp_path, "text-classification", max_length=32, own_code=True)
        task = task_from(options)
        own, known = load_torch(tmp_path, task), load_torch(lab.model, task)
    import torch

    ids = torch.tensor([[2, 7, 8, 3]])
    assert type(own).__name__ == "OwnBert"
    assert torch.equal(own(input_ids=ids).logits, -known(input_ids=ids).logits)


@pytest.mark.parametrize("step", [{"prune": {"macs": 0.5}}, {"sparsify": {}}, {"trim": {}}, {"factorize": {}}])
def test_passes_that_need_a_known_structure_refuse_when_planned(lab, own_code, refusals, step) -> None:
    model = str(own_code("bert"))
    recipe = lab.recipe("own", [step], model=model, trust_remote_code=model)
    refusals.of("own code", "must know the parts of a model", ("plan", recipe), ("run", recipe, "--out", refusals.out))


def test_a_model_and_data_are_enough(lab, own_code) -> None:
    """The recipe that is chosen for such a model can be planned."""
    from compress.pipeline.picking import pick_recipe
    from compress.pipeline.planning import make_plan
    from compress.recipe import parse_recipe

    model = str(own_code("bert"))
    recipe = parse_recipe(pick_recipe(model, lab.data, own_code=True), [f"trust_remote_code={model}"])
    assert make_plan(recipe).leaves == ["int8", "fp16"]


def test_the_command_names_it(lab, own_code) -> None:
    from typer.testing import CliRunner

    from compress.cli.app import app

    model = own_code("bert")
    recipe = lab.recipe("named", [{"export": {}}])
    words = [str(recipe), "--var", f"MODEL={model}"]
    assert "needs remote code" in CliRunner().invoke(app, ["plan", *words]).stderr
    planned = CliRunner().invoke(app, ["plan", *words, "--trust-remote-code", f"{model}/"])
    assert "no sandbox" in planned.stderr
    assert planned.exit_code == 0
    checked = CliRunner().invoke(app, ["validate", *words, "--trust-remote-code", str(model)])
    assert checked.exit_code == 0, checked.stderr


def test_a_kit_has_graphs_alone(bag: Bag, lab, tmp_path: Path) -> None:
    from compress.errors import UsageError
    from compress.kit.writing import write_kit

    store, variables = compress.Store(lab.home), [f"DATA={lab.data}"]
    write_kit(bag.out, ["quantize"], tmp_path / "kit", variables=variables, store=store, emit=lambda *_: None)
    assert not list((tmp_path / "kit").rglob("modeling*"))
    with pytest.raises(UsageError, match="needs its author's code"):
        write_kit(bag.out, ["own-student"], tmp_path / "none", variables=variables, store=store, emit=lambda *_: None)


def test_an_export_says_what_it_needs(bag: Bag, lab, tmp_path: Path) -> None:
    done = lab.command("export", f"{bag.out}:own-student", tmp_path / "out", "--layout", "transformers")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == BAG_FILES | {"verify.py"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'AutoModelForSequenceClassification.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert 'compress.load("FOLDER", trust_remote_code=True)' in card
    assert "in no sandbox" in card
    checked = lab.command("verify", tmp_path / "out")
    assert "nobody's code runs here" in checked.stdout
    assert checked.returncode == 3, checked.stdout + checked.stderr


def test_the_hub_gives_code_of_one_commit(own_code, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.models.source import fetch

    asked = []

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append("*.py" in allow_patterns)
        return str(own_code("bag"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    fetch("someone/model")
    fetch("someone/model", own_code=True)
    assert asked == [False, True]
