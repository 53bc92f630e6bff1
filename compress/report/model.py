"""The record of a run: exactly what ``report.json`` holds, and all that a rendering may know.

Whoever fills it computes; whoever renders it only formats. Conventions:

- accuracies, agreements and coefficients of variation are fractions from 0 to 1, differences are percentage points;
- a metric whose ``unit`` is "plain" (a correlation, an error) is kept and differenced in its own unit;
- sizes and memory are bytes, times say their unit in the name, intervals are 95 % unless a text says otherwise;
- what was not measured is null and has a reason: in ``reason`` of its row or target, or in ``not_measured``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, model_validator

from compress.report.engine_model import Engine as Engine
from compress.report.engine_model import EngineLayers as EngineLayers
from compress.report.frozen import Baseline as Baseline
from compress.report.frozen import Family as Family
from compress.report.frozen import Frozen as Frozen
from compress.report.frozen import Outcome as Outcome
from compress.report.frozen import Speedup as Speedup
from compress.report.frozen import Unit as Unit
from compress.report.int8_model import FloatReason as FloatReason
from compress.report.int8_model import Int8Candidate as Int8Candidate
from compress.report.int8_model import Int8Search as Int8Search
from compress.report.int8_model import Integers as Integers
from compress.report.int8_model import Saturation as Saturation
from compress.report.int8_model import SaturationRow as SaturationRow
from compress.report.int8_model import Sensitivity as Sensitivity
from compress.report.int8_model import SensitivityRecord as SensitivityRecord
from compress.report.int8_model import TrailStep as TrailStep
from compress.report.measured_model import ChangedExample as ChangedExample
from compress.report.measured_model import ClassSlice as ClassSlice
from compress.report.measured_model import EndToEnd as EndToEnd
from compress.report.measured_model import Energy as Energy
from compress.report.measured_model import Latency as Latency
from compress.report.measured_model import Lengths as Lengths
from compress.report.measured_model import Memory as Memory
from compress.report.measured_model import MemoryPhase as MemoryPhase
from compress.report.measured_model import Percentile as Percentile
from compress.report.measured_model import ScenarioResult as ScenarioResult
from compress.report.measured_model import Stage as Stage
from compress.report.measured_model import ThroughputPoint as ThroughputPoint

SCHEMA: Literal[2] = 2
COSTS = (
    "latency",
    "speedups",
    "end_to_end",
    "throughput_per_s",
    "load_ms",
    "first_ms",
    "throughputs",
    "scenarios",
    "energy",
    "memory",
    "peak_rss_bytes",
    "import_rss_bytes",
)
"""Fields of a row about time, memory and energy: an emulated row has none of them."""


class Deliverable(Frozen):
    """One leaf of the recipe and whether it may ship."""

    step: str
    verdict: Outcome | None = Field(None, description="of its gates together; null where it has none")
    text: str = Field(description='one line, e.g. "accuracy -0.66 points (limit 1.0): pass"')


class Verdict(Frozen):
    """The answer: which artifact to ship, and why."""

    step: str | None = Field(None, description="id of the step to ship; null if nothing may ship")
    target: str | None = Field(None, description="target on which it was chosen")
    headline: str = Field(description="one sentence")
    reasons: tuple[str, ...] = ()
    deliverables: tuple[Deliverable, ...] = ()


class Subject(Frozen):
    """The model that the recipe starts from."""

    model: str = Field(description="as the recipe writes it, variables unexpanded")
    hub: str | None = Field(None, description="its id on the Hugging Face hub, if it came from there")
    digest: str = Field(description="sha256 of its payload")
    task: str
    problem: str = Field(description="single_label, multi_label, regression")
    labels: int = Field(ge=0, description="number of labels; 0 for regression")
    parameters: int | None = Field(None, description="weights, elements")
    size_bytes: int | None = Field(None, description="graph and weights on disk")
    notes: tuple[str, ...] = Field((), description='e.g. "weights stored in float16, loaded as float32"')


class Parity(Frozen):
    """A step's outputs against those of its parent on the same real inputs."""

    reference: str = Field(description="id of the step compared with")
    samples: int = Field(ge=0)
    max_abs: float | None = Field(None, description="largest difference of an output")
    mean_abs: float | None = Field(None, description="mean difference of an output")
    cosine: float | None = Field(None, description="cosine similarity of the outputs")
    agreement: float | None = Field(None, description="share of equal predictions, 0 to 1")
    tolerance: str = Field("", description="what was demanded, in words; empty if nothing was")
    verdict: Outcome | None = Field(None, description="null where nothing was demanded")


