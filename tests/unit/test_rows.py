"""Rows of a report from measurements: who has classes, on which clock, against which reference."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from compress.bench.measurement import Measurement
from compress.pipeline.measuring import ONNX, Baseline
from compress.pipeline.rows import build_rows
from compress.runtimes.target import find_target
from compress.tasks.text_classification import TextClassification

ORT = find_target("ort-cpu-1t")
ANSWERS = np.repeat([0, 1], 50)
SAMPLES = np.full((3, 6, 40), 2.0)


def logits(wrong: int) -> np.ndarray:
    """Two labels, sure of itself; the first ``wrong`` examples of label 0 are answered wrongly."""
    answers = ANSWERS.copy()
    answers[:wrong] = 1
    return np.eye(2, dtype=np.float32)[answers] * 8.0


def measured(step: str, factor: float, wrong: int, **fields) -> Measurement:
    facts = {"status": "ok", "evidence": "measured", "digest": "", "size_bytes": 1, "threads": 1} | fields
    times = {"samples_ms": (factor * SAMPLES).tolist(), "end_to_end_ms": (factor * SAMPLES + 1.0).tolist()}
    return Measurement(subject=step, target=ORT.name, outputs=logits(wrong), throughput_per_s=1.0, **times, **facts)


@pytest.fixture
def rows():
    steps = [
        SimpleNamespace(id="int8", pass_=SimpleNamespace(name="quantize"), parents={"model": "model"}),
        SimpleNamespace(id="between", pass_=SimpleNamespace(name="cast"), parents={"model": "model"}),
    ]
    traits = {"between": ("fp16",)}
    state = SimpleNamespace(
        plan=SimpleNamespace(leaves=["int8"], reference="model", steps=steps, by_id={s.id: s for s in steps}),
        task=TextClassification(("bad", "good")),
        outcomes={id_: SimpleNamespace(delivered=True) for id_ in ("model", "int8", "between")},
        artifact=lambda step: SimpleNamespace(manifest=SimpleNamespace(traits=traits.get(step, ()))),
    )
    found = SimpleNamespace(
        measurements=(measured("model", 2.0, 2), measured("int8", 1.0, 22), measured("between", 2.0, 2)),
        targets=(ORT,),
        baselines={ORT.group: (Baseline(ONNX, "model", ORT),)},
        answers=ANSWERS,
    )
    return {row.step: row for row in build_rows(state, found)}


def test_deliverables_and_the_reference_have_classes_and_stages_between_do_not(rows):
    assert [(it.label, it.right) for it in rows["int8"].classes] == [("bad", 28), ("good", 50)]
    assert [it.points for it in rows["int8"].classes] == pytest.approx([-40.0, 0.0])
    assert rows["int8"].classes[0].text == "lower than the reference, beyond chance among 2 classes"
    assert [it.reference for it in rows["model"].classes] == [None, None]
    assert rows["between"].classes == ()


def test_a_row_has_both_clocks_each_with_its_ratio(rows):
    it = rows["int8"]
    assert (it.speedups[ONNX].ratio, it.speedups[ONNX].text) == (2.0, "faster")
    assert it.end_to_end.speedups[ONNX].ratio == pytest.approx(5.0 / 3.0)
    assert it.end_to_end.overhead_ms == pytest.approx(1.0)
    assert (it.latency.launches, it.latency.rounds, it.latency.stability) == (3, 18, "stable")
    assert rows["model"].speedups[ONNX].text == ""


def test_accuracy_carries_its_calibration_and_the_paired_difference(rows):
    it = rows["int8"]
    assert it.accuracy.value == 0.78
    assert it.accuracy.calibration_error == pytest.approx(1 / (1 + np.exp(-8.0)) - 0.78, abs=1e-6)
    assert it.difference.text == "20.00 points lower than the reference, beyond the interval"
    assert it.difference.p_value == pytest.approx(2 / 2**20)


def test_fp16_on_a_cpu_is_called_a_storage_format(rows):
    assert rows["between"].findings == (
        "FP16 is a storage format on a CPU: the file is smaller, and its numbers are turned to FP32 to compute. "
        "It ran 1.00 times as fast as ONNX Runtime FP32. Gate and parity were judged with every value rounded to FP16, "
        "as a GPU rounds.",
    )
    assert rows["model"].findings == rows["int8"].findings == ()
