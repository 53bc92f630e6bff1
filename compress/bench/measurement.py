"""The record of one artifact on one target."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.runtimes.target import Evidence

Status = Literal["ok", "skipped", "failed", "oom"]
COSTS = (
    "samples_ms",
    "end_to_end_ms",
    "load_ms",
    "first_ms",
    "warmup_s",
    "import_rss_bytes",
    "peak_rss_bytes",
    "memory_phases",
    "gpu_latency_ms",
    "gpu_allocator_bytes",
    "gpu_process_bytes",
    "energy_joules",
    "throughput_per_s",
    "throughputs",
    "scenarios",
)
"""Fields that cost time, memory or energy to fill: an emulated row has none of them."""


class Measurement(BaseModel):
    """Raw samples and facts; statistics are computed from them elsewhere. Units stand in the names.

    A row that is not ``ok`` says why in ``reason`` and keeps what was measured before that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    subject: str
    target: str
    status: Status
    reason: str = ""
    evidence: Evidence
    digest: str = Field(description="of the artifact that ran")
    size_bytes: int = Field(description="files of the graph and its weights, no tokenizer")
    parameters: int | None = None
    runtime_version: str = ""
    threads: int
    pinned_cores: list[int] = Field(default_factory=list, description="empty if the process was not pinned")
    samples_ms: list[list[list[float]]] = Field(
        default_factory=list, description="[launch][round][input], one example (or one batch) at a time, model only"
    )
    input_indices: list[int] = Field(default_factory=list, description="examples of the timed sequence")
    input_tokens: list[int] = Field(default_factory=list, description="their lengths")
    end_to_end_ms: list[list[list[float]]] = Field(
        default_factory=list, description="as samples_ms, on the second clock: preprocess, copy, run, decode"
    )
    load_ms: float | None = Field(
        None, description="opening the artifact, libraries already imported; median of launches"
    )
    first_ms: float | None = Field(None, description="the first inference of a process; median of launches")
    warmup_s: float | None = Field(
        None, description="from the first inference until the clock settled; median of launches"
    )
    import_rss_bytes: int | None = Field(None, description="resident after importing the runtime library")
    peak_rss_bytes: int | None = Field(None, description="largest resident set up to the end of the rounds")
    memory_phases: list[dict[str, Any]] = Field(
        default_factory=list, description="import, load, first, steady, peak: rss, anonymous and mapped bytes"
    )
    gpu_allocator_bytes: int | None = Field(None, description="peak by the framework's own allocator")
    gpu_process_bytes: int | None = Field(None, description="peak of the process as the driver sees it")
    gpu_latency_ms: float | None = Field(
        None, description="median over the timed inputs, kernels alone, by the device's own clock"
    )
    gpu_states: list[dict[str, Any]] = Field(
        default_factory=list, description="clocks, temperature, power and throttling after a first and a last round"
    )
    energy_joules: float | None = Field(None, description="used by the rounds of one launch, idle not subtracted")
    energy_source: str = ""
    energy_inputs: int | None = Field(None, description="inputs that were run for it")
    energy_seconds: float | None = None
    memory_limit_bytes: int | None = None
    memory_limit_by: str | None = Field(None, description="cgroup v1 | cgroup v2 | checked afterwards")
    throughput_per_s: float | None = Field(None, description="examples per second")
    throughput_batch: int | None = None
    throughputs: list[dict[str, Any]] = Field(
        default_factory=list, description="sweep: batch, streams, per_s of each repetition"
    )
    scenarios: list[dict[str, Any]] = Field(default_factory=list, description="MLPerf-style runs, as LoadGen tells")
    placement: dict[str, Any] = Field(default_factory=dict, description="operators by type, as the runtime tells")
    frameworks: list[str] = Field(default_factory=list, description="heavy packages loaded in the measuring process")
    warnings: list[str] = Field(default_factory=list)
    not_measured: dict[str, str] = Field(
        default_factory=dict, description='what an ok row lacks -> why: "throughput", "end_to_end"'
    )
    outputs: np.ndarray | None = Field(
        None, exclude=True, repr=False, description="(n, labels) float32 of the examples; not part of the JSON"
    )
    examples: list[int] | None = Field(None, description="the examples of ``outputs``, ascending; null = all of them")

    @model_validator(mode="after")
    def _no_emulated_costs(self) -> Self:
        found = [name for name in COSTS if getattr(self, name) not in (None, [])]
        if self.evidence == "emulated" and found:
            raise ValueError(f"an emulated row has accuracy and agreement only, not {', '.join(found)}")
        return self

    @property
    def flat_ms(self) -> np.ndarray:
        """Every latency sample: (launches * rounds * inputs,) float64."""
        return np.array([ms for launch in self.samples_ms for row in launch for ms in row], dtype=np.float64)
