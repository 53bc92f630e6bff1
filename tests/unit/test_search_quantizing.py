from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from compress.artifact import Artifact
from compress.bench.statistics import PairedDifference
from compress.data.encoded import Encoded
from compress.errors import DataError, RecipeError
from compress.passes.quantize import QuantizeConfig, searches
from compress.quantization.rules import rules_for
from compress.recipe import explain
from compress.runtimes.target import find_target
from compress.search.deploy import Speedup
from compress.search.int8_candidates import Candidate, Form, Limits, choose, pareto
from compress.search.quantizing import Int8Search
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)


def candidate(name: str, ratio: float, drop: float) -> Candidate:
    form = Form("static", "every token", "qdq")
    return Candidate(
        form,
        observer=name,  # type: ignore[arg-type]
        speedup=Speedup(ratio, ratio - 0.1, ratio + 0.1, 1.0, ratio),
        drop=PairedDifference(drop, drop - 0.01, drop + 0.01, 100),
    )


FAST, CLOSE, SAFE, SLOW = (
    candidate("fast", 2.0, 0.009),
    candidate("close", 1.96, 0.002),
    candidate("safe", 1.5, 0.0),
    candidate("slow", 0.9, -0.01),
)


def test_latency_takes_the_most_accurate_of_those_that_tie_for_fastest() -> None:
    assert choose([SLOW, FAST, SAFE, CLOSE], 0.01, "latency") is CLOSE
    assert choose([SLOW, FAST, SAFE], 0.01, "latency") is FAST
    assert choose([SLOW, FAST, SAFE], 0.005, "latency") is SAFE
    assert choose([FAST], 0.005, "latency") is None


def test_accuracy_takes_the_most_accurate_that_is_faster_than_float() -> None:
    assert choose([SLOW, FAST, SAFE, CLOSE], 0.01, "accuracy") is SAFE
    assert choose([SLOW], 0.01, "accuracy") is SLOW


@pytest.mark.parametrize("seed", range(20))
def test_pareto_is_what_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [candidate(str(i), float(r), float(d)) for i, (r, d) in enumerate(rng.integers(1, 5, (12, 2)))]

    def position(it: Candidate) -> tuple[float, float]:
        return (it.speedup.value if it.speedup else 0.0), (-it.drop.value if it.drop else 0.0)

    def beats(a: Candidate, b: Candidate) -> bool:
        pairs = zip(position(a), position(b), strict=True)
        return all(p >= q for p, q in pairs) and position(a) != position(b)

    assert pareto(drawn) == [it for it in drawn if not any(beats(other, it) for other in drawn)]


@pytest.fixture
def search(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Int8Search]:
    def build(labelled: bool = True, **limits: Any) -> Int8Search:
        source = tiny_exported()
        rows = [{"text": text} for text in GOLDEN_TEXTS]
        encoded = TASK.encode(source.path, rows * 4)
        targets = np.arange(len(encoded)) % 3 if labelled else None
        return Int8Search(
            source=source,
            model=onnx.load(source.file()),
            task=TASK,
            calibration=encoded,
            validation=Encoded(encoded.inputs, encoded.padding, targets),
            target=find_target("ort-cpu-1t"),
            rules=rules_for("onnxruntime"),
            limits=Limits(observers=("minmax", "mse"), max_drop_points=100.0, **limits),
            work=tmp_path,
        )

    return build


def test_a_search_tries_both_methods_and_records_all_that_it_measured(search: Callable[..., Int8Search]) -> None:
    it = search()
    chosen = it.run()
    assert chosen in it.candidates
    assert {c.form.method for c in it.candidates} == {"dynamic", "static"}
    assert {c.observer for c in it.candidates} == {None, "minmax", "mse"}
    assert all(c.speedup and c.drop and c.size_bytes for c in it.candidates)
    assert all(c.integer_share and c.integer_share > 0.9 for c in it.candidates)
    notes = it.notes(chosen)
    assert notes["kept"] is True
    assert sum(row["chosen"] for row in notes["candidates"]) == 1
    assert {form["label"] for form in notes["forms"]} >= {
        "static, qdq, first token",
        "static, fused, first token",
        "dynamic, integer, every token",
    }
    assert notes["calibration"]["examples"] == len(it.calibration)
    assert notes["float32"]["peak_rss_bytes"] > 0


def test_what_the_recipe_excludes_stays_in_float_in_every_candidate(search: Callable[..., Int8Search]) -> None:
    name = "bert.encoder.layer.0.intermediate.dense/MatMul"
    it = search(excluded={name: "excluded by the recipe"})
    written = it.write(Candidate(Form("dynamic", "first token", "integer")))
    assert name in [node.name for node in written.graph.node if node.op_type == "MatMul"]


def test_labels_are_needed(search: Callable[..., Int8Search]) -> None:
    with pytest.raises(DataError, match="needs labels"):
        search(labelled=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "auto"}, "measures on a target"),
        ({"scheme": "int4-weights", "target": "ort-cpu-1t"}, "`target` does not apply"),
        ({"scheme": "int4-weights", "goal": "accuracy"}, "`goal` does not apply"),
        ({"embedding_bits": 4}, "`embedding_bits` does not apply"),
    ],
)
def test_what_does_not_go_together_is_one_clear_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        QuantizeConfig.model_validate(changes)
    error = explain(caught.value, QuantizeConfig, "step 1 'quantize'")
    assert words in error.what
    assert not error.what.startswith(":")
    assert error.value == "step 1 'quantize'"


def test_auto_needs_a_runtime_with_rules() -> None:
    config = QuantizeConfig(method="auto", target="torch-cpu-1t")
    with pytest.raises(RecipeError, match="cannot be tried on this target"):
        searches(config)
    assert searches(QuantizeConfig(target="ort-cpu-1t"))
    assert searches(QuantizeConfig(target="openvino-cpu-1t"))
    assert searches(QuantizeConfig(target="tensorrt"))
    assert not searches(QuantizeConfig(target="torch-cuda"))
    assert not searches(QuantizeConfig(target="ort-cpu-1t", method="dynamic"))
