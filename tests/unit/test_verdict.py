from __future__ import annotations

from types import SimpleNamespace

import pytest

from compress.pipeline.checking import GateResult
from compress.pipeline.measuring import ONNX
from compress.pipeline.verdict import choose
from compress.report.model import Difference, Latency, Row, Speedup


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
