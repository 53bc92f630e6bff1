"""The ``measure:`` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MINIMUM_ROUNDS = 3
"""Rounds that are run however little time there is: a ratio of fewer has no interval worth printing."""


class MeasureSettings(BaseModel):
    """Where and how artifacts are measured. Times are per group of targets with the same device and threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: list[str] = Field(["ort-cpu-1t"], description="built-in targets by name, or paths of target YAML files")
    baselines: list[Literal["torch", "onnx"]] = Field(
        ["torch", "onnx"],
        description="what speed-ups are stated against: the model in PyTorch, and exported unchanged to ONNX",
    )
    inputs: int = Field(100, ge=1, description="examples in the timed sequence, drawn once for every artifact")
    rounds: int = Field(7, ge=1, description="passes of every artifact over the sequence, per launch")
    seconds: float = Field(
        120.0, gt=0, description=f"time for the rounds; when it is used up, no more than {MINIMUM_ROUNDS} are run"
    )
    launches: int = Field(1, ge=1, description="fresh sets of processes; more than one shows the spread between them")
    warmup_seconds: float = Field(0.5, ge=0, description="least time each artifact runs before it is timed")
    throughput_batch: int = Field(16, ge=1, description="batch size of the throughput measurement")
    throughput_seconds: float = Field(2.0, gt=0, description="time for the throughput of each artifact")
    emulated_examples: int = Field(
        200, ge=1, description="examples that emulated targets answer, drawn once: emulation is slow"
    )
