"""The ``measure:`` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MINIMUM_ROUNDS = 3
"""Rounds that are run however little time there is: a ratio of fewer has no interval worth printing."""
PRECISE_ROUNDS = 5
"""Rounds before a launch may end because it is precise: fewer can agree by chance."""
TURN = 10
"""Inferences that an artifact runs before it is the next one's turn: a disturbance lasts longer and meets them all."""
END_TO_END_ROUNDS = 5
"""Rounds of the second clock per launch, at most."""
END_TO_END_SHARE = 0.25
"""Part of a launch's time that is kept for the second clock."""
THROUGHPUT_REPEATS = 6
"""Repetitions of a point of the throughput sweep, unless time runs short."""
LEAST_REPEATS = 3
"""Repetitions of a point however long they take: fewer have no interval worth printing."""


class MeasureSettings(BaseModel):
    """Where and how artifacts are measured. Times are per group of targets with the same device and threads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    targets: list[str] = Field(["ort-cpu-1t"], description="built-in targets by name, or paths of target YAML files")
    baselines: list[Literal["torch", "onnx"]] = Field(
        ["torch", "onnx"],
        description="what speed-ups are stated against: the model in PyTorch, and exported unchanged to ONNX",
    )
    inputs: int = Field(200, ge=1, description="examples in the timed sequence, drawn once for every artifact")
    launches: int = Field(3, ge=1, description="fresh sets of processes; more than one shows the spread between them")
    rounds: int = Field(15, ge=1, description="most passes of every artifact over the sequence, per launch")
    precision: float | None = Field(
        0.02,
        gt=0,
        description="rounds end when the interval of every ratio to the group's first row reaches no further than this "
        f"share of it, and not before {PRECISE_ROUNDS} of them; null: all rounds are run",
    )
    seconds: float = Field(
        120.0,
        gt=0,
        description=f"time for the rounds of all launches; once it is used up, {MINIMUM_ROUNDS} rounds per launch "
        "are still run",
    )
    end_to_end: bool = Field(
        True,
        description=f"also time preprocessing, model and decoding together, in up to {END_TO_END_ROUNDS} rounds of "
        "their own per launch",
    )
    warmup_seconds: float = Field(0.5, ge=0, description="least time each artifact runs before it is timed")
    throughput_batch: int = Field(
        16, ge=1, description="batch size of the throughput that rows state; always a point of the sweep"
    )
    throughput_batches: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 4, 16, 64], description="batch sizes of the throughput sweep"
    )
    throughput_streams: list[Annotated[int, Field(ge=1)]] = Field(
        [1], description="batches in flight at once: the sweep runs every batch size with one and with each of these"
    )
    throughput_seconds: float = Field(
        2.0,
        gt=0,
        description=f"time for one point of one artifact, over its {THROUGHPUT_REPEATS} repetitions; when it is used "
        f"up, no more than {LEAST_REPEATS} are run",
    )
    scenarios: list[Literal["single-stream", "offline", "server"]] = Field(
        default_factory=list,
        description="MLPerf-style scenarios to run with LoadGen (extra `loadgen`); none by default",
    )
    scenario_seconds: float = Field(
        10.0, gt=0, description="least time of one run of a scenario; the server scenario takes up to 6 runs"
    )
    server_latency_ms: float | None = Field(
        None,
        gt=0,
        description="what the server scenario's 99th percentile must keep; null = twice that of the slowest artifact",
    )
    emulated_examples: int = Field(
        200, ge=1, description="examples that emulated targets answer, drawn once: emulation is slow"
    )
