"""Searches and students as the report records them: which artifact is compared with what, and by which arithmetic."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from compress.bench.measurement import Measurement
from compress.pipeline.lineage import family, same_widths
from compress.pipeline.searches import latency_searches, widths
from compress.pipeline.students import student_matches
from compress.tasks.base import Score

TARGET = "ort-cpu-1t"
CONFIG = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": 32}
NOTES = {
    "layers": [0, 1],
    "heads": [2, 0],
    "neurons": [8, 4],
    "dense": {"layers": 2, "heads": 2, "neurons": 16},
    "search": {
        "budget": {"speedup": 3.0},
        "target": TARGET,
        "deploy": "int8",
        "batch_size": 1,
        "predicted_speedup": 3.2,
        "measured_speedup": 3.1,
        "interval": [3.05, 3.15],
        "table": {"dense_ms": 5.0},
        "attempts": [{"dense_ms": 5.5}, {"dense_ms": 4.0}],
    },
}
CHAIN = {
    "onnx-fp32": ("export", "model", ()),
    "prune": ("prune", "model", ("pruned",)),
    "recover": ("distill", "prune", ("pruned",)),
    "fp32": ("export", "recover", ("pruned",)),
    "int8": ("quantize", "fp32", ("int8", "pruned")),
    "again": ("prune", "recover", ("pruned",)),
    "again-int8": ("quantize", "again", ("int8", "pruned")),
    "student": ("distill", "model", ("distilled",)),
    "student-int8": ("quantize", "student", ("distilled", "int8")),
}


class State:
    """As much of a finished run as the report reads."""

    def __init__(self, folder, notes=NOTES, leaves=("int8", "again-int8", "student-int8")) -> None:
        (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        steps = [
            SimpleNamespace(
                id=id_,
                pass_=SimpleNamespace(name=name),
                parents={"model": parent, "teacher": "student"},
                config=SimpleNamespace(student=object() if id_ == "student" else None),
            )
            for id_, (name, parent, _) in CHAIN.items()
        ]
        self.plan = SimpleNamespace(
            steps=steps, by_id={s.id: s for s in steps}, leaves=list(leaves), reference="model", source=None
        )
        self.artifacts = {
            id_: SimpleNamespace(path=folder, manifest=SimpleNamespace(traits=traits, notes={}))
            for id_, (_, _, traits) in {**CHAIN, "model": ("model", "", ())}.items()
        }
        self.artifacts["prune"].manifest.notes = notes
        self.outcomes = {id_: SimpleNamespace(status="done", artifact=a) for id_, a in self.artifacts.items()}
        self.task = SimpleNamespace(score=lambda outputs, answers: score(outputs == answers))

    def artifact(self, step):
        return self.artifacts.get(step)


def score(right) -> Score:
    right = np.asarray(right, dtype=np.float64)
    return Score("accuracy", float(right.mean()), "higher", right, {})


def timed(step: str, ms: float, outputs=None, target: str = TARGET) -> Measurement:
    fields = {"evidence": "measured", "digest": "d", "size_bytes": 1, "threads": 1, "status": "ok"}
    return Measurement(
        subject=step, target=target, samples_ms=[[[ms] * 4] * 3, [[ms] * 4] * 2], outputs=outputs, **fields
    )


def measured(*rows: Measurement, answers=None):
    return SimpleNamespace(measurements=rows, answers=answers, targets=[SimpleNamespace(name=TARGET)])


def changed(**search):
    return NOTES | {"search": NOTES["search"] | search}


def one(state, *rows):
    (record,) = latency_searches(state, measured(*rows))
    return record


def test_the_deployed_descendant_is_compared_at_the_searched_precision(tmp_path):
    rows = [timed("onnx-fp32", 12.0), timed("fp32", 6.0), timed("int8", 3.0), timed("again-int8", 1.0)]
    record = one(State(tmp_path), *rows)
    assert record.artifact == "int8"
    assert record.measured.ratio == pytest.approx(12.0 / 3.0)
    assert record.measured_ms == pytest.approx(3.0)
    # predicted latency 12 / 3.2 = 3.75 ms, measured 3 ms
    assert record.error == pytest.approx(3.75 / 3.0 - 1)
    assert (record.met, record.verdict, record.attempts) == (True, "pass", 2)
    assert (record.searched.ratio, record.searched.low, record.searched.high) == (3.1, 3.05, 3.15)
    assert record.drift == pytest.approx(-0.2)  # of the attempt that was furthest from the table


def test_a_budget_that_the_delivered_artifact_misses(tmp_path):
    record = one(State(tmp_path), timed("onnx-fp32", 12.0), timed("int8", 4.8))
    assert record.measured.ratio == pytest.approx(2.5)
    assert (record.met, record.verdict) == (False, "fail")


@pytest.mark.parametrize(("limit", "met"), [(3.01, True), (2.99, False)])
def test_a_budget_of_milliseconds_is_judged_by_the_mean(tmp_path, limit, met):
    state = State(tmp_path, changed(budget={"latency_ms": limit}))
    assert one(state, timed("onnx-fp32", 12.0), timed("int8", 3.0)).met is met


def test_a_budget_of_accuracy_is_compared_but_not_judged_here(tmp_path):
    record = one(
        State(tmp_path, changed(budget={"max_drop_points": 1.0})), timed("onnx-fp32", 12.0), timed("int8", 3.0)
    )
    assert record.error == pytest.approx(0.25)
    assert (record.met, record.verdict) == (None, None)


def test_an_interval_that_holds_the_budget_is_unresolved(tmp_path):
    noisy = timed("int8", 4.0).model_copy(update={"samples_ms": [[[3.0] * 4, [5.0] * 4, [4.0] * 4]]})
    dense = timed("onnx-fp32", 12.0).model_copy(update={"samples_ms": [[[12.0] * 4] * 3]})
    record = one(State(tmp_path), dense, noisy)
    assert record.measured.low < 3.0 < record.measured.high
    assert (record.met, record.verdict) == (True, "unresolved")


def test_why_nothing_was_compared(tmp_path):
    state = State(tmp_path)
    assert one(state, timed("onnx-fp32", 12.0), timed("fp32", 6.0)).reason == (
        "no int8 model made from it was measured on ort-cpu-1t"
    )
    alone = one(state, timed("int8", 3.0))
    assert (alone.artifact, alone.measured, alone.measured_ms) == ("int8", None, pytest.approx(3.0))
    assert alone.reason == "the dense FP32 ONNX model was not measured on ort-cpu-1t"
    batched = State(tmp_path, changed(batch_size=8))
    assert "batches of 8" in one(batched, timed("onnx-fp32", 12.0), timed("int8", 3.0)).reason
    shallow = State(tmp_path, NOTES | {"layers": [1], "heads": [2], "neurons": [4]})
    assert "dense model of 1 layers, this report from one of 2" in (
        one(shallow, timed("onnx-fp32", 12.0), timed("int8", 3.0)).reason
    )


def test_steps_without_a_search_give_no_record(tmp_path):
    by_share = NOTES | {"search": {"budget": {"macs": 0.5}, "unit": "MACs", "kept": 0.49}}
    assert list(latency_searches(State(tmp_path, by_share), measured())) == []
    of_a_plugin = {"search": NOTES["search"]}  # timed, but without the widths that tell its dense model
    assert list(latency_searches(State(tmp_path, of_a_plugin), measured())) == []


def test_lineage_stops_where_shapes_change(tmp_path):
    state = State(tmp_path)
    assert list(same_widths(state, "prune")) == ["prune", "recover", "fp32", "int8"]
    assert list(same_widths(state, "again")) == ["again", "again-int8"]


def test_families(tmp_path):
    state = State(tmp_path)
    assert {id_: family(state, id_) for id_ in ("model", "onnx-fp32", "int8", "student", "student-int8")} == {
        "model": "dense",
        "onnx-fp32": "dense",
        "int8": "pruned",
        "student": "student",
        "student-int8": "student",
    }


def test_widths_come_from_the_notes_of_encoders_only():
    found = widths(NOTES)
    assert (found.layers, found.heads, found.neurons) == ((0, 1), (2, 0), (8, 4))
    assert (found.full_layers, found.full_heads, found.full_neurons) == (2, 2, 16)
    assert widths({"channels": {"conv": 8}, "layers": 3}) is None


def answers_of(right: int, n: int = 200) -> np.ndarray:
    """Predictions of which the first ``right`` are right; the right answer is always 1."""
    return np.array([1] * right + [0] * (n - right))


@pytest.mark.parametrize(("right", "winner"), [(140, "pruned"), (195, "student"), (171, None)])
def test_a_student_meets_the_pruned_model_of_the_nearest_latency(tmp_path, right, winner):
    rows = [
        timed("int8", 3.0, answers_of(170)),
        timed("again-int8", 1.0, answers_of(150)),
        timed("student-int8", 2.0, answers_of(right)),
        timed("fp32", 2.0, answers_of(200)),
    ]
    (match,) = student_matches(State(tmp_path), measured(*rows, answers=np.ones(200)))
    assert (match.student, match.pruned, match.target) == ("student-int8", "int8", TARGET)
    assert match.slower == pytest.approx(0.5)
    assert match.difference.points == pytest.approx(100 * (right - 170) / 200)
    assert match.difference.baseline == "int8"
    assert match.winner == winner


def test_a_student_alone_is_not_compared(tmp_path):
    rows = [timed("student-int8", 2.0, answers_of(150)), timed("fp32", 2.0, answers_of(150))]
    assert list(student_matches(State(tmp_path), measured(*rows, answers=np.ones(200)))) == []
