"""A graph cut from a template equals a direct export of the pruned model, operator by operator and bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compress.errors import ModelError
from compress.export.onnx_export import export_onnx
from compress.models.families import Dimensions, dimensions, encoder_layers
from compress.models.structure import keep_units
from compress.pruning.ladder import Widths
from compress.search.deploy import Precision, at_precision
from compress.search.probe import VOCABULARY, build_probe, probe_config
from compress.search.template import locate, resize

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"architectures": ["BertForSequenceClassification"], **SIZES},
    "electra": {"architectures": ["ElectraForSequenceClassification"], "embedding_size": 16, **SIZES},
    "distilbert": {"architectures": ["DistilBertForSequenceClassification"], **DISTIL},
}
WIDTHS = Widths((2, 0), (0, 40))
"""Unequal, with a removed sub-layer of each kind."""


def config_of(family: str) -> dict[str, Any]:
    return {"model_type": family, "vocab_size": 99_999, "max_position_embeddings": 64, **CONFIGS[family]}


def export(config: Mapping[str, Any], folder: Path, widths: Widths | None = None) -> tuple[onnx.ModelProto, Any]:
    torch.set_num_threads(1)
    model = build_probe(config)
    if widths is not None:
        for layer, heads, neurons in zip(encoder_layers(model), widths.heads, widths.neurons, strict=True):
            keep_units(layer, range(heads), range(neurons))
    export_onnx(model, folder / "model.onnx")
    return onnx.load(folder / "model.onnx"), model


def logits(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.arange(5, 17).reshape(2, 6)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found: np.ndarray = session.run(["logits"], {i.name: feed[i.name] for i in session.get_inputs()})[0]
    return found


def shapes(model: onnx.ModelProto) -> list[tuple[int, tuple[int, ...]]]:
    return sorted((tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer)


@pytest.fixture(scope="module", params=["bert", "distilbert", pytest.param("electra", marks=pytest.mark.slow)])
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    config = config_of(request.param)
    config = probe_config(dimensions(config), config)
    dense, model = export(config, tmp_path_factory.mktemp("dense"))
    direct, _ = export(config, tmp_path_factory.mktemp("direct"), WIDTHS)
    return dense, locate(dense.graph, model), direct


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_resized_graph_equals_a_direct_export(exports: tuple[Any, ...], precision: Precision) -> None:
    dense, layers, direct = exports
    direct = at_precision(direct, precision)[0]
    resized = resize(at_precision(dense, precision)[0], layers, WIDTHS)
    onnx.checker.check_model(resized, full_check=True)
    assert [node.op_type for node in resized.graph.node] == [node.op_type for node in direct.graph.node]
    assert shapes(resized) == shapes(direct)
    # in int8 the removed rows still have a say in the scale of a column
    assert np.abs(logits(resized) - logits(direct)).max() < (2e-3 if precision == "int8" else 1e-6)


def test_fewer_layers_equal_a_shallower_model(exports: tuple[Any, ...]) -> None:
    dense, layers, _ = exports
    kinds = [node.op_type for node in resize(dense, layers, Widths((4,), (64,))).graph.node]
    none = resize(dense, layers, Widths((), ()))
    assert kinds.count("Softmax") == 1
    assert kinds.count("Gelu") == 1 + [node.op_type for node in none.graph.node].count("Gelu")
    assert "Softmax" not in [node.op_type for node in none.graph.node]
    assert np.isfinite(logits(none)).all()


def test_the_template_itself_is_left_alone(exports: tuple[Any, ...]) -> None:
    dense, layers, _ = exports
    before = dense.SerializeToString(deterministic=True)
    resize(dense, layers, WIDTHS)
    assert dense.SerializeToString(deterministic=True) == before
    full = resize(dense, layers, Widths((4, 4), (64, 64)))
    assert np.abs(logits(full) - logits(dense)).max() < 1e-6


def test_a_graph_of_another_shape_is_refused(exports: tuple[Any, ...], tmp_path: Path) -> None:
    dense, _, _ = exports
    renamed = onnx.ModelProto()
    renamed.CopyFrom(dense)
    for node in renamed.graph.node:
        node.name = "x"
    config = config_of("bert")
    with pytest.raises(ModelError, match="not built as a latency table needs it"):
        locate(renamed.graph, build_probe(probe_config(dimensions(config), config)))


def test_probe_keeps_what_decides_the_latency_and_no_more() -> None:
    config = config_of("bert") | {"id2label": {"0": "a", "1": "b", "2": "c"}, "_name_or_path": "somewhere"}
    probe = probe_config(dimensions(config), config)
    assert (probe["vocab_size"], probe["num_labels"], probe["num_hidden_layers"]) == (VOCABULARY, 3, 2)
    assert not {"id2label", "_name_or_path"} & set(probe)
    assert build_probe(probe).num_labels == 3


def test_probe_of_a_large_model_has_fewer_layers() -> None:
    config = {"model_type": "bert", "id2label": {"0": "a", "1": "b"}}
    assert probe_config(Dimensions(12, 768, 12, 3072, 512), config)["num_hidden_layers"] == 5
    assert probe_config(Dimensions(12, 384, 12, 1536, 512), config)["num_hidden_layers"] == 6


def test_a_class_that_transformers_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match="names no model class"):
        build_probe({"model_type": "bert", "architectures": ["Foo"]})
