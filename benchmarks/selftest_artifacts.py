"""What the self-test measures: a real model, the same with known work added, and graphs that hold a known memory."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.bench.timing_statistics import order_ranks
from compress.data.encoded import Encoded

MADE_BY = PassRecord(name="selftest", version=1, config={})
MANY, ATTEMPTS = 2048, 3
"""Columns of the first attempt to slow a model down, and how many attempts come before the last one."""
TINY = 1e-30
"""What the added branch is multiplied by before it joins the output: no float32 logit changes."""


class Planted(NamedTuple):
    """A model with work added, and how much that slows it down by a plain loop, with a 95 % interval."""

    artifact: Artifact
    columns: int
    slower: float
    low: float
    high: float


def plant(artifact: Artifact, folder: Path, columns: int) -> Artifact:
    """Return the artifact with a matrix product of (tokens, hidden) by (hidden, columns) more.

    It reads the last layer's hidden states and its mean, times ``TINY``, is added to the logits, so that no
    optimizer can drop it and no prediction changes.
    """
    folder.mkdir(parents=True)
    model = onnx.load(artifact.file())
    graph = model.graph
    norm = [node for node in graph.node if "LayerNormalization" in node.op_type][-1]
    sizes = {it.name: list(it.dims) for it in graph.initializer}
    width = next(sizes[name][0] for name in norm.input if len(sizes.get(name, ())) == 1)
    weights = np.random.default_rng(0).normal(size=(width, columns)).astype(np.float32)
    logits = graph.output[0].name
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == logits:
                node.output[i] = "planted_before"
    arrays = {"planted_weight": weights, "planted_tiny": np.array(TINY, np.float32), "planted_axes": np.array([1, 2])}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    graph.node.extend(
        [
            helper.make_node("MatMul", [norm.output[0], "planted_weight"], ["planted_product"]),
            helper.make_node("ReduceMean", ["planted_product", "planted_axes"], ["planted_mean"], keepdims=0),
            helper.make_node("Mul", ["planted_mean", "planted_tiny"], ["planted_scaled"]),
            helper.make_node("Unsqueeze", ["planted_scaled", "planted_last"], ["planted_column"]),
            helper.make_node("Add", ["planted_before", "planted_column"], [logits]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "planted_last"))
    onnx.save(model, folder / "model.onnx")
    return _record(artifact, folder)


def calibrate(artifact: Artifact, encoded: Encoded, work: Path, share: float, rounds: int) -> Planted:
    """Add work until a plain loop is slower by ``share``: the loop is this function's own, not the harness.

    The first attempt adds so much that its cost is plain, the next ones scale it down; the last one is the answer.

    Args:
        rounds: pairs of passes over the inputs for each attempt; the last attempt takes four times as many.
    """
    columns = MANY
    for attempt in range(ATTEMPTS):
        planted = plant(artifact, work / f"planted-{attempt}", columns)
        ratios = _side_by_side(artifact, planted, encoded, rounds)
        scale = share / max(statistics.median(ratios) - 1, share / 2)
        columns = max(8, round(columns * scale / 8) * 8)
    planted = plant(artifact, work / "planted", columns)
    ratios = sorted(_side_by_side(artifact, planted, encoded, 4 * rounds))
    low, high = order_ranks(len(ratios), 50) or (1, len(ratios))
    return Planted(planted, columns, statistics.median(ratios) - 1, ratios[low - 1] - 1, ratios[high - 1] - 1)


def _side_by_side(first: Artifact, second: Artifact, encoded: Encoded, rounds: int) -> list[float]:
    """Return the time of the second over the first for each pair of passes, first and second in turns."""
    sessions = [_session(artifact) for artifact in (first, second)]
    feeds = [encoded.batch([i]) for i in range(len(encoded))]
    ratios = []
    for number in range(rounds + 2):
        took = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            for feed in feeds:
                sessions[side].run(None, feed)
            took[side] = time.perf_counter() - begun
        ratios.append(took[1] / took[0])
    return ratios[2:]


def _session(artifact: Artifact):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(artifact.file()), options, providers=["CPUExecutionProvider"])


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


def _record(artifact: Artifact, folder: Path) -> Artifact:
    """Write the manifest of a changed model; its signature is the original's."""
    fields = {"task": artifact.manifest.task, "graphs": artifact.manifest.graphs, "made_by": MADE_BY}
    return create_artifact(folder, kind="onnx", **fields)
