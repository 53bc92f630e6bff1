"""The part of the record that is about INT8: what runs on integers, what was tried, what stays in float32."""

from __future__ import annotations

from pydantic import Field

from compress.report.frozen import Frozen, Speedup, Unit


class Integers(Frozen):
    """What a runtime computes on integers, from the graph that it really runs."""

    mac_share: float | None = Field(
        None,
        description="share of the linear layers' multiply-accumulates, each counted for one token; null without any",
    )
    integer_products: int = Field(0, description="linear layers that multiply integers")
    float_products: int = Field(0, description="linear layers that do not: float islands")
    attention_products: int | None = Field(None, description="float products of two activations")
    conversions: int | None = Field(None, description="nodes that only change the type of a tensor")
    folded: int | None = Field(None, description="products that the file stores in 8 bits and that run in float32")


class Int8Candidate(Frozen):
    """One INT8 form that a ``quantize`` step tried."""

    label: str
    speedup: Speedup | None = Field(None, description="over the FP32 graph that came in, as the step timed its form")
    points: float = Field(description="metric minus that of the FP32 graph on validation, points (or its own unit)")
    low: float | None = None
    high: float | None = None
    size_bytes: int | None = None
    mac_share: float | None = Field(None, description="see Integers")
    pareto: bool = False
    chosen: bool = False


class FloatReason(Frozen):
    """Why nodes stay in float32."""

    reason: str
    operators: dict[str, int] = Field(description="operator -> how many nodes")
    example: str = Field("", description="name of one of them")


class SaturationRow(Frozen):
    """One model with and without exact products, on the same examples."""

    weight_bits: int
    max_difference: float = Field(description="largest difference of an output")
    largest_output: float
    decisions_changed: int
    examples: int


class Saturation(Frozen):
    """Whether 8-bit products saturate on this machine, what that costs, and what was done about it."""

    isa: str
    saturates: bool
    error: int = Field(description="of one 64-term sum of 255 * 127, in units of its last bit")
    remedy: str
    rows: tuple[SaturationRow, ...] = Field((), description="the model with 8-bit and 7-bit weights")


class TrailStep(Frozen):
    """One measured step of a rescue: what was changed, and what the gate said."""

    action: str
    points: float
    low: float | None = None
    high: float | None = None
    holds: bool


class Int8Search(Frozen):
    """A ``quantize`` step that chose its form by measurement."""

    step: str
    target: str
    isa: str = Field(description="instruction set that its rules are for")
    flags: tuple[str, ...] = ()
    goal: str
    max_drop: float = Field(description="points of the metric (or its own unit) that the choice may lose")
    examples: int = Field(description="validation examples")
    kept: bool = Field(description="whether the choice keeps the limit, by the estimate")
    unit: Unit = "percent"
    candidates: tuple[Int8Candidate, ...]
    forms: dict[str, Speedup] = Field(default_factory=dict, description="form -> speed-up, timed side by side")
    not_timed: str = Field("", description="why no form was timed; empty where they were")
    calibration_examples: int | None = None
    calibration_peak_rss_bytes: int | None = Field(None, description="of the process that ran them")
    float_peak_rss_bytes: int | None = Field(None, description="of the process that ran FP32 on validation")
    reasons: tuple[FloatReason, ...] = Field((), description="of the choice: what stays in float32, and why")
    saturation: Saturation | None = None
    trail: tuple[TrailStep, ...] = ()


class Sensitivity(Frozen):
    """What one product of a network loses when it alone runs in 8 bits."""

    node: str
    operator: str = Field(description="MatMul, Gemm or Gather")
    sqnr_db: float = Field(description="signal to quantization noise of the outputs, dB; 200 = equal outputs")
    kl: float | None = Field(None, description="mean divergence of the predictions, nats; null for a single output")
    drop_points: float | None = Field(None, description="loss of the metric, points, positive = worse; null unlabelled")
    macs_share: float = Field(description="part of the multiply-accumulates of all linear layers, 0 to 1")
    noise_share: float = Field(description="part of the noise of all products, 0 to 1, as if noises added up")
    activation_sqnr_db: float | None = Field(None, description="with only its activation rounded, dB")
    weight_sqnr_db: float | None = Field(None, description="with only its weight rounded, dB")
    excluded: str = Field("", description="why it stays in float32; empty if it runs in 8 bits")


class SensitivityRecord(Frozen):
    """How sensitive the products of a step are to 8 bits, each measured alone, worst first."""

    step: str
    rows: tuple[Sensitivity, ...]
    examples: int | None = Field(None, description="examples that it was measured on; null = not recorded")
    together_db: float | None = Field(None, description="signal to noise with all of them in 8 bits, dB")
