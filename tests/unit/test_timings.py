"""Times of a row: every field of the record from samples whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest

from compress.bench.measurement import Measurement
from compress.pipeline.measuring import ONNX, Baseline
from compress.pipeline.timings import end_to_end_of, latency_of, speedup_over, speedups_of
from compress.runtimes.target import find_target

ORT = find_target("ort-cpu-1t")
PLACE = Baseline(ONNX, "onnx-fp32", ORT)


def measured(step: str, samples, both=None, **fields) -> Measurement:
    facts = {"status": "ok", "evidence": "measured", "digest": "", "size_bytes": 1, "threads": 1} | fields
    return Measurement(subject=step, target=ORT.name, samples_ms=samples, end_to_end_ms=both or [], **facts)


def steady(ms: float, launches: int = 2, rounds: int = 5, inputs: int = 100) -> list[list[list[float]]]:
    return np.full((launches, rounds, inputs), ms).tolist()


def test_every_field_of_a_latency():
    lengths = np.linspace(1.0, 3.0, 101)
    it = latency_of(measured("a", np.tile(lengths, (2, 4, 1)).tolist()))
    assert (it.p50_ms, it.mean_ms) == pytest.approx((2.0, 2.0))
    assert (it.inputs, it.rounds, it.launches, it.cv) == (101, 8, 2, 0.0)
    assert it.quantiles_ms == pytest.approx(np.linspace(1.0, 3.0, 101), abs=0.02)
    assert it.stability == "stable"
    assert [p.q for p in it.percentiles] == [50, 90, 95, 99]
    assert it.percentiles[3].reason == "101 different inputs; its interval takes 368"
    p90 = it.percentiles[1]
    assert p90.low_ms <= p90.value_ms == it.p90_ms <= p90.high_ms


def test_a_latency_names_the_lengths_of_its_inputs_and_the_warm_up():
    it = latency_of(measured("a", steady(1.0, inputs=4), input_tokens=[9, 3, 4, 30], warmup_s=1.5))
    assert (it.tokens.least, it.tokens.median, it.tokens.most, it.warmup_s) == (3, 6.5, 30, 1.5)
    assert latency_of(measured("a", steady(1.0))).tokens is None


def test_a_hidden_p90_is_null_in_both_places():
    it = latency_of(measured("a", np.random.default_rng(0).exponential(size=(1, 3, 40)).tolist()))
    assert it.p90_ms is None
    assert it.percentiles[1].value_ms is None
    assert it.percentiles[1].reason


def test_launches_need_not_have_the_same_number_of_rounds():
    it = latency_of(measured("a", [[[1.0, 2.0]] * 3, [[1.0, 2.0]] * 5]))
    assert (it.rounds, it.launches, it.mean_ms) == (8, 2, 1.5)


def test_a_row_without_samples_has_no_latency():
    assert latency_of(measured("a", [])) is None
    assert latency_of(measured("a", steady(1.0), status="oom", reason="too much")) is None


def test_a_speedup_carries_its_verdict():
    cells = {("onnx-fp32", ORT.name): measured("onnx-fp32", steady(4.0))}
    found = speedups_of(measured("a", steady(2.0)), [PLACE], cells)[ONNX]
    assert (found.ratio, found.low, found.high, found.text) == pytest.approx((2.0, 2.0, 2.0, "faster"))
    assert (found.against.step, found.against.target) == ("onnx-fp32", ORT.name)
    slow = speedup_over(PLACE, cells["onnx-fp32", ORT.name], measured("a", steady(5.0)))
    assert slow.text == "slower"
    equal = np.random.default_rng(0).normal(4.0, 0.1, (2, 5, 100)).tolist()
    assert speedup_over(PLACE, cells["onnx-fp32", ORT.name], measured("a", equal)).text == "no difference"


def test_the_baseline_is_one_without_a_verdict_and_one_round_has_no_interval():
    base = measured("onnx-fp32", [[[4.0]]])
    assert speedup_over(PLACE, base, base).text == ""
    found = speedup_over(PLACE, base, measured("a", [[[2.0]]]))
    assert (found.ratio, found.low, found.high, found.text) == (2.0, None, None, "")


def test_end_to_end_has_ratios_of_its_own_and_the_overhead():
    base = measured("onnx-fp32", steady(4.0), steady(5.0))
    it = end_to_end_of(measured("a", steady(2.0), steady(3.0)), [PLACE], {("onnx-fp32", ORT.name): base})
    assert (it.latency.mean_ms, it.overhead_ms) == pytest.approx((3.0, 1.0))
    assert it.speedups[ONNX].ratio == pytest.approx(5 / 3)
    assert end_to_end_of(measured("a", steady(2.0)), [PLACE], {}) is None
    bare = measured("onnx-fp32", steady(4.0))
    assert (
        end_to_end_of(measured("a", steady(2.0), steady(3.0)), [PLACE], {("onnx-fp32", ORT.name): bare}).speedups == {}
    )
