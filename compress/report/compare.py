"""What became of every row between two runs: the record of a comparison, computed elsewhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.report.frozen import Frozen, Unit

Metric = Literal["accuracy", "speedup", "end_to_end", "size", "parameters", "peak_rss"]
Finding = Literal["ok", "regression", "unresolved", "not judged"]


class Change(Frozen):
    """One metric of one row in both runs.

    ``change`` is after minus before for an accuracy (percentage points, or the metric's own unit), and after over
    before, minus 1, for everything else.
    """

    metric: Metric
    name: str = Field(description='as the report calls it: "accuracy", "speed over ONNX Runtime FP32", "size"')
    baseline: str = Field("", description="of a speed-up")
    unit: Unit = Field("percent", description="of an accuracy")
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = Field(None, description="lower end of the 95 % interval of the change; null if it has none")
    high: float | None = None
    paired: bool | None = Field(None, description="accuracy: whether both runs answered the same examples")
    margin: float | None = Field(None, description="how much worse it may get, in the unit of change; null = any")
    finding: Finding = "not judged"
    text: str = Field("", description="the finding in a sentence, where it is no ok")


class RowChange(Frozen):
    """One step on one target in both runs; a status is null where the run has no such row."""

    step: str
    target: str
    status_before: str | None = None
    status_after: str | None = None
    reason: str = Field("", description="why the second run has no values")
    finding: Finding = "ok"
    changes: tuple[Change, ...] = ()


class Comparison(Frozen):
    """What became of every row.

    A *regression* breaks its margin, and its interval excludes "no change". What breaks its margin by the estimate
    alone is *unresolved*: it fails a strict comparison only.
    """

    before: str = Field(description="title of the first run")
    after: str = Field(description="title of the second run")
    split: str = Field(description="split of the accuracies")
    margins: dict[str, float] = Field(description="metric -> how much worse it may get")
    strict: bool = False
    rows: tuple[RowChange, ...]
    regressions: tuple[str, ...]
    unresolved: tuple[str, ...] = ()
    warnings: tuple[str, ...] = Field(description="why the two may not be comparable")
    pairing: str = Field("", description="whether accuracies are paired, and if not, why")
    ok: bool
