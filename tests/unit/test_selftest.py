"""The parts of the real-clock benchmarks that need no clock: what they plant, what they hold, how they judge."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.artifact import open_artifact

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("selftest_artifacts", "selftest", "independent_tools")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts, which import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield [importlib.import_module(name) for name in NAMES]
    for name in NAMES:
        sys.modules.pop(name)


def outputs(scripts, artifact, feeds):
    session = scripts[0]._session(artifact)
    return [session.run(None, feed)[0] for feed in feeds]


def test_planted_work_changes_no_prediction_and_is_not_optimized_away(scripts, tiny_exported, tmp_path):
    import onnxruntime

    plain = tiny_exported("bert")
    planted = scripts[0].plant(plain, tmp_path / "planted", 64)
    rng = np.random.default_rng(0)
    names = [it.name for it in open_artifact(planted.path).manifest.graphs["model"].inputs]
    feeds = [{name: rng.integers(0, 2, (1, 7)) for name in names} for _ in range(3)]
    for before, after in zip(outputs(scripts, plain, feeds), outputs(scripts, planted, feeds), strict=True):
        np.testing.assert_array_equal(before, after)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(planted.file()), options, providers=["CPUExecutionProvider"])
    assert b"planted_product" in (tmp_path / "optimized.onnx").read_bytes()


def test_a_graph_that_holds_memory_holds_what_was_asked(scripts, tmp_path):
    artifact = scripts[0].holding(3, tmp_path / "held")
    assert artifact.file().stat().st_size == pytest.approx(3_000_000, rel=0.001)
    (found,) = outputs(scripts, artifact, [{"input_ids": np.array([[1, 2, 900_000]])}])
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
            "columns": 280,
            "plain_loop": {"slower": 0.031, "low": 0.029, "high": 0.033},
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
    assert "| 1 | 1.031 [1.020, 1.042] | slower |" in page
    assert "## Known memory, within 5 %: does not hold" in page