class Gate(Frozen):
    """One condition on a step, decided on validation."""

    metric: str = "accuracy"
    unit: Unit = "percent"
    limit: str = Field(description='the condition in words, e.g. "at most 1.0 point below the model"')
    baseline: float | None = Field(None, description="value of the recipe's model, in the metric's unit")
    value: float | None = Field(None, description="value of this step, in the metric's unit")
    points: float | None = Field(None, description="value minus baseline, percentage points")
    low: float | None = Field(None, description="lower end of the paired interval, points")
    high: float | None = Field(None, description="upper end of the paired interval, points")
    n: int | None = Field(None, description="validation examples")
    verdict: Outcome
    delivered: bool = Field(description="whether the artifact is handed out")
    text: str = Field("", description="the verdict in a sentence")


class Widths(Frozen):
    """What an encoder kept in each of its layers; 0 where a whole sub-layer went."""

    layers: tuple[int, ...] = Field(description="positions of the layers that stay, from 0, in the incoming model")
    heads: tuple[int, ...] = Field(description="attention heads of each layer that stays")
    neurons: tuple[int, ...] = Field(description="feed-forward neurons of each layer that stays")
    full_layers: int = Field(description="layers of the dense model")
    full_heads: int = Field(description="heads of one of its layers")
    full_neurons: int = Field(description="neurons of one of its layers")

    @model_validator(mode="after")
    def _one_of_each(self) -> Widths:
        if not len(self.layers) == len(self.heads) == len(self.neurons):
            raise ValueError("layers, heads and neurons are not of one length")
        return self


class Step(Frozen):
    """One step of the recipe and what came of it."""

    id: str
    name: str = Field(description='name of the pass; "model" for the input')
    parents: dict[str, str] = Field(default_factory=dict, description="role -> step id")
    config: dict[str, JsonValue] = Field(default_factory=dict, description="resolved, flat")
    status: Literal["done", "failed", "skipped"] = "done"
    reason: str = Field("", description="why it failed or was skipped")
    kind: str | None = Field(None, description="torch, onnx, openvino, tensorrt")
    traits: tuple[str, ...] = Field((), description='what has been done so far, e.g. "pruned", "int8"')
    digest: str | None = Field(None, description="sha256 of the artifact's payload")
    cached: bool = Field(False, description="taken from the store")
    seconds: float | None = Field(None, description="wall time of the work, s (when it was done, if cached)")
    size_bytes: int | None = Field(None, description="graph and weights on disk")
    parameters: int | None = Field(None, description="stored weights, elements")
    macs: int | None = Field(None, description="multiply-accumulates of one 128-token input")
    parity: Parity | None = None
    gates: tuple[Gate, ...] = ()
    widths: Widths | None = Field(None, description="of a step that pruned an encoder")
    notes: dict[str, JsonValue] = Field(default_factory=dict, description="what the pass put on record")


class SplitRecord(Frozen):
    name: str
    source: str = Field(description="as the recipe writes it")
    hub: str | None = Field(None, description="id of its data set on the Hugging Face hub, if it came from there")
    rows: int
    digest: str = Field(description="sha256 over the normalised rows")


class OverlapRecord(Frozen):
    first: str
    second: str
    count: int = Field(description="rows whose normalised text stands in both")
    action: str = Field(description='"none found", "allowed", "dropped from train"')


class Calibration(Frozen):
    asked: int = Field(description="samples")
    used: int = Field(description="samples")


class Data(Frozen):
    synthetic: bool = Field(False, description="generated text: every rendering opens with a banner that says so")
    problem: str
    splits: tuple[SplitRecord, ...] = ()
    overlaps: tuple[OverlapRecord, ...] = ()
    evaluated: str = Field("test", description="split that the accuracies of the rows are on")
    preprocessing: str = Field("", description="what is done to an example before the model sees it, in words")
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


