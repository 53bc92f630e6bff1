"""qat on a tiny BERT that labels its own data, with and without planted outliers: against plain calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compress.artifact import Artifact
from compress.data.splits import TaskData
from compress.distillation.internals import predict
from compress.errors import DataError, ParityError, RecipeError, UsageError
from compress.export.golden import open_session
from compress.export.onnx_clean import write_onnx
from compress.export.onnx_export import export_onnx
from compress.models.loading import load_torch
from compress.passes.base import Context, ModelInfo
from compress.passes.qat import Qat, QatConfig
from compress.quantization.calibration import calibrate
from compress.quantization.rules import place, rules_for
from compress.quantization.writing import Int8Format, write_int8
from compress.search.aware import compare_logits
from compress.store import Store
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
CONFIG = {"epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "reduce_range": True}
CONFIG |= {"exclude": ["*layer.1.output.dense*"]}
"""A random model has small margins and moves far: it wants a higher rate than a fine-tuned one. 7-bit weights
multiply alike on every machine."""


def run(
    root: Path, labelled: TaskData, inputs: dict[str, Artifact], config: dict[str, Any], checkpoint: Path, **more: Any
) -> Artifact:
    folders = {"out": root / "out", "scratch": root / "scratch", "checkpoint": checkpoint}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    context = Context(**folders, task=TASK, data=labelled, store=Store(root / "store"), **more)
    return Qat().apply(inputs, QatConfig.model_validate(config), context)


@pytest.fixture(scope="module")
def trained(
    planted: Artifact, labeller: Artifact, labelled: TaskData, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    root = tmp_path_factory.mktemp("qat")
    return run(root, labelled, {"model": planted, "teacher": labeller}, CONFIG, root / "checkpoint")


def logits(file: Path, folder: Path, labelled: TaskData) -> np.ndarray:
    encoded = TASK.encode(folder, labelled["validation"].rows)
    session = open_session(file)
    names = {value.name for value in session.get_inputs()}
    feed = {name: rows for name, rows in encoded.batch(range(len(encoded))).items() if name in names}
    return np.asarray(session.run(["logits"], feed)[0])


def accuracy(outputs: np.ndarray, labelled: TaskData) -> float:
    right = [TASK.labels.index(row["label"]) for row in labelled["validation"].rows]
    return float(np.mean(outputs.argmax(axis=1) == right))


def test_planted_outliers_change_nothing_in_float(planted: Artifact, labeller: Artifact, labelled: TaskData) -> None:
    first, second = (
        predict(load_torch(it.path, TASK), TASK.encode(it.path, labelled["validation"].rows))
        for it in (labeller, planted)
    )
    np.testing.assert_array_equal(first, second)
    assert accuracy(first, labelled) == 1.0


def test_training_restores_what_calibration_loses_to_outliers(
    planted: Artifact, trained: Artifact, labelled: TaskData, tmp_path: Path
) -> None:
    file = tmp_path / "float.onnx"
    export_onnx(load_torch(planted.path, TASK), file)
    exported = onnx.load(file)
    excluded = dict.fromkeys((n.name for n in exported.graph.node if "layer.1.output.dense" in n.name), "asked for")
    placements = place(exported, rules_for("onnxruntime"), excluded=excluded)
    tensors = [it.product.input for it in placements if it.product and it.product.input and it.precision == "int8"]
    seen = calibrate(exported, TASK.encode(planted.path, labelled["calibration"].rows), tensors)
    write_onnx(write_int8(exported, placements, seen.ranges("mse"), Int8Format(weight_bits=7)), file)
    before = accuracy(logits(file, planted.path, labelled), labelled)
    after = accuracy(logits(trained.file(), trained.path, labelled), labelled)
    assert trained.manifest.notes["validation_before"] == pytest.approx(before, abs=0.02)
    assert trained.manifest.notes["validation"] == pytest.approx(after, abs=0.02)
    assert before < 0.7
    assert after > before + 0.15


def test_the_graph_has_integers_where_the_rules_put_them(trained: Artifact) -> None:
    model = onnx.load(trained.file())
    onnx.checker.check_model(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    floats = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and made_by[node.input[0]].op_type != "DequantizeLinear"
    ]
    kept = {"bert.encoder.layer.1.output.dense/MatMul", "classifier/Gemm"}
    assert kept <= set(floats)
    assert len(floats) == len(kept) + 4, "besides, two attention products in each of two layers"
    cut = [node.name for node in model.graph.node if node.op_type == "Slice" and "first_token" in node.name]
    assert trained.manifest.notes["first_token"] is bool(cut) is True
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {shapes[name] for node in inputs for name in node.input[1:]} == {()}


def test_the_record_says_what_was_learned_and_how_close_the_graph_is(trained: Artifact) -> None:
    notes = trained.manifest.notes
    assert trained.traits == {"int8"}
    assert (notes["method"], notes["weight_bits"], notes["calibration_used"]) == ("aware", 7, 64)
    assert notes["nodes_quantized"] == {"Gather": 3, "Gemm": 1, "MatMul": 11}
    assert notes["nodes_left"] == {"Gemm": 1, "MatMul": 1}
    assert notes["range_growth"]["least"] < 0.5, "a range that holds an outlier shrinks"
    compared = notes["compared_with_training"]
    assert compared["agreement"] >= 0.99
    assert compared["median"] < 1e-5
    assert compared["mean"] < 0.01


def test_a_killed_training_is_resumed_with_its_ranges(
    planted: Artifact, labeller: Artifact, trained: Artifact, labelled: TaskData, tmp_path: Path
) -> None:
    def kill(message: str, done: int | None = None, total: int | None = None) -> None:
        if message.startswith("epoch 3"):
            raise KeyboardInterrupt

    inputs = {"model": planted, "teacher": labeller}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", labelled, inputs, CONFIG, tmp_path / "checkpoint", emit=kill)
    messages: list[str] = []
    again = run(
        tmp_path / "again",
        labelled,
        inputs,
        CONFIG,
        tmp_path / "checkpoint",
        emit=lambda text, *_: messages.append(text),
    )
    assert [text[:7] for text in messages if text.startswith("epoch")] == ["epoch 3", "epoch 4", "epoch 5"]
    assert again.digest == trained.digest
    assert again.manifest.notes == trained.manifest.notes


def test_graphs_that_compute_something_else_are_refused() -> None:
    fake = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    assert compare_logits(TASK, fake, fake + np.float32(1e-6))["agreement"] == 1.0
    one = fake.copy()
    one[0, fake[0].argmax()] += 0.5
    assert compare_logits(TASK, fake, one)["largest"] == pytest.approx(0.5 / fake.std(), rel=0.01)
    for wrong, words in ((fake * 1.2, "mean difference"), (np.roll(fake, 1, axis=0), "same decision")):
        with pytest.raises(ParityError) as caught:
            compare_logits(TASK, fake, wrong)
        assert words in caught.value.value
        assert caught.value.fix
    with pytest.raises(ParityError):
        compare_logits(TASK, fake, fake * np.nan)


def test_what_cannot_be_trained_is_refused(labeller: Artifact, labelled: TaskData, tmp_path: Path) -> None:
    inputs = {"model": labeller, "teacher": labeller}
    with pytest.raises(UsageError, match="nothing to train for"):
        run(tmp_path / "none", labelled, inputs, {"exclude": ["*MatMul", "*Gemm"]}, tmp_path)
    with pytest.raises(RecipeError, match="names no node"):
        run(tmp_path / "unknown", labelled, inputs, {"exclude": ["nobody"]}, tmp_path)
    bare = TaskData({name: labelled[name] for name in ("train", "validation")}, TASK.labels)
    with pytest.raises(DataError, match="calibration"):
        run(tmp_path / "bare", bare, inputs, {}, tmp_path)
    infos = {"model": ModelInfo("torch"), "teacher": ModelInfo("onnx")}
    with pytest.raises(RecipeError, match="must be a torch model"):
        Qat().plan(infos, QatConfig(teacher="export"))
