from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.errors import ModelError
from compress.export.golden import golden_onnx
from compress.export.onnx_clean import write_onnx
from compress.export.onnx_source import files_read, take_in_onnx
from compress.export.signature import read_graph, traits_of
from compress.pipeline.source import _hash_source
from compress.quantization.fp16 import cast_fp16
from compress.quantization.int8 import quantize_dynamic
from compress.tasks.base import task_from
from compress.tasks.text_classification import TextClassification


@pytest.fixture
def source(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> Path:
    """The ONNX file of a folder that a test may change."""
    shutil.copytree(tiny_exported().path, tmp_path / "source")
    return tmp_path / "source" / "model.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_our_own_export_comes_back_with_labels_and_equal_outputs(
    source: Path, out: Path, tiny_exported: Callable[..., Artifact]
) -> None:
    names = {"LABEL_0": "bad", "LABEL_1": "fine", "LABEL_2": "good"}
    options = take_in_onnx(source, out, "text-classification", names, 32)
    assert options == {
        "name": "text-classification", "labels": ["bad", "fine", "good"], "problem": "single_label", "max_length": 32,
    }  # fmt: skip
    assert read_graph(out / "model.onnx") == read_graph(source)
    task = task_from(options)
    assert golden_onnx(out, task) == golden_onnx(
        tiny_exported().path, TextClassification(("bad", "fine", "good"), max_length=32)
    )
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "bad", "1": "fine", "2": "good"}


def test_tokenizer_and_config_may_lie_one_folder_up(source: Path, out: Path) -> None:
    inner = source.parent / "onnx"
    inner.mkdir()
    shutil.move(source, inner / "model.onnx")
    assert take_in_onnx(inner / "model.onnx", out, "text-classification")["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_every_file_that_is_read_is_part_of_the_key(source: Path) -> None:
    """The parent's config.json and tokenizer, and weights in a folder; not what merely lies beside the model."""
    inner = source.parent / "onnx"
    (inner / "parts").mkdir(parents=True)
    model = onnx.load(source)
    source.unlink()
    moved = inner / "model.onnx"
    onnx.save(model, moved, save_as_external_data=True, location="parts/weights.bin", size_threshold=0)
    first = _hash_source(moved)
    assert set(first) == {
        "model.onnx", "parts/weights.bin", "../config.json", "../tokenizer.json", "../tokenizer_config.json",
    }  # fmt: skip
    assert len(first) == len(files_read(moved))
    (inner / "notes.txt").write_text("not read")
    (source.parent / "artifact.json").write_text("{}")
    assert _hash_source(moved) == first
    for name in ("../config.json", "parts/weights.bin", "../tokenizer_config.json"):
        file = inner / name
        file.write_bytes(file.read_bytes() + b" ")
        after = _hash_source(moved)
        assert {key for key in first if after[key] != first[key]} == {name}
        first = after


def test_without_config_the_width_gives_the_labels(source: Path, out: Path) -> None:
    (source.parent / "config.json").unlink()
    options = take_in_onnx(source, out, "text-classification", {"LABEL_1": "fine"})
    assert options["labels"] == ["LABEL_0", "fine", "LABEL_2"]
    batch = task_from(options).encode(out, [{"text": "the film was good"}])
    assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}


def test_external_weights_beside_the_file_are_taken_inside(source: Path, out: Path) -> None:
    model = onnx.load(source)
    source.unlink()
    onnx.save(model, source, save_as_external_data=True, location="weights.data", size_threshold=0)
    take_in_onnx(source, out, "text-classification")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert not any(
        tensor.external_data for tensor in onnx.load(out / "model.onnx", load_external_data=False).graph.initializer
    )


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname"])
def test_external_weights_elsewhere_are_refused(location: str, source: Path, out: Path) -> None:
    (source.parent.parent / "secret.data").write_bytes(bytes(4096))

    def escape(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    edit(source, escape)
    with pytest.raises(ModelError, match="outside its folder"):
        take_in_onnx(source, out, "text-classification")


def rename_output(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[0] = model.graph.output[0].name = "scores"


def rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    next(value for value in model.graph.input if value.name == "input_ids").name = "tokens"


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("org.openvinotoolkit", 1))
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[0] = "before"
    fake = helper.make_node("FakeQuantize", ["before"], ["logits"], domain="org.openvinotoolkit")
    model.graph.node.append(fake)


def fix_batch(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("change", "what", "value"),
    [
        (rename_output, "output named 'logits'", "scores"),
        (rename_input, "not those of a text encoder", "tokens"),
        (foreign_domain, "only its author's runtime", "org.openvinotoolkit::FakeQuantize"),
        (fix_batch, "two dynamic axes", "input_ids"),
        (lambda model: setattr(model.opset_import[0], "version", 12), "operator set is older", "12"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_in_is_named(
    change: Callable[[onnx.ModelProto], object], what: str, value: str, source: Path, out: Path
) -> None:
    edit(source, change)
    with pytest.raises(ModelError, match=what) as caught:
        take_in_onnx(source, out, "text-classification")
    assert value in caught.value.value
    assert caught.value.fix
    assert not list(out.iterdir())


def test_missing_and_broken_files_are_named(source: Path, out: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        take_in_onnx(source.with_name("none.onnx"), out, "text-classification")
    (source.parent / "tokenizer.json").rename(source.parent / "other.json")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        take_in_onnx(source, out, "text-classification")
    source.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        take_in_onnx(source, out, "text-classification")


def test_config_of_another_model_is_refused(source: Path, out: Path) -> None:
    config = json.loads((source.parent / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (source.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="disagree about the number of labels"):
        take_in_onnx(source, out, "text-classification")


def test_old_files_that_list_weights_as_inputs_are_accepted(source: Path, out: Path) -> None:
    def list_weight(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))

    edit(source, list_weight)
    take_in_onnx(source, out, "text-classification")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out / "model.onnx").graph.initializer}
    assert all(np.isfinite(array).all() for array in weights.values() if array.dtype == np.float32)


def test_length_is_cut_to_the_position_table(source: Path, out: Path) -> None:
    config = json.loads((source.parent / "config.json").read_text())
    for kind, positions in (("bert", 64), ("roberta", 62), ("unheard-of", 64)):
        (source.parent / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        assert take_in_onnx(source, out, "text-classification", max_length=512)["max_length"] == positions


def test_regression_has_no_labels(source: Path, out: Path) -> None:
    config = json.loads((source.parent / "config.json").read_text())
    (source.parent / "config.json").write_text(json.dumps(config | {"id2label": {"0": "LABEL_0"}}))

    def narrow(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "labels"

    edit(source, narrow)
    options = take_in_onnx(source, out, "text-classification")
    assert (options["problem"], options["labels"]) == ("regression", [])


def test_traits_show_what_was_done_to_the_precision(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    model = onnx.load(tiny_exported().file())
    made = {"fp32": model, "fp16": cast_fp16(model)[0], "int8": quantize_dynamic(model)[0]}
    for name, variant in made.items():
        write_onnx(variant, tmp_path / f"{name}.onnx")
    assert [traits_of(onnx.load(tmp_path / f"{name}.onnx")) for name in made] == [(), ("fp16",), ("int8",)]
