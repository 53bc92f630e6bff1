"""2:4 sparsity through the passes: training keeps the zeros, so do export, INT8 and FP16, and the order is checked."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.data.splits import Split, TaskData
from compress.errors import RecipeError
from compress.export.sparsity import sparse_weights
from compress.models.loading import load_torch
from compress.models.signature import torch_graph
from compress.models.sparsity import SPARSE, sparse_linears
from compress.passes.base import Context, ModelInfo, passes
from compress.pipeline.planning import make_plan
from compress.recipe import parse_recipe
from compress.report.model import Step
from compress.report.notes import note_pairs
from compress.store import Store
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
WORDS = {"bad": ("bad", "dull"), "fine": ("fine", "slow"), "good": ("good", "great")}
PATTERNS = ("the film was {} and i was fine", "a {} train , not slow", "she was {} but my card works .")
ROWS = [
    {"text": pattern.format(word), "text_pair": None, "label": label}
    for pattern, (label, words) in itertools.product(PATTERNS, WORDS.items())
    for word in words
]
DATA = TaskData({name: Split(name, ROWS, name, "test") for name in ("train", "validation", "calibration")}, TASK.labels)
LAYERS = 12
"""Linear layers in the two encoder layers of the tiny classifier."""


class Killed(BaseException):
    pass


class Bench:
    """Runs passes in fresh folders with one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()

    def run(self, name: str, inputs: dict[str, Artifact], config: dict[str, Any], **fields: Any) -> Artifact:
        base = self.root / str(next(self._numbers))
        for folder in ("out", "scratch", "checkpoint"):
            (base / folder).mkdir(parents=True)
        given = {"checkpoint": base / "checkpoint", "task": TASK, "data": DATA, "store": Store(self.root / "store")}
        context = Context(out=base / "out", scratch=base / "scratch", seed=3, **(given | fields))
        pass_ = passes.get(name)()
        config = pass_.Config.model_validate(config)
        made = pass_.apply(inputs, config, context)
        infos = {role: ModelInfo(artifact.kind, artifact.traits) for role, artifact in inputs.items()}
        assert made.traits == pass_.plan(infos, config).result.traits
        return made


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sparse"))


@pytest.fixture(scope="module")
def dense(tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("dense")
    for path in tiny_classifier().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return create_artifact(
        folder,
        kind="torch",
        task=TASK.dump(),
        graphs={"model": torch_graph(folder, TASK)},
        made_by=PassRecord(name="test", version=1, config={}),
    )


@pytest.fixture(scope="module")
def sparse(bench: Bench, dense: Artifact) -> Artifact:
    return bench.run("sparsify", {"model": dense}, {})


@pytest.fixture(scope="module")
def exported(bench: Bench, sparse: Artifact) -> Artifact:
    return bench.run("export", {"model": sparse}, {})


def zeros(artifact: Artifact) -> dict[str, np.ndarray]:
    """Weight -> which of its elements are zero, for the layers that are 2:4."""
    weights = load_file(artifact.path / "model.safetensors")
    return {path: weights[f"{path}.weight"] == 0 for path in sparse_linears(load_torch(artifact.path, TASK))}


def same_zeros(first: Artifact, second: Artifact) -> bool:
    one, two = zeros(first), zeros(second)
    return len(one) == LAYERS and one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def test_notes_say_what_became_sparse_and_claim_no_speed(sparse: Artifact, dense: Artifact) -> None:
    notes = sparse.manifest.notes
    assert sparse.traits == dense.traits | {SPARSE}
    assert set(notes["sparse"]) == set(zeros(sparse))
    assert all(0.5 < it["energy_kept"] < 1 for it in notes["sparse"].values())
    assert set(notes["left"]) >= {"bert.embeddings.word_embeddings", "bert.pooler.dense", "classifier"}
    assert notes["speed"].startswith("no speed-up is claimed")
    assert 0 < notes["zeros"] < 0.5
    assert sparse.manifest.parameters == sum(
        array.size for array in load_file(dense.path / "model.safetensors").values()
    )


def test_the_report_words_the_notes(sparse: Artifact) -> None:
    pairs = dict(note_pairs(Step(id="s", name="sparsify", notes=sparse.manifest.notes)))
    assert pairs["2:4 sparse"] == "12 linear layers, by magnitude"
    assert pairs["zeros"].startswith("50 % of the weights of these layers, ")
    assert "pooler, classifier" in pairs["left as they were"]
    assert list(pairs) == ["2:4 sparse", "zeros", "squares of the weights kept", "left as they were", "speed"]


def test_stock_transformers_opens_it(sparse: Artifact) -> None:
    code = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "folder = sys.argv[1]\n"
        "golden = json.load(open(folder + '/artifact.json'))['golden']\n"
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()\n"
        "with torch.no_grad():\n"
        "    seen = model(**{n: torch.tensor(v) for n, v in golden['inputs'].items()}).logits\n"
        "wanted = torch.tensor(golden['outputs']['logits'])\n"
        "assert torch.allclose(seen, wanted, atol=1e-5), (seen - wanted).abs().max()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(sparse.path)], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "config", "roles"),
    [
        ("finetune", {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1}, ("model",)),
        ("distill", {"teacher": "model", "epochs": 2, "batch_size": 4, "seeds": 2}, ("model", "teacher")),
    ],
)
def test_training_keeps_the_zeros(
    bench: Bench, dense: Artifact, sparse: Artifact, name: str, config: dict[str, Any], roles: tuple[str, ...]
) -> None:
    inputs = {role: sparse if role == "model" else dense for role in roles}
    made = bench.run(name, inputs, config)
    assert SPARSE in made.traits
    assert made.manifest.notes["sparse_layers"] == LAYERS
    assert same_zeros(sparse, made)
    before, after = (load_file(it.path / "model.safetensors") for it in (sparse, made))
    learned = "bert.encoder.layer.0.output.dense.weight"
    assert np.mean(before[learned] != after[learned]) == 0.5, "every other weight learns"


