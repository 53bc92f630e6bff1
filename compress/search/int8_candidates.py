"""INT8 forms of a graph: what each was measured to be, which is chosen, which no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.bench.statistics import PairedDifference
from compress.quantization.ranges import OBSERVERS, Observer
from compress.quantization.rules import Method
from compress.quantization.smoothing import Formula
from compress.search.deploy import Speedup

Goal = Literal["latency", "accuracy"]
Cut = Literal["every token", "first token"]
Layout = Literal["qdq", "integer", "fused"]
Rest = Literal["float32", "float16"]
_TIE = 0.03
"""Speed-ups closer than this share are a tie, which accuracy decides."""


@dataclass(frozen=True)
class Form:
    """How a graph computes, apart from its numbers: what decides its speed.

    Attributes:
        method: ranges of activations at run time, or calibrated.
        cut: whether the last layer computes every token, or the first only (exact for a classifier).
        layout: QDQ pairs, ONNX Runtime's integer operators, or these with fused attention.
        smoothed: whether tensors are multiplied by SmoothQuant's scales at run time.
        restored: how many nodes sensitivity put back to float32.
        rest: precision of what is not in 8 bits.
    """

    method: Method
    cut: Cut
    layout: Layout
    smoothed: bool = False
    restored: int = 0
    rest: Rest = "float32"

    @property
    def label(self) -> str:
        """What a report calls it."""
        parts = [self.method, self.layout, self.cut, "smoothed" if self.smoothed else ""]
        parts += [
            f"{self.restored} restored" if self.restored else "",
            "rest in FP16" if self.rest == "float16" else "",
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Smoothing:
    """How outliers of activations move into weights, see ``compress.quantization.smoothing``.

    Attributes:
        formula, alpha: of the scales.
        copies: whether tensors are smoothed that need a Mul at run time.
    """

    formula: Formula
    alpha: float
    copies: bool = True

    @property
    def label(self) -> str:
        """What a report calls it."""
        name = "SmoothQuant" if self.formula == "smoothquant" else "smoothing by activations"
        return f"{name}, alpha {self.alpha:g}" + ("" if self.copies else ", where it is free")


SMOOTHINGS = (
    Smoothing("activations", 0.6),
    Smoothing("smoothquant", 0.75),
    Smoothing("smoothquant", 0.5, copies=False),
)
"""What is tried: on MiniLM-L6 the first two bring logits 5 to 7 dB closer to float32, at 2 to 4 % of the speed; the
third costs nothing and evens out values of attention. SmoothQuant below 0.6 loses accuracy there."""


@dataclass(frozen=True)
class Candidate:
    """A form with its numbers, and what was measured of it.

    Attributes:
        observer: how ranges were chosen; None = at run time.
        smoothing: None = without.
        restored: node -> reason: what sensitivity put back to float32.
        size_bytes: of the graph.
        speedup: of its form, over the float32 graph as it came.
        drop: loss of the metric against the float32 graph, paired, in its own unit; negative is a gain.
        integer_share: share of the linear layers' multiply-accumulates in integer kernels; None if unknown.
    """

    form: Form
    observer: Observer | None = None
    smoothing: Smoothing | None = None
    restored: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    speedup: Speedup | None = None
    drop: PairedDifference | None = None
    integer_share: float | None = None

    @property
    def ratio(self) -> float:
        """Speed-up, 0 where it was not timed."""
        return self.speedup.value if self.speedup else 0.0

    @property
    def loss(self) -> float:
        """Loss of the metric, infinite where it was not scored."""
        return self.drop.value if self.drop else float("inf")

    def proves(self, max_drop: float) -> bool:
        """Say whether the whole interval of the loss keeps a limit."""
        return self.drop is not None and self.drop.high <= max_drop

    @property
    def label(self) -> str:
        """What a report calls it."""
        smoothing = self.smoothing.label if self.smoothing else ""
        return ", ".join(filter(None, (self.form.label, self.observer, smoothing)))


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep, and what it is chosen by.

    Attributes:
        max_drop_points: largest loss of the metric on validation, in points of a 0-100 scale; an error metric may
            rise by 2 % instead.
        goal: ``latency`` takes the fastest, ``accuracy`` the most accurate that is faster than float32.
        weight_bits: 7 or 8.
        per_channel: scales of weights.
        tables: whether embedding tables are stored in 8 bits.
        excluded: node -> reason: what stays in float32 in every candidate.
        observers: ways to choose ranges that are tried.
        smoothings: what is tried where no plain candidate keeps the limit beyond doubt.
        ranked: validation examples that sensitivity is measured on.
    """

    max_drop_points: float = 1.0
    goal: Goal = "latency"
    weight_bits: Literal[7, 8] = 8
    per_channel: bool = True
    tables: bool = True
    excluded: Mapping[str, str] = field(default_factory=dict)
    observers: tuple[Observer, ...] = OBSERVERS
    smoothings: tuple[Smoothing, ...] = SMOOTHINGS
    ranked: int = 32


def choose(candidates: Sequence[Candidate], max_drop: float, goal: Goal) -> Candidate | None:
    """Return the best candidate whose estimated loss keeps the limit; None if none does.

    Latency: among those within 3 % of the fastest, the most accurate. Accuracy: the most accurate of those that are
    faster than float32, of all if none is; ties go to the faster.
    """
    kept = [it for it in candidates if it.drop is not None and it.speedup is not None and it.loss <= max_drop + 1e-9]
    if not kept:
        return None
    if goal == "latency":
        fastest = max(it.ratio for it in kept)
        kept = [it for it in kept if it.ratio >= fastest * (1 - _TIE)]
    else:
        kept = [it for it in kept if it.ratio > 1.0] or kept
    return min(kept, key=lambda it: (it.loss, -it.ratio, it.label))


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other beats: at least as fast and as accurate, and better in one."""
    known = [it for it in candidates if it.drop is not None and it.speedup is not None]

    def beaten(it: Candidate) -> bool:
        return any(
            other.ratio >= it.ratio and other.loss <= it.loss and (other.ratio > it.ratio or other.loss < it.loss)
            for other in known
        )

    return [it for it in known if not beaten(it)]


def candidate_record(candidate: Candidate, chosen: bool, front: bool) -> dict[str, Any]:
    drop = candidate.drop
    return {
        "label": candidate.label,
        "form": asdict(candidate.form),
        "observer": candidate.observer,
        "smoothing": candidate.smoothing and asdict(candidate.smoothing),
        "restored": len(candidate.restored),
        "size_bytes": candidate.size_bytes,
        "speedup": candidate.speedup and speedup_record(candidate.speedup),
        "drop": drop and {"value": drop.value, "low": drop.low, "high": drop.high},
        "integer_share": candidate.integer_share,
        "chosen": chosen,
        "pareto": front,
    }


def speedup_record(it: Speedup) -> dict[str, float]:
    return {"ratio": it.value, "low": it.low, "high": it.high, "ms": it.ms, "dense_ms": it.dense_ms}
