"""A model built to break plain 8-bit quantization, rescued by exclusion, by SmoothQuant and by training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from compress.artifact import Artifact
from compress.data.splits import TaskData
from compress.quantization.rules import rules_for
from compress.runtimes.target import find_target
from compress.search.deploy import deploy
from compress.search.int8_candidates import Limits, Smoothing
from compress.search.quantizing import Int8Search
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
def search(exported: Artifact, labelled: TaskData, tmp_path: Path) -> Callable[..., Int8Search]:
    def build(**limits: Any) -> Int8Search:
        return Int8Search(
            source=exported,
            model=onnx.load(exported.file()),
            task=TASK,
            calibration=TASK.encode(exported.path, labelled["calibration"].rows),
            validation=TASK.encode(exported.path, labelled["validation"].rows),
            target=find_target("ort-cpu-1t"),
            rules=rules_for("onnxruntime").model_copy(update={"methods": ("static",)}),
            limits=Limits(max_drop_points=GATE, observers=("minmax",), weight_bits=7, **limits),
            work=tmp_path,
        )

    return build


def test_restoring_the_most_sensitive_nodes_rescues_it(search: Callable[..., Int8Search]) -> None:
    it = search(smoothings=())
    chosen = it.run()
    trail = it.trail()
    assert trail[0]["holds"] is False
    assert trail[0]["drop"] > GATE / 100
    assert chosen.loss <= GATE / 100
    assert chosen.speedup is not None
    assert all(reason.startswith("sensitivity ") and reason.endswith(" dB") for reason in chosen.restored.values())
    worst = [row.node for row in it.ranking[: len(chosen.restored)]]
    assert set(worst) == set(chosen.restored)
    assert any("attention.output.dense" in node for node in worst), "that is where the outliers were planted"
    reasons = {p.node: p.reason for p in it.placements(chosen)}
    assert all(reasons[node] == reason for node, reason in chosen.restored.items())
    assert any(step["holds"] and "in float32" in step["action"] for step in trail)


def test_smoothing_rescues_it(search: Callable[..., Int8Search]) -> None:
    it = search(smoothings=(Smoothing("smoothquant", 0.5),))
    chosen = it.run()
    trail = it.trail()
    assert [step["holds"] for step in trail] == [False, True]
    assert "SmoothQuant, alpha 0.5" in trail[1]["action"]
    assert chosen.smoothing == Smoothing("smoothquant", 0.5)
    assert not chosen.restored


@pytest.mark.slow
def test_a_run_tells_the_whole_trail_and_training_rescues_it_too(
    planted: Artifact, labelled_run: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    steps = [
        {"export": {}, "id": "onnx"},
        {"quantize": {"method": "static", "reduce_range": True}, "id": "plain", "optional": True},
        {
            "quantize": {"target": "ort-cpu-1t", "max_drop_points": GATE, "reduce_range": True},
            "id": "searched",
            "from": "onnx",
        },
        {"qat": {"epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "reduce_range": True}, "from": "model"},
    ]
    record, text = labelled_run(planted, steps, gates={"accuracy": {"max_drop_points": GATE}})
    done = {step["id"]: step for step in record["steps"]}
    delivered = {name: done[name]["gates"][0]["delivered"] for name in ("plain", "searched", "qat")}
    assert delivered == {"plain": False, "searched": True, "qat": True}
    (found,) = record["int8"]
    assert found["step"] == "searched"
    assert found["kept"] is True
    assert sum(it["chosen"] for it in found["candidates"]) == 1
    (sensitivity,) = record["sensitivities"]
    assert len(sensitivity["rows"]) == 16, "twelve linear layers, the pooler, three tables"
    assert [step["holds"] for step in found["trail"]].index(True) > 0, "plain quantization breaks the limit"
    assert "How the limit was reached" in text
    assert "Sensitivity to INT8" in text
