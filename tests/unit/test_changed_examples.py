"""Examples with a changed answer: those of the shipped artifact against its reference, and only when asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.pipeline.examples import MOST, changed_examples
from compress.report.model import Difference, Row, Verdict
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine"), max_length=32)
VERDICT = Verdict(step="int8", target="t", headline="Ship int8.")
ROWS = [
    Row(step="model", target="t"),
    Row(step="int8", target="t", difference=Difference(baseline="model", points=0.0)),
]


def logits(*labels: int) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[list(labels)]


def found(before: np.ndarray, after: np.ndarray, rows: list[dict[str, Any]], verdict: Verdict = VERDICT) -> Any:
    state: Any = SimpleNamespace(task=TASK, data={"test": SimpleNamespace(rows=rows)})
    measured: Any = SimpleNamespace(
        split="test",
        measurements=[
            SimpleNamespace(subject="model", target="emulated", outputs=before[:1]),
            SimpleNamespace(subject="model", target="t", outputs=before),
            SimpleNamespace(subject="int8", target="t", outputs=after),
        ],
    )
    return changed_examples(state, measured, ROWS, verdict)


def test_only_changed_answers_are_quoted() -> None:
    rows = [{"text": f"text {i}", "label": "fine"} for i in range(3)]
    (example,) = found(logits(0, 1, 1), logits(0, 0, 1), rows)
    assert example.text == "text 1"
    assert (example.answer, example.reference, example.prediction) == ("fine", "fine", "bad")


def test_no_more_than_fifty_and_none_too_long() -> None:
    rows = [{"text": f"~/{i} " + "x" * 900, "label": "bad"} for i in range(80)]
    examples = found(logits(*[0] * 80), logits(*[1] * 80), rows)
    assert len(examples) == MOST == 50
    assert examples[0].text.startswith("~/0 x")
    assert max(len(example.text) for example in examples) == 500


@pytest.mark.parametrize("verdict", [Verdict(headline="none"), Verdict(step="model", target="t", headline="m")])
def test_nothing_is_quoted_where_nothing_is_shipped(verdict: Verdict) -> None:
    assert found(logits(0), logits(1), [{"text": "a", "label": "bad"}], verdict) == ()
