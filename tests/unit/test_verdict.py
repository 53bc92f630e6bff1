from __future__ import annotations

from types import SimpleNamespace

import pytest

from compress.pipeline.checking import GateResult
from compress.pipeline.measuring import ONNX
from compress.pipeline.verdict import choose
from compress.report.model import Baseline, Difference, Latency, Row, Speedup


def gate(verdict: str) -> GateResult:
    return GateResult("accuracy", "at most 1.0 points below", 0.9, 0.895, -0.005, -0.02, 0.01, 100, verdict, True)


def row(step: str, ratio: float, low: float) -> Row:
    speedup = Speedup(ratio=ratio, low=low, high=2 * ratio - low)
    latency = Latency(p50_ms=1.0, inputs=1, rounds=1)
    return Row(step=step, target="t", deliverable=True, latency=latency, speedups={ONNX: speedup})


@pytest.fixture
def judge():
    def run(rows: list[Row], verdicts: dict[str, str]):
        outcomes = {
            step: SimpleNamespace(status="done", gates=[gate(word)] if word else [], parity_reason="", artifact=None)
            for step, word in verdicts.items()
        }
        state = SimpleNamespace(
            plan=SimpleNamespace(leaves=list(verdicts), reference="model"),
            outcomes=outcomes,
            artifact=lambda step: None,
        )
        targets = [SimpleNamespace(name="absent"), SimpleNamespace(name="t")]
        return choose(state, SimpleNamespace(split="test", targets=targets), rows)

    return run


def test_a_proven_gate_goes_before_a_faster_doubt(judge):
    verdict = judge([row("fast", 9.0, 8.5), row("sure", 5.0, 4.8)], {"fast": "unresolved", "sure": "pass"})
    assert (verdict.step, verdict.target) == ("sure", "t")
    assert any("fast is faster still (9.00 times)" in reason for reason in verdict.reasons)


def test_the_fastest_of_the_proven(judge):
    verdict = judge([row("a", 2.0, 1.9), row("b", 3.0, 2.9)], {"a": "pass", "b": "pass"})
    assert verdict.step == "b"
    assert "fastest of the 2" in verdict.reasons[0]


def test_doubt_alone_ships_by_the_estimate_and_says_so(judge):
    verdict = judge([row("a", 2.0, 1.9), row("b", 3.0, 2.9)], {"a": "unresolved", "b": "unresolved"})
    assert verdict.step == "b"
    assert "No gate is resolved" in verdict.reasons[0]


def test_nothing_slower_or_equal_is_recommended(judge):
    verdict = judge([row("a", 1.01, 0.97)], {"a": "pass"})
    assert verdict.step is None
    assert verdict.headline.startswith("Keep the uncompressed model")


def test_a_proven_gate_of_something_slow_does_not_hide_what_is_faster(judge):
    verdict = judge([row("fp16", 0.97, 0.95), row("int8", 2.8, 2.6)], {"fp16": "pass", "int8": "unresolved"})
    assert verdict.step == "int8"
    assert "No gate is resolved" in verdict.reasons[0]


def test_no_gate_is_not_a_proof(judge):
    verdict = judge([row("free", 9.0, 8.0), row("sure", 2.0, 1.9)], {"free": "", "sure": "pass"})
    assert verdict.step == "sure"
    alone = judge([row("free", 9.0, 8.0)], {"free": ""})
    assert "no gate was declared" in alone.reasons[0]


def test_without_a_baseline_there_is_no_verdict(judge):
    bare = row("a", 2.0, 1.9).model_copy(update={"speedups": {}})
    assert judge([bare], {"a": "pass"}).headline.startswith("No verdict")


def test_nothing_measured(judge):
    assert judge([], {"a": "pass"}).headline.startswith("Nothing may ship")


def test_the_reasons_say_how_sure_we_are_of_speed_and_accuracy(judge):
    latency = Latency(p50_ms=1.0, inputs=100, rounds=21, launches=3, stability="stable")
    text = "not resolvable at N = 910; about 4,000 examples would"
    change = Difference(baseline="model", points=-0.4, low=-1.3, high=0.5, text=text)
    sure = row("a", 2.0, 1.9).model_copy(update={"latency": latency, "difference": change})
    fast = sure.speedups[ONNX].model_copy(update={"text": "faster"})
    reasons = judge([sure.model_copy(update={"speedups": {ONNX: fast}})], {"a": "pass"}).reasons
    assert reasons[1:] == (
        f"Speed: 2.00 times as fast as {ONNX} [1.90, 2.10]: faster; 21 rounds over 100 inputs in 3 launches, stable.",
        f"Accuracy on test: −0.40 points [−1.30, +0.50] against the reference on the same examples; {text}.",
    )