class Environment(Frozen):
    cpu: str
    flags: tuple[str, ...] = Field((), description="instruction sets that matter (avx2, avx512_vnni)")
    cores: int | None = Field(None, description="cores that the process may use")
    memory_bytes: int | None = None
    gpu: str | None = None
    os: str
    python: str
    packages: dict[str, str] = Field(default_factory=dict, description="distribution -> version")
    warnings: tuple[str, ...] = ()
    notes: dict[str, str] = Field(default_factory=dict, description="anything else, label -> value")


class TargetRecord(Frozen):
    """A place where variants were measured, or why they could not be."""

    name: str
    description: str = ""
    runtime: str
    device: str = "cpu"
    threads: int | None = Field(None, description="null = every core")
    memory_bytes: int | None = Field(None, description="limit of the measuring process")
    isa: str | None = Field(None, description="highest x86 level that kernels might use; null = all of the CPU's")
    evidence: str = "measured"
    available: bool = True
    reason: str = Field("", description="why it is not available")
    environment: Environment | None = Field(None, description="of the machine, where it is not the report's own")


class Accuracy(Frozen):
    metric: str = "accuracy"
    unit: Unit = Field(
        "percent", description='"percent": value is a fraction shown in percent; "plain": shown as it is'
    )
    direction: Literal["higher", "lower"] = Field("higher", description="which way is better")
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    right: int | None = Field(None, description="right answers among n; null where that makes no sense")
    calibration_error: float | None = Field(
        None, description="expected calibration error, 15 bins of equal width (Guo et al. 2017), 0 to 1"
    )


class Difference(Frozen):
    """Accuracy of this row minus that of the baseline step, paired on the same examples."""

    baseline: str = Field(description="step id")
    unit: Unit = "percent"
    points: float = Field(description="percentage points, or the metric's own unit if plain")
    low: float | None = None
    high: float | None = None
    p_value: float | None = Field(None, description="McNemar's exact test, or the bootstrap's")
    text: str = Field("", description='verdict in words, e.g. "within the noise"')


class Twin(Frozen):
    """The same artifact, with the same examples, on this machine's own processor."""

    target: str
    n: int = Field(ge=1, description="examples that both ran")
    same: int = Field(ge=0, description="of them, equal predictions")
    max_abs: float = Field(ge=0, description="largest difference of an output")


class Row(Frozen):
    """One step on one target, accuracy on test."""

    step: str
    target: str
    status: Literal["ok", "skipped", "failed", "oom"] = "ok"
    reason: str = Field("", description="why the status is not ok")
    evidence: str = Field("measured", description="measured, proxy, emulated, modelled, ingested")
    isa: str | None = Field(
        None, description="how the measuring CPU multiplies 8-bit integers: x86-vnni, x86-avx2, ..."
    )
    deliverable: bool = Field(False, description="a leaf whose gates did not fail")
    family: Family | None = Field(None, description="how the model became small: neither, pruned, or another student")
    accuracy: Accuracy | None = None
    difference: Difference | None = None
    agreement: float | None = Field(None, description="share of predictions equal to the reference's, 0 to 1")
    twin: Twin | None = Field(None, description="of an emulated row: what the artifact answers here")
    classes: tuple[ClassSlice, ...] = Field((), description="by true label, worst difference first")
    latency: Latency | None = Field(None, description="model only")
    speedups: dict[str, Speedup] = Field(default_factory=dict, description="name of the baseline -> ratio")
    end_to_end: EndToEnd | None = None
    throughput_per_s: float | None = Field(None, description="inputs per second, measured in batches")
    throughput_batch: int | None = Field(None, description="inputs per batch of the throughput")
    load_ms: float | None = Field(None, description="opening the artifact")
    first_ms: float | None = Field(None, description="first inference after opening")
    throughputs: tuple[ThroughputPoint, ...] = Field((), description="sweep over batches and streams")
    scenarios: tuple[ScenarioResult, ...] = ()
    energy: Energy | None = None
    memory: Memory | None = None
    peak_rss_bytes: int | None = Field(None, description="peak resident memory of the measuring process")
    import_rss_bytes: int | None = Field(None, description="resident memory before the artifact was opened")
    size_bytes: int | None = Field(None, description="graph and weights on disk")
    parameters: int | None = None
    pareto: bool = Field(False, description="no other row of this target is both faster and more accurate")
    integers: Integers | None = Field(None, description="of an INT8 artifact, where its runtime tells")
    findings: tuple[str, ...] = Field(
        (),
        description="why it is not faster: INT8 without a gain, half precision on a CPU, nodes of a GPU on the CPU",
    )
    warnings: tuple[str, ...] = ()
    not_measured: dict[str, str] = Field(
        default_factory=dict, description='what is null although the row is ok -> why, e.g. "throughput" -> reason'
    )

    @model_validator(mode="after")
    def _no_emulated_costs(self) -> Row:
        if self.evidence == "emulated":
            found = [name for name in COSTS if getattr(self, name) not in (None, (), {})]
            if found:
                raise ValueError(f"an emulated row has accuracy and agreement only, not {', '.join(found)}")
        return self


