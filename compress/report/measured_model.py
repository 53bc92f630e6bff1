"""What the record says of one row's times, memory, throughput and classes, each under one definition."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.report.frozen import Frozen, Speedup, Unit

Scenario = Literal["single-stream", "offline", "server"]
Phase = Literal["import", "load", "first", "steady", "peak"]


class Percentile(Frozen):
    """One percentile with its order-statistic interval; hidden where the samples cannot bear it."""

    q: float = Field(gt=0, lt=100)
    value_ms: float | None = Field(None, description="null where it is hidden")
    low_ms: float | None = None
    high_ms: float | None = None
    reason: str = Field("", description="why it is hidden")


class Lengths(Frozen):
    """Tokens of the timed inputs, which decide most of their time."""

    least: int = Field(ge=0)
    median: float
    most: int


class Latency(Frozen):
    """Time of one input after another, batch 1, one in flight."""

    p50_ms: float
    p90_ms: float | None = None
    mean_ms: float | None = None
    cv: float | None = Field(None, description="standard deviation of the rounds over their mean")
    device_ms: float | None = Field(
        None, description="median of the kernels alone, by the GPU's own clock, in runs apart from the rounds"
    )
    inputs: int = Field(description="different real inputs")
    rounds: int = Field(description="times that all of them were run, over all launches")
    launches: int = Field(1, ge=1, description="fresh processes")
    tokens: Lengths | None = Field(None, description="lengths of the inputs, truncated; null where not recorded")
    warmup_s: float | None = Field(
        None, description="untimed running before the rounds of a launch, median of launches; s"
    )
    percentiles: tuple[Percentile, ...] = ()
    stability: Literal["stable", "drifting", "noisy"] | None = Field(None, description="verdict on the rounds")
    stability_text: str = Field("", description="the verdict in a sentence")
    quantiles_ms: tuple[float, ...] = Field((), description="at 0, 1, ..., 100 % of all samples, for a plot")


class EndToEnd(Frozen):
    """The same sequence on the second clock: preprocess, copy, run, decode."""

    latency: Latency
    speedups: dict[str, Speedup] = Field(default_factory=dict, description="name of the baseline -> ratio")
    overhead_ms: float | None = Field(None, description="mean end to end minus mean of the model alone, ms")


class MemoryPhase(Frozen):
    """Resident memory of the measuring process at one moment; virtual memory is never counted."""

    name: Phase
    rss_bytes: int = Field(description="resident set size")
    anonymous_bytes: int | None = Field(None, description="of it: heap and stacks (RssAnon)")
    mapped_bytes: int | None = Field(None, description="of it: files mapped into memory (RssFile)")


class Memory(Frozen):
    """Memory of one fresh process, by definition."""

    phases: tuple[MemoryPhase, ...] = ()
    load_growth_bytes: int | None = Field(None, description="resident growth while the artifact was opened: weights")
    peak_over_import_bytes: int | None = Field(None, description="peak resident minus resident after the imports")
    gpu_allocator_bytes: int | None = Field(None, description="peak by the framework's own allocator")
    gpu_process_bytes: int | None = Field(None, description="peak of the process as the driver sees it")


class ThroughputPoint(Frozen):
    """Inputs per second with the device kept busy; measured, never 1 / latency."""

    batch: int = Field(ge=1, description="inputs per batch")
    streams: int = Field(1, ge=1, description="batches in flight at once")
    per_s: float
    low: float | None = None
    high: float | None = None
    best: bool = False


class ScenarioResult(Frozen):
    """One MLPerf-style scenario, driven by LoadGen; not an MLPerf result."""

    scenario: Scenario
    value: float | None = Field(None, description="ms (single-stream) or inputs per second; null if it was not reached")
    unit: Literal["ms", "per s"]
    percentile: float | None = Field(None, description="percentile that the value or the bound is about")
    bound_ms: float | None = Field(None, description="server: the latency that the percentile must keep")
    observed_ms: float | None = Field(None, description="server: that percentile at the value")
    queries: int | None = None
    seconds: float | None = None
    valid: bool = Field(description="whether LoadGen's own conditions for this shortened run held")
    text: str = Field("", description="in a sentence, with what invalidates it")


class Energy(Frozen):
    joules_per_input: float
    source: str = Field(description='counter that was read, e.g. "RAPL package", "NVML"')
    watts: float | None = Field(None, description="mean power while it ran, idle not subtracted")


class ClassSlice(Frozen):
    """Examples of one true label: the share answered right, and against the reference on the same examples."""

    label: str
    n: int
    right: int
    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = Field(None, description="the reference's share")
    points: float | None = Field(None, description="value minus reference, percentage points")
    points_low: float | None = None
    points_high: float | None = None
    text: str = Field("", description="verdict in words")


class Stage(Frozen):
    """One stage on the way from the model to an artifact, on one target: a bar of the waterfall."""

    step: str
    target: str
    what: str = Field(description='the pass in a few words, e.g. "distil"')
    latency_ms: float | None = Field(None, description="mean time of one input")
    size_bytes: int | None = None
    accuracy: float | None = Field(None, description="in the metric's unit")
    unit: Unit = "percent"
    speedup: float | None = Field(None, description="over the first stage")
    gain: float | None = Field(None, description="over the stage before")
    size_ratio: float | None = Field(None, description="size over that of the first stage")
    points: float | None = Field(None, description="accuracy minus that of the stage before")
    reason: str = Field("", description="why it has no time on this target")


class ChangedExample(Frozen):
    """An example that the shipped artifact answers otherwise than the reference; only with ``--examples``."""

    text: str
    answer: str = Field(description="its label")
    reference: str = Field(description="what the reference said")
    prediction: str = Field(description="what the artifact said")
