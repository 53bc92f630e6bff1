"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.data.encoded import Encoded

VOCABULARY = 50


@pytest.fixture
def tiny_encoded() -> Encoded:
    """24 examples of 3 to 9 tokens with all-ones masks and targets 0 or 1."""
    rng = np.random.default_rng(7)
    ids = [rng.integers(1, VOCABULARY, size) for size in rng.integers(3, 10, 24)]
    masks = [np.ones(len(row), dtype=np.int64) for row in ids]
    targets = rng.integers(0, 2, 24)
    return Encoded({"input_ids": ids, "attention_mask": masks}, {"input_ids": 0, "attention_mask": 0}, targets)


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``build(name, seed=0, labels=2, hidden=8)``: an ONNX artifact with ONNX Runtime's own operators.

    logits = mean over the unmasked tokens of embedding[input_ids], times weight, plus bias.
    """

    def build(name: str = "tiny", *, seed: int = 0, labels: int = 2, hidden: int = 8) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(_tiny_graph(seed, labels, hidden))
        ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
        mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"))
        logits = TensorSpec(name="logits", dtype="float32", shape=("batch", labels))
        return create_artifact(
            folder,
            kind="onnx",
            task={"name": "text-classification", "labels": [str(i) for i in range(labels)], "max_length": 16},
            graphs={"model": Graph(file="model.onnx", inputs=(ids, mask), outputs=(logits,))},
            parameters=VOCABULARY * hidden + hidden * labels + labels,
            made_by=PassRecord(name="test", version=1, config={}),
        )

    return build


def _tiny_graph(seed: int, labels: int, hidden: int) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(seed)
    constants = {
        "embedding": rng.normal(size=(VOCABULARY, hidden)).astype(np.float32),
        "weight": rng.normal(size=(hidden, labels)).astype(np.float32),
        "bias": rng.normal(size=labels).astype(np.float32),
        "last_axis": np.array([2], dtype=np.int64),
        "sequence_axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask_3d"]),
        helper.make_node("Mul", ["embedded", "mask_3d"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "sequence_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "sequence_axis"], ["tokens"], keepdims=1),
        helper.make_node("Div", ["total", "tokens"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "weight", "bias"], ["logits"]),
    ]
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()
