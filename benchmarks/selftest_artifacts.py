"""What the self-test measures: a real model with its layers repeated, and graphs that hold a known memory."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.models.loading import load_torch
from compress.search.deploy import Precision, deploy
from compress.tasks.base import Task

MADE_BY = PassRecord(name="selftest", version=1, config={})


def stacked(model: Path, task: Task, precision: Precision, layers: int, folder: Path) -> Artifact:
    """Deploy a model whose encoder is its own layers over and over, ``layers`` of them.

    Every layer does the same work, so ``n + 1`` layers take ``(n + 1) / n`` of the time of ``n``, less what the
    embeddings and the classifier take in both.
    """
    dense = load_torch(model, task)
    own = dense.base_model.encoder.layer
    dense.base_model.encoder.layer = torch.nn.ModuleList(copy.deepcopy(own[i % len(own)]) for i in range(layers))
    dense.config.num_hidden_layers = layers
    return deploy(dense, model, task, precision, folder)


def holding(megabytes: int, folder: Path) -> Artifact:
    """Return a graph with a table of so many MB of 1,000,000 bytes that must be in memory to answer."""
    folder.mkdir(parents=True)
    rows = max(1, megabytes * 1_000_000 // (4 * 1000))
    table = np.random.default_rng(megabytes).random((rows, 1000), dtype=np.float32)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Mod", ["input_ids", "rows"], ["within"]),
        helper.make_node("Gather", ["table", "within"], ["found"]),
        helper.make_node("ReduceMean", ["found", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["logits"], axis=1),
    ]
    arrays = {"table": table, "rows": np.array(rows), "axes": np.array([1, 2]), "last": np.array([1])}
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "holding", [ids], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    specs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),
    ]
    task = {"name": "text-classification", "labels": ["0", "1"], "max_length": 16}
    graphs = {"model": Graph(file="model.onnx", inputs=(specs[0],), outputs=(specs[1],))}
    return create_artifact(folder, kind="onnx", task=task, graphs=graphs, made_by=MADE_BY)
