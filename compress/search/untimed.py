"""Choose an INT8 form for a runtime on a GPU: by accuracy alone, which needs no GPU.

TensorRT takes precision from the graph, so the graph that is written can be judged in ONNX Runtime on a CPU: its
QuantizeLinear/DequantizeLinear pairs are computed as they stand, in float, and FP16 is rounded as a GPU rounds it.
How fast the engine is, only its GPU says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.bench.protocol import Inspection
from compress.quantization.attention import find_attention
from compress.quantization.graph import Graph
from compress.quantization.rules import Seen
from compress.quantization.variants import Variants
from compress.runtimes.cuda import why_no_cuda
from compress.search.int8_candidates import Candidate, Form, Rest
from compress.search.quantizing import Int8Search

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

FORM = Form("static", "every token", "qdq")
"""The one form: everything in 8 bits that the rules let through."""


def why_untimed() -> str:
    """Say why candidates are not timed."""
    return "not timed: no GPU" if why_no_cuda() else "not timed: an engine is built of the choice only"


@dataclass
class UntimedSearch(Int8Search):
    """A search that knows no times: the most accurate ranges of one form, and what its rescue costs.

    Attributes:
        rest: precision of what is not in 8 bits, in the graph that is delivered. Candidates have float32 there; the
            chosen one is scored once more as it is delivered.
    """

    rest: Rest = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._graphs, self._best_cut = {"every token": self.model}, "every token"
        self._variants = Variants(self.model, self.threads, as_written=True)
        self._delivered: tuple[Candidate, onnx.ModelProto] | None = None
        self.rest_notes: dict[str, Any] = {}
        """What the cast to FP16 noted of the graph that is delivered; empty where the rest is float32."""

    def run(self) -> Candidate:
        """Score the candidates and return the chosen one, see ``Int8Search.run``."""
        chosen = super().run()
        if self.rest == "float32":
            return chosen
        return self.consider(replace(chosen, form=replace(chosen.form, rest="float16")))

    def consider(self, candidate: Candidate) -> Candidate:
        """Write, run and score a candidate on validation; keep it on record and return it."""
        super().consider(candidate)
        self.candidates[-1] = replace(self.candidates[-1], integer_share=self._share(candidate))
        return self.candidates[-1]

    def write(self, candidate: Candidate, weight_bits: Literal[7, 8] | None = None) -> onnx.ModelProto:
        """Return the graph of a candidate."""
        if candidate.form.rest == "float32":
            return super().write(candidate, weight_bits)
        key = replace(candidate, size_bytes=0, drop=None, integer_share=None)
        if self._delivered is None or self._delivered[0] != key:
            self._delivered = key, self._half(super().write(candidate, weight_bits))
        return self._delivered[1]

    def seen(self, candidate: Candidate) -> Seen:
        """Return the longest example, and how many values of each activation 8 bits lose."""
        calibration = self._calibrated(candidate.form.cut, candidate.smoothing)
        if not self.validation.fixed:
            return Seen(self.task.max_length, calibration.vanishing())
        attentions, peaks = find_attention(Graph(self.model)), calibration.channel_peaks()
        lengths = [peaks[it.context.input[0]].size for it in attentions if it.context.input[0] in peaks]
        return Seen(max(lengths, default=None), calibration.vanishing())

    def saturation(self, chosen: Candidate) -> None:
        """Return nothing: integer tensor cores add in 32 bits."""

    def notes(self, chosen: Candidate) -> dict[str, Any]:
        """Return what a manifest records of the search."""
        notes = super().notes(chosen)
        kept = chosen.loss <= self.max_drop + 1e-9
        return notes | {"kept": kept, "not_timed": why_untimed(), "float32": {"value": self._score.value}}

    def _half(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Cast what is not in 8 bits to FP16, but for what exceeds it on the calibration examples."""
        from compress.quantization.fp16 import cast_fp16
        from compress.quantization.half_ranges import measure_ranges

        self.emit(f"measuring ranges for FP16 on {len(self.calibration)} examples")
        cast, self.rest_notes = cast_fp16(model, ranges=measure_ranges(model, self.calibration))
        return cast

    def _time(self, examples: Sequence[Candidate]) -> None:
        """Time nothing."""

    def _plain(self) -> Iterable[Candidate]:
        """Yield the form with every way to choose ranges."""
        yield from (Candidate(FORM, it) for it in (("minmax",) if self._convolutional else self.limits.observers))

    def _smooth(self) -> None:
        """Try SmoothQuant only where no plain candidate keeps the limit: it adds operators whose cost is unknown."""
        if self._chosen() is None:
            super()._smooth()

    def _chosen(self) -> Candidate | None:
        """Return the most accurate candidate that keeps the limit; of equals the first that was tried."""
        kept = [it for it in self.candidates if it.loss <= self.max_drop + 1e-9]
        return min(kept, key=lambda it: it.loss, default=None)

    def _share(self, candidate: Candidate) -> float | None:
        """Return the share of the linear layers' multiply-accumulates, each for one token, that is placed in int8."""
        if self._convolutional:
            return None
        placed = self.placements(candidate)
        total = sum(it.macs for it in placed)
        return sum(it.macs for it in placed if it.precision == "int8") / total if total else None

    def _inspect(self, model: onnx.ModelProto) -> Inspection:
        from compress.export.signature import traits_of
        from compress.quantization.half_emulation import emulate_half

        half = "fp16" in traits_of(model)
        outputs = self._variants.run(emulate_half(model) if half else model, self.validation)
        return Inspection(np.asarray(outputs, dtype=np.float32), 0, {})
