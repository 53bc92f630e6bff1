from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from compress.artifact import Graph, PassRecord, TensorSpec, create_artifact, open_artifact
from compress.errors import IntegrityError, ModelError
from compress.store import Store

KEY = "a" * 64


def make(folder, text="weights", **fields):
    folder.mkdir()
    (folder / "model.onnx").write_text(text)
    (folder / "tokenizer.json").write_text("{}")
    logits = TensorSpec(name="logits", dtype="float32", shape=("batch", 2))
    graph = Graph(file="model.onnx", inputs=(), outputs=(logits,))
    record = PassRecord(name="test", version=1, config={})
    return create_artifact(folder, kind="onnx", task={"name": "t"}, graphs={"model": graph}, made_by=record, **fields)


def test_digest_covers_payload_only(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", seed=7)
    third = make(tmp_path / "c", text="other")
    assert first.digest == second.digest != third.digest
    assert open_artifact(tmp_path / "a").manifest == first.manifest
    assert first.size_bytes == len("weights")


def test_changed_byte_is_found(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / "model.onnx").write_text("weighty")
    with pytest.raises(IntegrityError, match=r"'model\.onnx'"):
        open_artifact(tmp_path / "a")
    assert open_artifact(tmp_path / "a", verify=False).kind == "onnx"


def test_folder_that_is_no_artifact(tmp_path):
    with pytest.raises(ModelError, match=r"no artifact\.json"):
        open_artifact(tmp_path)
    (tmp_path / "artifact.json").write_text('{"kind": "jpeg"}')
    with pytest.raises(ModelError, match="cannot be read"):
        open_artifact(tmp_path)


def test_store_builds_once_and_finds_again(tmp_path):
    store, built = Store(tmp_path), []

    def build(payload):
        built.append(payload)
        (payload / "x").write_text("1")

    path, cached = store.get_or_build(KEY, "x", build)
    again, cached_again = Store(tmp_path).get_or_build(KEY, "x", build)
    assert (cached, cached_again, len(built)) == (False, True, 1)
    assert path == again
    assert (path / "x").read_text() == "1"


def test_store_remembers_how_long_a_build_took(tmp_path, monkeypatch):
    store, clock = Store(tmp_path), iter([10.0, 12.5])
    assert store.seconds(KEY) is None
    monkeypatch.setattr("compress.store.keeping.time", SimpleNamespace(monotonic=lambda: next(clock)))
    store.get_or_build(KEY, "x", lambda payload: (payload / "x").write_text("1"))
    assert store.seconds(KEY) == 2.5
    entry = tmp_path / "entries" / KEY / "entry.json"
    record = json.loads(entry.read_text())
    del record["seconds"]
    entry.write_text(json.dumps(record))
    assert store.find(KEY) is not None
    assert store.seconds(KEY) is None


def test_store_keeps_nothing_of_a_failed_build_but_its_checkpoints(tmp_path):
    store = Store(tmp_path)

    def build(payload):
        (payload / "half").write_text("1")
        (store.partial(KEY) / "checkpoint").write_text("epoch 1")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.get_or_build(KEY, "x", build)
    assert store.find(KEY) is None
    assert list((tmp_path / "work").iterdir()) == []
    assert (store.partial(KEY) / "checkpoint").read_text() == "epoch 1"
    store.get_or_build(KEY, "x", lambda payload: (payload / "x").write_text("1"))
    assert not (tmp_path / "partial" / KEY).exists()


def test_store_drops_an_entry_with_a_flipped_byte(tmp_path):
    store = Store(tmp_path)
    path, _ = store.get_or_build(KEY, "x", lambda payload: (payload / "x").write_text("good"))
    (path / "x").write_text("evil")
    assert store.find(KEY) is None
    path, cached = store.get_or_build(KEY, "x", lambda payload: (payload / "x").write_text("good"))
    assert (path / "x").read_text() == "good"
    assert not cached
