"""The parts of the real-clock benchmarks that need no clock: what they plant, what they hold, how they judge."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.models.loading import load_torch
from compress.tasks.text_classification import TextClassification

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("selftest_artifacts", "selftest", "independent_tools")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts, which import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield [importlib.import_module(name) for name in NAMES]
    for name in NAMES:
        sys.modules.pop(name)


def session(artifact):
    import onnxruntime

    return onnxruntime.InferenceSession(str(artifact.file()), providers=["CPUExecutionProvider"])


def test_a_stack_repeats_the_layers_of_the_model(scripts, tiny_classifier, tmp_path):
    """A stack as deep as the model is the model; one layer more has one layer's products more."""
    model = tiny_classifier("bert")
    task = TextClassification(("bad", "fine", "good"), max_length=32)
    depth = load_torch(model, task).config.num_hidden_layers
    stacks = [scripts[0].stacked(model, task, "fp32", depth + more, tmp_path / str(more)) for more in range(3)]
    products = [sum(node.op_type == "MatMul" for node in onnx.load(it.file()).graph.node) for it in stacks]
    assert products[2] - products[1] == products[1] - products[0] > 0
    feeds = task.encode(model, [{"text": "a fine film"}]).batch([0])
    names = [it.name for it in session(stacks[0]).get_inputs()]
    (found,) = session(stacks[0]).run(None, {name: feeds[name] for name in names})
    with torch.inference_mode():
        wanted = load_torch(model, task)(**{name: torch.from_numpy(feeds[name]) for name in names}).logits
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_graph_that_holds_memory_holds_what_was_asked(scripts, tmp_path):
    artifact = scripts[0].holding(3, tmp_path / "held")
    assert artifact.file().stat().st_size == pytest.approx(3_000_000, rel=0.001)
    (found,) = session(artifact).run(None, {"input_ids": np.array([[1, 2, 900_000]])})
    assert found.shape == (1, 2)


def test_tools_are_judged_by_the_mean_of_their_log_ratios(scripts):
    tools = scripts[2]
    close = tools.judged("a", "ms", [(10.0, 10.4), (10.0, 10.2), (10.0, 10.3)])
    assert (close["agrees"], close["ratio"]) == (True, pytest.approx((1.04 * 1.02 * 1.03) ** (1 / 3)))
    assert close["low"] < close["ratio"] < close["high"]
    assert not tools.judged("b", "ms", [(10.0, 11.0)])["agrees"]
    assert tools.resident("\tMaximum resident set size (kbytes): 2000\n") == pytest.approx(2.048)
    record = {"model": "m", "precision": "fp32", "tokens": 9, "runs": 5, "created": "2026-01-01", "rows": [close]}
    page = tools.markdown(record | {"environment": {"cpu": {"model": "C"}}})
    assert "| a | ms | 10.000 | 10.300 | 1.030 [1.005, 1.055] | yes |" in page


def test_the_selftest_says_what_holds(scripts):
    selftest = scripts[1]
    ratio = {"value": 1.0, "low": 0.99, "high": 1.01, "verdict": "no difference"}
    slow = {"value": 0.97, "low": 0.96, "high": 0.98, "verdict": "slower"}
    record = {
        "setting": {"model": "m", "precision": "int8", "target": "t", "inputs": 5, "rounds": 7, "launches": 3},
        "equal": {
            "pairs": [ratio] * 20,
            "same": 20,
            "rate": {"value": 1.0, "low": 0.84, "high": 1.0},
            "stated": 0.95,
            "allowed_different": 3,
            "half_width": 0.01,
            "holds": True,
        },
        "planted": {
            "layers": 33,
            "slower": 1 / 33,
            "launches": 5,
            "measurements": [slow],
            "holds": True,
        },
        "memory": {"rows": [{"asked_mb": 16, "figure": "load", "read_mb": 17.6, "error": 0.1}], "holds": False},
        "environment": {"cpu": {"model": "C"}},
        "created": "2026-01-01",
        "minutes": 19.0,
    }
    page = selftest.markdown(record)
    assert "20 of 20 pairs" in page
    assert "## A slow-down of 3.0 %: holds" in page
    assert "33 of them and 34" in page
    assert "| 1 | 1.031 [1.020, 1.042] | slower |" in page
    assert "## Known memory, within 5 %: does not hold" in page