class LatencySearch(Frozen):
    """A ``prune`` step that searched for a latency: asked, predicted, measured by the search, measured here.

    All speed-ups are over the dense FP32 ONNX model on the same target, each of its own session.
    """

    step: str
    target: str
    deploy: str = Field(description="precision that was searched for: fp32, int8, fp16")
    budget: dict[str, float] = Field(description="speedup, latency_ms or max_drop_points -> what was asked")
    predicted: float = Field(gt=0, description="speed-up by the latency table")
    searched: Speedup = Field(description="as the search timed it")
    attempts: int = Field(ge=1, description="models that were built and timed")
    drift: float = Field(
        0.0, description="dense model's time while searching over that in the latency table, minus 1, where largest"
    )
    artifact: str | None = Field(None, description="the step made from it, at that precision, that was measured here")
    measured: Speedup | None = Field(None, description="of that step, in this report")
    measured_ms: float | None = Field(None, description="mean time of one input, in this report")
    error: float | None = Field(
        None, description="predicted over measured latency, each a share of the dense model's, minus 1"
    )
    met: bool | None = Field(None, description="whether the estimate keeps the budget; null where that is no time")
    verdict: Outcome | None = Field(None, description="the same for the whole interval")
    reason: str = Field("", description="why nothing was measured here")


class StudentMatch(Frozen):
    """A student beside the pruned model whose latency is nearest to its own, on one target."""

    target: str
    student: str = Field(description="step id")
    pruned: str = Field(description="step id")
    slower: float = Field(description="time of the pruned model over the student's, minus 1")
    difference: Difference = Field(description="student minus pruned model, paired on the same examples")
    winner: Family | None = Field(None, description="whose score is better beyond the interval; null if neither's")


class Reproduce(Frozen):
    commands: tuple[str, ...]
    recipe: str = Field(description="YAML of the resolved recipe, variables unexpanded")
    seed: int
    tolerance: str = Field("", description="how far another run may differ, in a sentence")
    commit: str | None = Field(None, description="of mcompress, if it ran from a checkout")
    dirty: bool | None = Field(None, description="whether that checkout had changes that were not committed")
    installed: str | None = Field(None, description="sha256 of all installed distributions and their versions, sorted")


class Report(Frozen):
    """Everything that ``report.json`` holds."""

    schema_version: Literal[2] = SCHEMA
    version: str = Field(description="of mcompress")
    title: str
    recipe: str = Field(description="name of the recipe")
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}Z)?$", description="ISO 8601, UTC")
    verdict: Verdict
    subject: Subject
    steps: tuple[Step, ...]
    data: Data
    targets: tuple[TargetRecord, ...]
    rows: tuple[Row, ...]
    stages: tuple[Stage, ...] = Field((), description="from the model to the artifact to ship, target by target")
    searches: tuple[LatencySearch, ...] = ()
    int8: tuple[Int8Search, ...] = ()
    engines: tuple[Engine, ...] = ()
    students: tuple[StudentMatch, ...] = ()
    sensitivities: tuple[SensitivityRecord, ...] = ()
    baselines: dict[str, Baseline] = Field(default_factory=dict, description="name -> where it was measured, in order")
    environment: Environment
    reproduce: Reproduce
    examples: tuple[ChangedExample, ...] = Field((), description="dataset text: empty unless it was asked for")
    limits: tuple[str, ...] = Field((), description="sentences that a reader must know before trusting a number")
