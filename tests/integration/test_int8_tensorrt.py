"""INT8 for TensorRT through ``quantize``: chosen without a GPU, on record with reasons, taken by the builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from compress.artifact import Artifact
from compress.data.splits import TaskData
from compress.errors import RecipeError
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.passes.base import ModelInfo
from compress.passes.qat import Qat, QatConfig
from compress.passes.quantize import Quantize, QuantizeConfig, searches
from compress.quantization.rules import rules_for
from compress.runtimes.target import find_target
from compress.search.deploy import deploy
from compress.search.int8_candidates import Limits
from compress.search.untimed import UntimedSearch
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
GATE = 15.0
"""Points that may be lost: a random model decides by small margins, and loses some of them to any rounding."""


@pytest.fixture(scope="module")
def exported(planted: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from compress.models.loading import load_torch

    return deploy(load_torch(planted.path, TASK), planted.path, TASK, "fp32", tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def search(exported: Artifact, labelled: TaskData, tmp_path: Path) -> Callable[..., UntimedSearch]:
    def build(rest: Any = "float16", **limits: Any) -> UntimedSearch:
        return UntimedSearch(
            source=exported,
            model=onnx.load(exported.file()),
            task=TASK,
            calibration=TASK.encode(exported.path, labelled["calibration"].rows),
            validation=TASK.encode(exported.path, labelled["validation"].rows),
            target=find_target("tensorrt"),
            rules=rules_for("tensorrt"),
            limits=Limits(max_drop_points=GATE, observers=("minmax",), **limits),
            work=tmp_path,
            rest=rest,
        )

    return build


def test_a_broken_limit_is_restored_node_by_node_and_the_delivered_form_is_scored(
    search: Callable[..., UntimedSearch],
) -> None:
    it = search(smoothings=())
    chosen = it.run()
    notes = it.notes(chosen)
    assert notes["not_timed"].startswith("not timed: ")
    assert notes["forms"] == []
    assert all(row["speedup"] is None and row["drop"] for row in notes["candidates"])
    assert notes["kept"] is True
    assert it.trail()[0]["holds"] is False
    assert chosen.restored
    assert any("attention.output.dense" in node for node in chosen.restored), "that is where outliers were planted"
    assert chosen.form.rest == "float16"
    twin = next(c for c in it.candidates if c.restored == chosen.restored and c.form.rest == "float32")
    assert chosen.size_bytes < twin.size_bytes
    assert chosen.integer_share == twin.integer_share
    assert chosen.integer_share is not None
    assert 0.3 < chosen.integer_share < 1.0
    assert it.trail()[-1]["action"] == "FP16 for what is not in 8 bits"
    assert {p.reason for p in it.placements(chosen) if p.node in chosen.restored} == set(chosen.restored.values())


def test_a_run_says_that_nothing_was_timed(
    planted: Artifact, labelled_run: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    steps = [
        {"export": {}, "id": "onnx"},
        {"quantize": {"target": "tensorrt", "max_drop_points": GATE}, "id": "eight"},
    ]
    record, text = labelled_run(planted, steps)
    (found,) = record["int8"]
    assert found["target"] == "tensorrt"
    assert found["isa"] == "cuda"
    assert found["saturation"] is None
    assert found["not_timed"] == "not timed: no GPU"
    assert "Speed: not timed: no GPU." in text
    reasons = " ".join(row["reason"] for row in found["reasons"])
    for words in ("GEMV", "embedding table", "not 8", "normalization", "softmax"):
        assert words in reasons
    done = {step["id"]: step for step in record["steps"]}
    assert {"int8", "fp16"} <= set(done["eight"]["traits"])


@pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
def test_what_is_delivered_builds(search: Callable[..., UntimedSearch], tmp_path: Path) -> None:
    it = search(smoothings=())
    onnx.save(it.write(it.run()), tmp_path / "model.onnx")
    names = [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input]
    profile = profile_from_lengths(names, [5, 12, 20], 32, max_batch=4)
    assert build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", profile)["precision"] == "int8"


def test_the_plan_and_the_key_know_the_precision_of_the_rest() -> None:
    info = ModelInfo("onnx", frozenset())
    config = QuantizeConfig(target="tensorrt")
    plan = Quantize().plan({"model": info}, config)
    assert plan.result.traits == {"int8", "fp16"}
    assert "not timed; 8-bit weights, FP16 for the rest" in plan.summary
    assert "machine" not in Quantize().settle(config)
    assert Quantize().settle(config)["rest"] == "float16"
    other = QuantizeConfig(target="tensorrt", rest="float32")
    assert Quantize().plan({"model": info}, other).result.traits == {"int8"}
    with pytest.raises(RecipeError, match="TensorRT only"):
        searches(QuantizeConfig(target="ort-cpu-1t", rest="float16"))


def test_training_under_int8_is_refused_for_a_gpu() -> None:
    info = ModelInfo("torch", frozenset())
    with pytest.raises(RecipeError, match="for CPU targets"):
        Qat().plan({"model": info, "teacher": info}, QatConfig(teacher="model", target="tensorrt"))