def test_one_launch_says_what_its_interval_lacks(judge):
    reasons = judge([row("a", 2.0, 1.9)], {"a": "pass"}).reasons
    assert "in 1 launch, whose spread is not in the interval" in reasons[1]


def test_what_is_not_faster_is_listed_with_its_interval(judge):
    reasons = judge([row("a", 1.01, 0.97)], {"a": "pass"}).reasons
    assert reasons == (f"a: 1.01 times as fast as {ONNX} [0.97, 1.05].",)


FP16 = "TensorRT FP16"


def on_gpu(step: str, over_fp16: float, arm: float = 0.01, over_fp32: float = 3.0) -> Row:
    """A row of a GPU: FP32 first, then the strongest baseline, an FP16 engine."""
    against = Baseline(step="fp16-engine", target="t")
    speedups = {
        "torch FP32": Speedup(ratio=over_fp32, low=over_fp32 - 0.1, high=over_fp32 + 0.1, text="faster"),
        FP16: Speedup(ratio=over_fp16, low=over_fp16 - arm, high=over_fp16 + arm, against=against),
    }
    return row(step, 1.0, 1.0).model_copy(update={"speedups": speedups})


def the_baseline() -> Row:
    made = on_gpu("fp16-engine", 1.0)
    itself = Speedup(ratio=1.0, against=Baseline(step="fp16-engine", target="t"))
    return made.model_copy(update={"speedups": {**made.speedups, FP16: itself}})


def test_int8_slower_than_fp16_keeps_fp16(judge):
    verdict = judge([on_gpu("int8-engine", 0.96)], {"int8-engine": "pass"})
    assert verdict.headline == "Keep FP16: int8-engine is 4 % slower than TensorRT FP16 on t."
    assert verdict.step is None, "what is kept is no deliverable of the recipe"
    assert verdict.reasons == (f"int8-engine: 0.96 times as fast as {FP16} [0.95, 0.97].",)


def test_the_fp16_engine_of_the_recipe_itself_is_what_is_kept(judge):
    verdict = judge([the_baseline(), on_gpu("int8-engine", 0.96)], {"fp16-engine": "pass", "int8-engine": "pass"})
    assert verdict.headline == "Keep FP16: int8-engine is 4 % slower than TensorRT FP16 on t."
    assert verdict.step == "fp16-engine"


def test_no_difference_to_fp16_keeps_it_and_names_the_nearest(judge):
    rows = [on_gpu("int8-engine", 0.99, 0.02), on_gpu("pruned", 0.7)]
    verdict = judge(rows, {"int8-engine": "pass", "pruned": "pass"})
    assert verdict.headline == (
        "Keep FP16: int8-engine, the fastest of 2 deliverables, is no faster than TensorRT FP16 on t."
    )
    assert len(verdict.reasons) == 2


def test_what_beats_fp16_ships_by_its_speed_over_fp16(judge):
    rows = [the_baseline(), on_gpu("int8-engine", 1.3), on_gpu("other", 0.9)]
    verdict = judge(rows, dict.fromkeys(("fp16-engine", "int8-engine", "other"), "pass"))
    assert verdict.step == "int8-engine"
    assert verdict.headline.startswith(f"Ship int8-engine: 1.30 times as fast as {FP16} on t")


def test_the_fp16_engine_alone_ships_by_its_speed_over_fp32(judge):
    verdict = judge([the_baseline()], {"fp16-engine": "pass"})
    assert verdict.step == "fp16-engine"
    assert verdict.headline.startswith("Ship fp16-engine: 3.00 times as fast as torch FP32 on t")


def test_a_plain_export_that_is_a_deliverable_is_no_gain_over_itself(judge):
    export, int8 = row("export", 1.0, 1.0), row("int8", 0.9, 0.8)
    itself = Speedup(ratio=1.0, against=Baseline(step="export", target="t"))
    export = export.model_copy(update={"speedups": {"torch FP32": Speedup(ratio=2.0), ONNX: itself}})
    verdict = judge([export, int8], {"export": "pass", "int8": "pass"})
    assert verdict.headline.startswith("Keep the uncompressed model: no deliverable is faster than ONNX Runtime FP32")
    assert verdict.step is None


def test_a_small_loss_is_not_rounded_to_nothing(judge):
    verdict = judge([on_gpu("int8-engine", 0.996, 0.002)], {"int8-engine": "pass"})
    assert "is 0.4 % slower than" in verdict.headline
