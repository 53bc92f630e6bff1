"""The waterfall on small records: which stages, whose time, gains over which."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from compress.pipeline.measuring import ONNX, TORCH, Baseline
from compress.pipeline.stages import stages
from compress.report.model import Accuracy, Latency, Row, Verdict
from compress.runtimes.target import find_target

STEPS = {
    "onnx-fp32": ("export", "model", "onnx", ()),
    "prune": ("prune", "model", "torch", ("pruned",)),
    "recover": ("distill", "prune", "torch", ("pruned",)),
    "small": ("export", "recover", "onnx", ("pruned",)),
    "small-int8": ("quantize", "small", "onnx", ("int8", "pruned")),
    "dense-int8": ("quantize", "onnx-fp32", "onnx", ("int8",)),
}
SIZES = {"model": 90, "onnx-fp32": 91, "prune": 50, "recover": 50, "small": 51, "small-int8": 15, "dense-int8": 23}


def state(leaves=("dense-int8", "small-int8")) -> SimpleNamespace:
    steps = [
        SimpleNamespace(id=id_, pass_=SimpleNamespace(name=name), parents={"model": parent})
        for id_, (name, parent, _, _) in STEPS.items()
    ]
    artifacts = {
        id_: SimpleNamespace(kind=kind, size_bytes=SIZES[id_], manifest=SimpleNamespace(traits=traits))
        for id_, (_, _, kind, traits) in {**STEPS, "model": ("model", "", "torch", ())}.items()
    }
    plan = SimpleNamespace(steps=steps, by_id={s.id: s for s in steps}, reference="model", leaves=list(leaves))
    return SimpleNamespace(plan=plan, artifact=artifacts.get)


def row(step: str, ms: float, value: float, target: str = "ort-cpu-1t") -> Row:
    return Row(
        step=step,
        target=target,
        deliverable=step.endswith("int8"),
        accuracy=Accuracy(value=value, n=100),
        latency=Latency(p50_ms=ms, mean_ms=ms, inputs=10, rounds=3),
    )


def told(rows: list[Row], shipped: str | None = "small-int8", *, torch: bool = True):
    ort, own = find_target("ort-cpu-1t"), find_target("torch-cpu-1t")
    group = (*([Baseline(TORCH, "model", own)] if torch else []), Baseline(ONNX, "onnx-fp32", ort))
    measured = SimpleNamespace(targets=(ort, own), baselines={ort.group: group})
    return list(stages(state(), measured, rows, Verdict(step=shipped, headline="")))


ROWS = [
    row("model", 16.0, 0.90, "torch-cpu-1t"),
    row("onnx-fp32", 12.0, 0.90),
    row("small", 6.0, 0.88),
    row("small-int8", 3.0, 0.87),
    row("dense-int8", 8.0, 0.89),
]


def test_the_chain_begins_with_the_model_on_both_runtimes_and_ends_with_what_ships():
    found = told(ROWS)
    assert [it.step for it in found] == ["model", "onnx-fp32", "prune", "recover", "small", "small-int8"]
    assert [it.what for it in found] == [
        "the model in PyTorch",
        "export of the model",
        "prune",
        "distil (timed as small)",
        "export",
        "quantize to int8",
    ]
    assert [it.latency_ms for it in found] == [16.0, 12.0, None, 6.0, 6.0, 3.0]
    assert {it.target for it in found} == {"ort-cpu-1t"}


def test_gains_are_over_the_stage_before_that_has_a_time():
    found = told(ROWS)
    assert [it.gain for it in found] == pytest.approx([None, 16 / 12, None, 2.0, 1.0, 2.0])
    assert [it.speedup for it in found] == pytest.approx([None, 16 / 12, None, 16 / 6, 16 / 6, 16 / 3])
    assert [it.points for it in found] == pytest.approx([None, 0.0, None, -2.0, 0.0, -1.0])
    assert [it.size_ratio for it in found] == pytest.approx([size / 90 for size in (90, 91, 50, 50, 51, 15)])


def test_gains_multiply_to_the_speedup():
    gains = [it.gain for it in told(ROWS) if it.gain is not None]
    product = 1.0
    for gain in gains:
        product *= gain
    assert product == pytest.approx(told(ROWS)[-1].speedup)


def test_a_stage_without_a_time_says_why():
    pruned = told(ROWS)[2]
    assert pruned.reason == "a PyTorch model: no plain ONNX form of it was measured on ort-cpu-1t"
    assert (pruned.accuracy, pruned.size_bytes) == (None, 50)
    without = told([it for it in ROWS if it.step != "small"])
    assert [it.reason for it in without if it.step == "small"] == ["not measured on ort-cpu-1t"]


def test_where_nothing_ships_the_last_measured_deliverable_stands_at_the_end():
    assert told(ROWS, None)[-1].step == "small-int8"
    rows = [it for it in ROWS if it.step != "small-int8"]
    assert [it.step for it in told(rows)] == ["model", "onnx-fp32", "dense-int8"]


def test_without_a_torch_baseline_the_export_stands_first():
    found = told([it for it in ROWS if it.step != "model"], torch=False)
    assert (found[0].step, found[0].speedup, found[-1].speedup) == ("onnx-fp32", None, 4.0)


def test_a_target_without_deliverables_has_no_stages():
    assert told(ROWS[:3]) == []
