from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.artifact import Artifact
from compress.errors import ModelError, RunError
from compress.export.golden import golden_onnx, open_session
from compress.export.onnx_clean import clean, find_paths, write_onnx
from compress.export.onnx_export import export_onnx, model_inputs
from compress.export.signature import read_graph
from compress.models.golden import golden_torch
from compress.models.loading import load_torch
from compress.tasks.text_classification import TextClassification

FAMILIES = ("bert", "roberta", "distilbert")
TASK = TextClassification(("bad", "fine", "good"), max_length=32)


def batch(names: list[str], shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones(shape, dtype=np.int64)
    mask[-1, shape[1] // 2 + 1 :] = 0
    every = {
        "input_ids": rng.integers(5, 40, shape) * mask,
        "attention_mask": mask,
        "token_type_ids": np.broadcast_to(np.arange(shape[1]) // 4 % 2, shape).astype(np.int64),
    }
    return {name: every[name] for name in names}


@pytest.mark.parametrize(
    ("family", "pruned"), [("bert", False), ("bert", True), ("roberta", True), ("distilbert", True)]
)
def test_onnx_logits_equal_torch_at_every_shape(
    family: str, pruned: bool, tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact]
) -> None:
    model = load_torch(tiny_classifier(family, pruned), TASK)
    session = open_session(tiny_exported(family, pruned).file())
    names = [value.name for value in session.get_inputs()]
    assert names == model_inputs(model)
    for shape in [(1, 1), (1, 5), (2, 7), (3, 1), (5, 32), (1, 64)]:
        feed = batch(names, shape)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.numpy()
        (logits,) = session.run(None, feed)
        np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=0)
    assert expected.std() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_token_types_are_an_input_only_where_the_model_has_them(
    family: str, tiny_classifier: Callable[..., Path]
) -> None:
    names = model_inputs(load_torch(tiny_classifier(family), TASK))
    assert ("token_type_ids" in names) == (family == "bert")


def test_signature_has_named_axes_and_only_logits(tiny_exported: Callable[..., Artifact]) -> None:
    graph = read_graph(tiny_exported().file())
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.inputs] == [
        (name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.outputs] == [("logits", "float32", ("batch", 3))]


def test_graph_holds_no_path_and_no_trace_of_the_exporter(tiny_exported: Callable[..., Artifact]) -> None:
    path = tiny_exported().file()
    model = onnx.load(path)
    assert find_paths(model) == []
    content = path.read_bytes()
    for trace in (sys.prefix, str(Path.home()), str(Path.cwd()), "site-packages", "stack_trace", "pkg.torch"):
        assert trace.encode() not in content
    assert model.producer_name == "mcompress"
    assert model.producer_version == ""
    assert not {tensor.name for tensor in model.graph.initializer} & {info.name for info in model.graph.value_info}
    sizes = {d.dim_param for v in model.graph.value_info for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert sizes <= {"batch", "sequence"}


def test_nodes_are_named_after_their_modules(tiny_exported: Callable[..., Artifact]) -> None:
    names = [node.name for node in onnx.load(tiny_exported().file()).graph.node]
    assert "bert.encoder.layer.1.attention.self.query/MatMul" in names
    assert len(set(names)) == len(names)


def test_export_is_silent_leaves_the_model_alone_and_records_metadata(
    tiny_classifier: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_torch(tiny_classifier("distilbert"), TASK).train()
    attention = model.config._attn_implementation
    out = tmp_path / "model.onnx"
    notes = export_onnx(model, out, opset=18, metadata={"task": "text-classification"})
    assert capfd.readouterr().out == ""
    assert model.training
    assert model.config._attn_implementation == attention
    assert notes["opset"] == {"ai.onnx": 18}
    assert [(entry.key, entry.value) for entry in onnx.load(out).metadata_props] == [("task", "text-classification")]


def test_a_model_that_the_exporter_cannot_trace_gives_a_run_error(
    tiny_classifier: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_torch(tiny_classifier(), TASK)
    monkeypatch.setattr(model.bert, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match="could not be exported"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_golden_outputs_equal_those_of_torch(
    tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact]
) -> None:
    ours, theirs = golden_onnx(tiny_exported().path, TASK), golden_torch(tiny_classifier(), TASK)
    assert ours.inputs == theirs.inputs
    np.testing.assert_allclose(ours.outputs["logits"], theirs.outputs["logits"], atol=2e-5)


def test_find_paths_sees_metadata_names_and_attributes() -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"], name="bert/Identity", doc_string='File "/home/ann/m.py"')
    node.metadata_props.add(key="trace", value="at C:\\Users\\ann\\model.py")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [result], doc_string="/tmp/a/b"))
    assert find_paths(model) == ["/home/ann/m.py", "/tmp/a/b", "C:\\Users"]
    assert find_paths(clean(model)) == []
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_model_beyond_two_gibibytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.export.onnx_clean._PROTOBUF_LIMIT", 10)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    with pytest.raises(ModelError, match="does not fit"):
        write_onnx(model, tmp_path / "model.onnx")
