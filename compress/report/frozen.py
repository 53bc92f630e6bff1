"""What every part of the record is made of: frozen models, verdicts, units, ratios of times."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["pass", "fail", "unresolved"]
Unit = Literal["percent", "plain"]
Family = Literal["dense", "pruned", "student"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Baseline(Frozen):
    step: str
    target: str


class Speedup(Frozen):
    """Ratio of total times over the same inputs; above 1 is faster than the baseline."""

    ratio: float = Field(gt=0)
    low: float | None = None
    high: float | None = None
    against: Baseline | None = Field(None, description="what it was compared with, where targets differ in that")
    text: str = Field("", description='verdict in words: "faster", "slower", "no difference"; empty if not judged')