def test_a_dense_model_learns_everywhere(bench: Bench, dense: Artifact) -> None:
    made = bench.run("finetune", {"model": dense}, {"epochs": 1})
    assert "sparse_layers" not in made.manifest.notes


def test_a_killed_training_resumes_to_identical_weights(bench: Bench, dense: Artifact, sparse: Artifact) -> None:
    inputs, config = {"model": sparse, "teacher": dense}, {"teacher": "model", "epochs": 3, "batch_size": 2}

    def kill_in_second_epoch(message: str, done: int | None = None, total: int | None = None) -> None:
        if message.startswith("training") and done is not None and total is not None and done > total / 3 + 1:
            raise Killed

    whole = bench.run("distill", inputs, config)
    place = bench.root / "killed"
    place.mkdir()
    with pytest.raises(Killed):
        bench.run("distill", inputs, config, checkpoint=place, emit=kill_in_second_epoch)
    assert list(place.glob("checkpoint-*"))
    resumed = bench.run("distill", inputs, config, checkpoint=place)
    assert resumed.digest == whole.digest
    assert resumed.manifest.notes == whole.manifest.notes
    assert same_zeros(sparse, resumed)


def test_students_of_a_sparse_teacher_are_sparse_unless_they_are_narrower(bench: Bench, sparse: Artifact) -> None:
    inputs, config = {"model": sparse, "teacher": sparse}, {"teacher": "model", "epochs": 1}
    shallow = bench.run("distill", inputs, config | {"student": {"layers": 1}})
    assert shallow.traits == {SPARSE, "distilled"}
    assert len(zeros(shallow)) == LAYERS // 2
    narrow = bench.run("distill", inputs, config | {"student": {"hidden": 16}})
    assert narrow.traits == {"distilled"}
    assert set(zeros(narrow)) == {f"bert.encoder.layer.{layer}.attention.output.dense" for layer in (0, 1)}
    assert narrow.manifest.notes["sparse_layers"] == 2, "whole heads went, so these two layers kept their groups"


def test_export_and_casts_keep_two_of_four_along_the_inputs(bench: Bench, exported: Artifact) -> None:
    made = {"export": exported, "cast": bench.run("cast", {"model": exported}, {})}
    for activation in ("int8", "uint8"):
        config = {"method": "static", "activation": activation, "reduce_range": False}
        made[activation] = bench.run("quantize", {"model": exported}, config)
    for name, artifact in made.items():
        found = sparse_weights(onnx.load(artifact.file()))
        assert SPARSE in artifact.traits
        assert len(found.sparse) == LAYERS, name
        assert len(found.dense) == 2, name  # pooler and classifier


@pytest.mark.slow
def test_training_under_int8_keeps_the_zeros(bench: Bench, dense: Artifact, sparse: Artifact) -> None:
    made = bench.run("qat", {"model": sparse, "teacher": dense}, {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3})
    assert made.traits >= {SPARSE, "int8"}
    assert made.manifest.notes["sparse_layers"] == LAYERS
    assert len(sparse_weights(onnx.load(made.file())).sparse) == LAYERS


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ([{"sparsify": {}}, {"prune": {"macs": 0.5}}], "'prune' cannot follow 'sparsify'.*already sparse24"),
        ([{"sparsify": {}}, {"factorize": {}}], "'factorize' cannot follow"),
        ([{"sparsify": {}}, {"sparsify": {}, "id": "again"}], "already sparse24"),
        ([{"sparsify": {}}, {"distill": {"teacher": "model"}}, {"prune": {"macs": 0.5}}], "already .*sparse24"),
        ([{"export": {}}, {"sparsify": {}}], "needs a torch model"),
        ([{"export": {}}, {"quantize": {}}, {"sparsify": {}}], "needs a torch model"),
    ],
)
def test_a_wrong_order_is_refused(tmp_path: Path, steps: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        make_plan(_recipe(tmp_path, {"model_type": "bert"}, steps))


def test_convolutional_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="linear layers of an encoder"):
        make_plan(_recipe(tmp_path, {"model_type": "resnet", "num_channels": 3}, [{"sparsify": {}}]))


def _recipe(folder: Path, config: dict[str, Any], steps: list[dict[str, Any]]) -> Any:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    raw = {"recipe": 1, "model": str(folder), "data": {"train": "a.csv"}, "steps": steps}
    return parse_recipe(json.dumps(raw))
