"""Taking a user's model in: what is normalised and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from compress.errors import CompressError, ModelError, UsageError
from compress.models.fresh import fresh_classifier, learn_wordpieces
from compress.models.golden import golden_torch
from compress.models.loading import load_torch
from compress.models.signature import torch_graph
from compress.models.source import fetch, label_names, problem_of, take_in
from compress.tasks.base import task_from
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"vocab_size": 90, "layers": 2, "hidden": 16, "heads": 2, "intermediate": 24}
TASK = TextClassification(("negative", "positive"), max_length=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    fresh_classifier(GOLDEN_TEXTS, TASK, **SIZES, seed=4, out=folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A user's own copy of the model, as float16."""
    copy = tmp_path / "user"
    shutil.copytree(made, copy)
    weights = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy, dtype="float16")
    return copy


@pytest.fixture
def out(tmp_path: Path) -> Path:
    target = tmp_path / "taken"
    target.mkdir()
    return target


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in values.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_float16_model_becomes_a_float32_payload(folder: Path, out: Path) -> None:
    options = take_in(str(folder), out, "text-classification")
    assert options == TASK.dump()
    assert sorted(digests(out)) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    stored, given = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(stored[name], tensor.float()) for name, tensor in given.items())
    assert stored.keys() == given.keys()
    text = "".join((out / name).read_text() for name in ("config.json", "tokenizer_config.json"))
    assert str(folder.parent) not in text
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_taking_in_again_gives_equal_bytes_from_anywhere(folder: Path, out: Path, tmp_path: Path) -> None:
    take_in(str(folder), out, "text-classification")
    elsewhere, second = tmp_path / "elsewhere", tmp_path / "second"
    shutil.copytree(folder, elsewhere)
    second.mkdir()
    take_in(str(elsewhere), second, "text-classification")
    assert digests(second) == digests(out)


def test_golden_equals_what_stock_transformers_says(folder: Path, out: Path) -> None:
    task = task_from(take_in(str(folder), out, "text-classification"))
    golden = golden_torch(out, task)
    assert len(golden.inputs["input_ids"]) == len(GOLDEN_TEXTS) == 8
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    batch = AutoTokenizer.from_pretrained(out)(
        list(GOLDEN_TEXTS), padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.inference_mode():
        wanted = model(**batch).logits.numpy()
    np.testing.assert_allclose(golden.outputs["logits"], wanted, atol=1e-6)
    graph = torch_graph(out, task)
    assert [spec.name for spec in graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert graph.outputs[0].shape == ("batch", 2)


def test_labels_are_renamed_by_name(folder: Path, out: Path) -> None:
    edit(folder, id2label=None, label2id=None)
    options = take_in(str(folder), out, "text-classification", {"LABEL_1": "good", "LABEL_0": "bad"}, 1000)
    assert options["labels"] == ["bad", "good"]
    assert options["max_length"] == 32
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}


def test_label_names() -> None:
    config = {"id2label": {"10": "k", "2": "c", "0": "a"}}
    assert label_names(config) == ["a", "c", "k"]
    assert label_names({}) == ["LABEL_0", "LABEL_1"]
    with pytest.raises(ModelError, match="does not have"):
        label_names(config, {"b": "x"})
    with pytest.raises(ModelError, match="same name"):
        label_names(config, {"a": "c"})


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"problem_type": "regression", "id2label": {"0": "a", "1": "b"}}, "regression"),
        ({"id2label": {"0": "LABEL_0"}}, "regression"),
        ({"problem_type": None}, "single_label"),
    ],
)
def test_problem_of(config: dict[str, object], problem: str) -> None:
    assert problem_of(config) == problem


def test_a_bare_encoder_gets_a_head_but_no_labels(folder: Path, out: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    bare = tmp_path / "bare"
    model.base_model.save_pretrained(bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, bare / name)
    options = take_in(str(bare), out, "text-classification")
    assert options["labels"] == []
    loaded = load_torch(out, TASK)
    for name, weight in model.base_model.state_dict().items():
        assert torch.equal(loaded.base_model.state_dict()[name], weight.float())
    second = tmp_path / "second"
    second.mkdir()
    take_in(str(bare), second, "text-classification")
    assert digests(second) == digests(out)


def test_older_releases_left_buffers_that_do_not_matter(folder: Path, out: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    take_in(str(folder), out, "text-classification")
    assert "bert.embeddings.position_ids" not in load_file(out / "model.safetensors")


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _left_over(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.7.output.dense.weight"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickle, "a pickle checkpoint"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"0" * 64), "not a whole safetensors file"),
    "not finite": (_nan, "not finite"),
    "missing weight": (_missing, "do not fit"),
    "left over weight": (_left_over, "do not fit"),
    "other shapes": (lambda f: edit(f, intermediate_size=48), "do not fit"),
    "remote code": (lambda f: edit(f, auto_map={"AutoModel": "x.Y"}), "remote code"),
    "unsupported family": (lambda f: edit(f, model_type="gpt2"), "only encoders are supported"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "no tokenizer": (_no_tokenizer, "no tokenizer"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be opened"),
}


@pytest.mark.parametrize("breakage", sorted(BREAKAGES))
def test_what_is_refused(folder: Path, out: Path, breakage: str) -> None:
    broken, message = BREAKAGES[breakage]
    broken(folder)
    with pytest.raises(ModelError, match=message) as caught:
        take_in(str(folder), out, "text-classification")
    assert caught.value.exit_code == 2
    assert caught.value.fix
    assert str(folder) not in caught.value.value


def test_a_tokenizer_that_is_too_large_is_refused(folder: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzz1", "zzz2"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="more tokens"):
        take_in(str(folder), out, "text-classification")


@pytest.mark.parametrize("source", ["./absent", "/absent/model", "a/b/c"])
def test_a_folder_that_is_not_there(source: str) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        fetch(source)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        fetch("someone/some-model")


def test_a_fresh_classifier_is_deterministic(made: Path, tmp_path: Path) -> None:
    fresh_classifier(GOLDEN_TEXTS, TASK, **SIZES, seed=4, out=tmp_path)
    assert digests(tmp_path) == digests(made)
    with pytest.raises(UsageError, match="not a multiple"):
        fresh_classifier(GOLDEN_TEXTS, TASK, **(SIZES | {"heads": 3}), seed=4, out=tmp_path)


def test_wordpieces_of_a_tiny_corpus() -> None:
    pieces = learn_wordpieces(["Aab aab aab", "b"], 6)
    assert pieces[:4] == ["a", "b", "##a", "##b"]
    assert pieces[4:] == ["aa", "aab"]


def test_errors_are_compress_errors() -> None:
    assert issubclass(ModelError, CompressError)
