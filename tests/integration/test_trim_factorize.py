"""trim and factorize in a whole run, and through the passes: what is delivered, and what is on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.artifact import Artifact, PassRecord, create_artifact, open_artifact
from compress.data.splits import Split, TaskData
from compress.distillation.internals import predict
from compress.errors import DataError, RecipeError
from compress.models.loading import load_torch
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo
from compress.passes.factorize import Factorize
from compress.passes.trim import Trim
from compress.store import Store
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=16)
TRAIN = [{"text": "the film was great", "label": "good"}, {"text": "a dull film", "label": "bad"}] * 4
OTHERS = [{"text": "the film was dull", "label": "bad"}, {"text": "she works , my order ?", "label": "fine"}]
STEPS = [
    {"prune": {"macs": 0.5, "samples": 16, "round_to": 8, "min_neurons": 8}},
    {"trim": {"margin": 2}},
    {"factorize": {"embeddings": 4}},
    {"distill": {"teacher": "model", "epochs": 1, "batch_size": 16}},
    {"export": {}},
    {"quantize": {}},
]


@pytest.fixture
def source(tiny_classifier: Callable[..., Path]) -> Artifact:
    folder = tiny_classifier("bert")
    return create_artifact(
        folder,
        kind="torch",
        task=TASK.dump(),
        graphs={"model": torch_graph(folder, TASK)},
        made_by=PassRecord(name="test", version=1, config={}),
    )


def run(pass_: Any, source: Artifact, root: Path, data: dict[str, list[dict[str, Any]]], **config: Any) -> Artifact:
    for name in ("out", "scratch", "checkpoint"):
        (root / name).mkdir(parents=True)
    splits = {name: Split(name, [{"text_pair": None, **row} for row in rows], name, "") for name, rows in data.items()}
    context = Context(
        root / "out", root / "scratch", root / "checkpoint", TASK, TaskData(splits, TASK.labels), Store(root / "store")
    )
    return pass_.apply({"model": source}, pass_.Config.model_validate(config), context)


def test_trim_keeps_outputs_and_tells_the_rates(source: Artifact, tmp_path: Path) -> None:
    data = {"train": TRAIN, "validation": OTHERS}
    made = run(Trim(), source, tmp_path, data, margin=0)
    notes = made.manifest.notes
    assert notes["proved_on"] == len(TRAIN)
    assert notes["positions"] == 16
    assert notes["tokens"] < notes["tokens_before"]
    assert notes["rates"]["train"]["texts_changed"] == 0.0
    assert notes["rates"]["validation"]["texts_changed"] == 0.5
    rows = [{**row, "text_pair": None} for row in (*TRAIN, OTHERS[0])]
    before, after = (predict(load_torch(a.path, TASK), TASK.encode(a.path, rows)) for a in (source, made))
    assert np.array_equal(before, after)
    config = json.loads((made.path / "config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["max_position_embeddings"]) == (notes["tokens"], 16)
    assert not (made.path / "structure.json").exists(), "plain from_pretrained opens it"


def test_transfer_text_counts_only_where_it_is_named(source: Artifact, tmp_path: Path) -> None:
    data = {"train": TRAIN, "validation": OTHERS, "transfer": [{"text": "she works", "label": None}]}
    both = run(Trim(), source, tmp_path / "both", data, margin=0)
    one = run(Trim(), source, tmp_path / "one", data, margin=0, texts=["train"])
    assert both.manifest.notes["tokens"] == one.manifest.notes["tokens"] + 2
    assert set(both.manifest.data) == {"train", "validation", "transfer"}
    assert set(one.manifest.data) == {"train", "validation"}


def test_trim_refuses_what_cannot_be(source: Artifact, tmp_path: Path) -> None:
    data = {"train": TRAIN, "validation": OTHERS}
    with pytest.raises(RecipeError, match="longer than the positions"):
        run(Trim(), source, tmp_path / "short", data, positions=8)
    with pytest.raises(DataError, match="no text whose tokens"):
        run(Trim(), source, tmp_path / "none", data, texts=["transfer"])
    with pytest.raises(ValueError, match="nothing to trim"):
        Trim.Config.model_validate({"vocabulary": "all", "positions": None})
    with pytest.raises(ValueError, match="give `embeddings`"):
        Factorize.Config.model_validate({"embeddings": None})


@pytest.mark.parametrize("pass_", [Trim(), Factorize()])
def test_models_of_images_are_refused(pass_: Any) -> None:
    images = ModelInfo("torch", config={"model_type": "vit", "image_size": 8, "hidden_size": 32})
    with pytest.raises(RecipeError, match="works on the tokens") as caught:
        pass_.plan({"model": images}, pass_.Config())
    assert caught.value.value == "vit"


def test_plans_say_what_is_known() -> None:
    config = {"model_type": "bert", "vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    info = ModelInfo("torch", config=config, parameters=50_000, macs=7_000)
    cut = Trim().plan({"model": info}, Trim.Config.model_validate({"vocabulary": "all", "positions": 16}))
    assert (cut.result.parameters, cut.result.config["max_position_embeddings"]) == (50_000 - 48 * 32, 16)
    assert Trim().plan({"model": info}, Trim.Config()).result.parameters is None, "the corpus is not read by a plan"
    thin = Factorize().plan({"model": info}, Factorize.Config.model_validate({"embeddings": 8})).result
    assert (thin.parameters, thin.macs) == (50_000 - 1000 * 32 + 8 * 1032, 7_000 + 128 * 8 * 32)
    wide = Factorize().plan({"model": info}, Factorize.Config()).result
    assert (wide.parameters, wide.macs) == (50_000, 7_000), "rank 128 of 32 saves nothing"


def test_factorize_then_trim_is_the_same_as_the_tables_say(source: Artifact, tmp_path: Path) -> None:
    """A factored table loses rows like a plain one."""
    data = {"train": TRAIN, "validation": OTHERS}
    factored = run(Factorize(), source, tmp_path / "first", data, embeddings=8)
    made = run(Trim(), factored, tmp_path / "second", data, margin=0)
    assert list(factored.manifest.notes["factored"]) == ["bert.embeddings.word_embeddings"]
    assert json.loads((made.path / "structure.json").read_text(encoding="utf-8"))["ranks"] == {
        "bert.embeddings.word_embeddings": 8
    }
    rows = [{**row, "text_pair": None} for row in TRAIN]
    before, after = (predict(load_torch(a.path, TASK), TASK.encode(a.path, rows)) for a in (factored, made))
    assert np.array_equal(before, after)


@pytest.mark.slow
def test_latency_decides_and_is_kept(source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models are deployed and timed; on so small a model no product of two matrices is faster than one."""
    data = {"train": TRAIN, "validation": OTHERS}
    made = run(Factorize(), source, tmp_path, data, embeddings=8, linears=0.5, samples=8, goal="latency")
    notes = made.manifest.notes
    assert set(notes["times"]) == {"embeddings", "linears", "embeddings and linears"}
    assert all(row["value"] > 0 for row in notes["times"].values())
    chosen = notes["chosen"]
    assert (chosen == "none") == (not notes["factored"])
    assert chosen == "none" or notes["times"][chosen]["low"] > 1.0
    assert all(reason for reason in notes["left"].values())


@pytest.mark.slow
def test_the_whole_chain_delivers_a_small_file(lab: Any) -> None:
    import onnx

    out = lab.root / "small-out"
    said = lab.command("run", lab.recipe("small-chain", STEPS), "--out", out)
    assert said.returncode == 0, said.stderr
    made = open_artifact(out / "deliverables" / "quantize", verify=True)
    tokens = json.loads((made.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tables = [t for t in onnx.load(made.file()).graph.initializer if tuple(t.dims) == (len(tokens), 4)]
    assert [t.data_type for t in tables] == [onnx.TensorProto.UINT8]
    with compress.load(made.path, threads=1) as predictor:
        assert np.isfinite(predictor.logits(["the film was good", "an unseen word"])).all()
