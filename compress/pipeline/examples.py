"""Examples whose answer changed: the only place of a report with dataset text, and only where it was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress.pipeline.measuring import Measured
from compress.pipeline.running import RunState
from compress.report.model import ChangedExample, Row, Verdict

MOST = 50
_LONGEST = 500
"""Characters of one example."""


def changed_examples(
    state: RunState, measured: Measured, rows: Sequence[Row], verdict: Verdict
) -> tuple[ChangedExample, ...]:
    """Return at most ``MOST`` examples that the artifact to ship answers otherwise than the reference, in order."""
    shipped = next((row for row in rows if (row.step, row.target) == (verdict.step, verdict.target)), None)
    if shipped is None or shipped.difference is None:
        return ()
    outputs = {(m.subject, m.target): m.outputs for m in measured.measurements}
    after = outputs.get((shipped.step, shipped.target))
    references = [o for (step, _), o in outputs.items() if step == shipped.difference.baseline and o is not None]
    before = next((o for o in references if after is not None and o.shape == after.shape), None)
    if before is None or after is None:
        return ()
    changed = np.flatnonzero(~np.asarray(state.task.agree(before, after)))[:MOST]
    texts = state.data[measured.split].rows
    said = (state.task.predictions(before[changed]), state.task.predictions(after[changed]))
    return tuple(
        ChangedExample(
            text=_text(texts[int(i)], state.task.columns),
            answer=_words(texts[int(i)].get("label")),
            reference=_decision(first),
            prediction=_decision(second),
        )
        for i, first, second in zip(changed, *said, strict=True)
    )


def _text(row: Any, columns: Sequence[str]) -> str:
    """Return the columns of an example, cut where it is long."""
    values = [row[column] for column in columns if row.get(column) is not None]
    text = " | ".join(value if isinstance(value, str) else _picture(value) for value in values)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _picture(value: Any) -> str:
    """Name a picture by its content: where it lies is nobody's business."""
    return f"picture {getattr(value, 'digest', '')[:12]}".rstrip()


def _decision(answer: Mapping[str, Any]) -> str:
    """Return the decoded label; of a number, the number."""
    label = answer.get("label")
    return f"{answer['score']:.4g}" if label is None else _words(label)


def _words(label: Any) -> str:
    if isinstance(label, list | tuple | set | frozenset):
        return ", ".join(sorted(map(str, label)))
    return "" if label is None else str(label)
