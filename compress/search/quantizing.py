"""Try the INT8 forms that can win on a target, measure them side by side, and choose one under an accuracy gate."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.bench.protocol import Emit, Inspection, inspect, silent
from compress.bench.statistics import Interval, paired_difference
from compress.data.encoded import Encoded
from compress.errors import DataError
from compress.quantization.calibration import Calibration, calibrate
from compress.quantization.first_token import keep_first_token
from compress.quantization.int8 import is_convolutional, quantize_static
from compress.quantization.ranges import Observer, Range
from compress.quantization.rules import Method, Placement, Rules, Seen, place, quantized_inputs
from compress.quantization.saturation import probe
from compress.quantization.sensitivity import Probe, Sensitivity, measure_sensitivity, sensitivity_notes
from compress.quantization.smoothing import smooth
from compress.quantization.writing import Int8Format, write_int8
from compress.runtimes.target import Target
from compress.search.deploy import Speedup, measure_speedup, spread_over_lengths
from compress.search.excluding import DropGate, exclude_by_sensitivity, exclusion_reasons
from compress.search.int8_candidates import (
    Candidate,
    Cut,
    Form,
    Layout,
    Limits,
    Smoothing,
    candidate_record,
    choose,
    pareto,
    speedup_record,
)
from compress.tasks.base import Score, Task

if TYPE_CHECKING:
    import onnx


_UNKNOWN = Interval(float("inf"), float("inf"), float("inf"))


@dataclass
class Int8Search:
    """A search over INT8 forms of one float32 graph for one target.

    Attributes:
        source: the ONNX artifact that is quantized.
        model: its graph.
        task: scores outputs.
        calibration, validation: encoded examples; the second with targets.
        target: where candidates run.
        rules: of the target's runtime.
        limits: gate, goal and numbers.
        work: existing folder for intermediate files.
        threads: for calibration.
        candidates: what was scored so far.
        ranking: how sensitive the products of the choice are, most sensitive first.
        converted: what ONNX Runtime's quantizer noted of a convolutional network.
    """

    source: Artifact
    model: onnx.ModelProto
    task: Task
    calibration: Encoded
    validation: Encoded
    target: Target
    rules: Rules
    limits: Limits
    work: Path
    threads: int = 1
    seed: int = 0
    emit: Emit = silent
    candidates: list[Candidate] = field(default_factory=list)
    ranking: list[Sensitivity] = field(default_factory=list)
    converted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.validation.targets is None:
            raise DataError(
                "Choosing among INT8 forms needs labels on validation.",
                value="data.validation",
                fix="Give validation rows labels, or set `method: dynamic` or `method: static`.",
            )
        self._convolutional = is_convolutional(self.model)
        short = keep_first_token(self.model)
        self._graphs: dict[Cut, onnx.ModelProto] = {"every token": self.model}
        if short is not None:
            self._graphs["first token"] = short
        self._best_cut: Cut = "every token" if short is None else "first token"
        self._calibrations: dict[tuple[Cut, Smoothing | None], Calibration] = {}
        self._smoothed: dict[tuple[Cut, Smoothing], onnx.ModelProto] = {}
        self._speedups: dict[Form, Speedup] = {}

    def run(self) -> Candidate:
        """Time the forms, score the candidates, and return the chosen one.

        Where no plain candidate keeps the limit beyond doubt, SmoothQuant is tried; where none keeps it at all, the
        most sensitive nodes go back to float32 until one does. If nothing helps, it is the one that loses least.
        """
        self.emit("running the float32 model on validation")
        self._reference = self._inspect(self.model)
        self._score = self._scored(self._reference)
        self._time([Candidate(form, "minmax" if form.method == "static" else None) for form in self._forms()])
        for candidate in self._plain():
            self.consider(candidate)
        if not self._convolutional and not any(it.proves(self.max_drop) for it in self.candidates):
            self._smooth()
        chosen = self._chosen() or min(self.candidates, key=lambda it: (it.loss, -it.ratio))
        if self._convolutional:
            return chosen
        self.ranking = self._rank(chosen)
        return chosen if self._chosen() else self._restore(chosen)

    def _chosen(self) -> Candidate | None:
        return choose(self.candidates, self.max_drop, self.limits.goal)

    @property
    def max_drop(self) -> float:
        """Largest loss that a candidate may have, in the metric's own unit."""
        higher = self._score.direction == "higher"
        return self.limits.max_drop_points / 100.0 if higher else 0.02 * abs(self._score.value)

    def _forms(self) -> list[Form]:
        """Return what is worth timing: every layout on the shorter graph, and the usual one on the given graph.

        A convolutional network has one form: ONNX Runtime's quantizer, which knows what stands between convolutions.
        """
        if self._convolutional:
            return [Form("static", "every token", "qdq")]
        layouts: dict[Method, list[Layout]] = {"static": ["qdq"], "dynamic": []}
        if self.rules.fused:
            layouts = {"static": ["qdq", "integer", "fused"], "dynamic": ["integer", "fused"]}
        forms = [Form(m, self._best_cut, layout) for m in self.rules.methods for layout in layouts[m]]
        if self._best_cut != "every token":
            forms += [Form(m, "every token", layouts[m][0]) for m in self.rules.methods if layouts[m]]
        return forms

    def _time(self, examples: Sequence[Candidate]) -> None:
        """Time one candidate of each form, side by side."""
        with ExitStack() as stack:
            dense, *artifacts = (self._artifact(it, stack) for it in (self.model, *map(self.write, examples)))
            self.emit("timing INT8 forms side by side")
            rows = measure_speedup(
                artifacts, dense, self.validation, self.target, work=self.work, seed=self.seed, emit=self.emit
            )
        self._speedups |= dict(zip((it.form for it in examples), rows, strict=True))

    def _plain(self) -> Iterable[Candidate]:
        """Yield the fastest form of each method with every way to choose ranges."""
        for method in self.rules.methods:
            forms = [form for form in self._speedups if form.method == method]
            if not forms:
                continue
            fastest = max(forms, key=lambda form: self._speedups[form].value)
            observers: Sequence[Observer | None] = self.limits.observers if method == "static" else (None,)
            if self._convolutional:
                observers = ("minmax",)
            yield from (Candidate(fastest, observer) for observer in observers)

    def _smooth(self) -> None:
        """Try SmoothQuant on the fastest static form, with the ranges that lost least."""
        static = [it for it in self.candidates if it.form.method == "static"]
        if not static:
            return
        best = min(static, key=lambda it: it.loss)
        for smoothing in self.limits.smoothings:
            candidate = replace(best, form=replace(best.form, smoothed=smoothing.copies), smoothing=smoothing)
            if candidate.form not in self._speedups:
                self._time([candidate])
            self.consider(candidate)

    def _rank(self, candidate: Candidate) -> list[Sensitivity]:
        """Return how much each product of a candidate loses alone, most sensitive first."""
        chosen = spread_over_lengths(self.validation.lengths, self.limits.ranked)
        self.emit(f"measuring sensitivity on {len(chosen)} examples")
        probe = Probe(
            self._graph(candidate.form.cut, candidate.smoothing),
            self.validation.select(chosen),
            ranges=self._ranges(candidate),
            how=self._format(replace(candidate.form, layout="integer" if self.rules.fused else "qdq")),
            task=self.task,
            threads=self.threads,
        )
        return measure_sensitivity(probe, self.placements(candidate), emit=self.emit)

    def _restore(self, candidate: Candidate) -> Candidate:
        """Put the most sensitive nodes of a candidate back to float32 until the limit is kept; time what comes out."""
        scale = 100.0 if self._score.direction == "higher" else 1.0
        tried: dict[frozenset[str], Candidate] = {frozenset(): candidate}

        def measure(names: frozenset[str]) -> Interval:
            if names not in tried:
                reasons = exclusion_reasons([row for row in self.ranking if row.node in names])
                form = replace(candidate.form, restored=len(names))
                tried[names] = self.consider(replace(candidate, form=form, restored=reasons, speedup=None, drop=None))
            drop = tried[names].drop
            return Interval(*(scale * value for value in (drop.value, drop.low, drop.high))) if drop else _UNKNOWN

        found = exclude_by_sensitivity(self.ranking, measure, DropGate(scale * self.max_drop))
        best = tried[frozenset(found.excluded)]
        self._time([best])
        timed = replace(best, speedup=self._speedups.get(best.form))
        self.candidates = [timed if it is best else it for it in self.candidates]
        return timed

    def consider(self, candidate: Candidate) -> Candidate:
        """Write, run and score a candidate on validation; keep it on record and return it."""
        self.emit(f"scoring INT8: {candidate.label}")
        model = self.write(candidate)
        seen = self._inspect(model)
        score = self._scored(seen)
        sign = 1.0 if score.direction == "higher" else -1.0
        found = replace(
            candidate,
            size_bytes=model.ByteSize(),
            speedup=self._speedups.get(candidate.form),
            drop=paired_difference(sign * score.outcomes, sign * self._score.outcomes, seed=self.seed),
            integer_share=seen.placement.get("integer_mac_share"),
        )
        self.candidates.append(found)
        return found

    def write(self, candidate: Candidate, weight_bits: Literal[7, 8] | None = None) -> onnx.ModelProto:
        """Return the graph of a candidate; ``weight_bits`` other than the limits' are for comparison."""
        if self._convolutional:
            return self._quantize_convolutions(weight_bits or self.limits.weight_bits)
        graph = self._graph(candidate.form.cut, candidate.smoothing)
        how = self._format(candidate.form, weight_bits)
        return write_int8(graph, self.placements(candidate), self._ranges(candidate), how)

    def _ranges(self, candidate: Candidate) -> dict[str, Range] | None:
        if candidate.observer is None:
            return None
        return self._calibrated(candidate.form.cut, candidate.smoothing).ranges(candidate.observer)

    def _format(self, form: Form, weight_bits: Literal[7, 8] | None = None) -> Int8Format:
        return Int8Format(
            form="qdq" if form.layout == "qdq" else "integer",
            weight_bits=weight_bits or self.limits.weight_bits,
            per_channel=self.limits.per_channel,
            activation=self.rules.activation,
            fused=form.layout == "fused",
        )

    def _quantize_convolutions(self, weight_bits: int) -> onnx.ModelProto:
        quantized, self.converted = quantize_static(
            self.model,
            self.calibration,
            per_channel=self.limits.per_channel,
            reduce_range=weight_bits == 7,
            activation=self.rules.activation,
            exclude=tuple(self.limits.excluded),
        )
        return quantized

    def placements(self, candidate: Candidate) -> list[Placement]:
        """Return where each node of a candidate runs, and why."""
        excluded = {**self.limits.excluded, **candidate.restored}
        graph = self._graph(candidate.form.cut, candidate.smoothing)
        return place(graph, self.rules, excluded=excluded, tables=self.limits.tables, seen=self.seen(candidate))

    def seen(self, candidate: Candidate) -> Seen | None:
        """Return what the rules need to know of a candidate's inputs; those of CPUs need nothing."""
        return None

    def saturation(self, chosen: Candidate) -> dict[str, Any] | None:
        """Return what ``saturation.probe`` finds in the chosen form, on up to 64 validation examples."""
        few = self.validation.select(range(min(64, len(self.validation))))

        def write(bits: Literal[7, 8]) -> onnx.ModelProto:
            return self.write(chosen, weight_bits=bits)

        return probe(write, few, self.limits.weight_bits, self.target)

    def trail(self) -> list[dict[str, Any]]:
        """Return how the limit was reached, step by step; empty where a plain candidate kept it."""
        plain = [it for it in self.candidates if it.smoothing is None and not it.restored]
        rescued = [it for it in self.candidates if it not in plain]
        steps = [min(plain, key=lambda it: it.loss), *rescued] if rescued else []
        return [
            {
                "action": _action(it),
                "drop": it.drop.value,
                "low": it.drop.low,
                "high": it.drop.high,
                "holds": it.loss <= self.max_drop,
            }
            for it in steps
            if it.drop is not None
        ]

    def sensitivity(self, chosen: Candidate) -> dict[str, Any]:
        """Return the notes on sensitivity, with the reasons of what the chosen candidate restores."""
        if not self.ranking:
            return {}
        rows = sensitivity_notes(self.ranking, chosen.restored)
        return {"sensitivity": rows, "sensitivity_examples": min(self.limits.ranked, len(self.validation))}

    def notes(self, chosen: Candidate) -> dict[str, Any]:
        """Return what a manifest records of the search."""
        front = pareto(self.candidates)
        rows = [candidate_record(it, it == chosen, it in front) for it in self.candidates]
        calibration = next(iter(self._calibrations.values()), None)
        return {
            "target": self.target.name,
            "goal": self.limits.goal,
            "max_drop": self.max_drop,
            "metric": self.task.metric,
            "percent": self._score.direction == "higher",
            "examples": len(self.validation),
            "kept": self._chosen() is not None,
            "candidates": rows,
            "forms": [{"label": form.label, **speedup_record(it)} for form, it in self._speedups.items()],
            "float32": {"value": self._score.value, "peak_rss_bytes": self._reference.peak_rss_bytes},
            "calibration": calibration
            and {"examples": calibration.examples, "peak_rss_bytes": calibration.peak_rss_bytes},
        }

    def _graph(self, cut: Cut, how: Smoothing | None) -> onnx.ModelProto:
        """Return the float32 graph that a candidate is written from."""
        if how is None:
            return self._graphs[cut]
        if (cut, how) not in self._smoothed:
            graph, peaks = self._graphs[cut], self._calibrated(cut, None).channel_peaks()
            placed = place(graph, self.rules, excluded=self.limits.excluded)
            self._smoothed[cut, how], _ = smooth(
                graph, peaks, placed, alpha=how.alpha, formula=how.formula, copies=how.copies
            )
        return self._smoothed[cut, how]

    def _calibrated(self, cut: Cut, smoothing: Smoothing | None) -> Calibration:
        if (cut, smoothing) not in self._calibrations:
            graph = self._graph(cut, smoothing)
            how = cut if smoothing is None else f"{cut}, {smoothing.label}"
            self.emit(f"calibrating on {len(self.calibration)} examples ({how})")
            placed = place(graph, self.rules, excluded=self.limits.excluded)
            self._calibrations[cut, smoothing] = calibrate(
                graph, self.calibration, quantized_inputs(placed), threads=self.threads
            )
        return self._calibrations[cut, smoothing]

    def _inspect(self, model: onnx.ModelProto) -> Inspection:
        with ExitStack() as stack:
            return inspect(self._artifact(model, stack), self.target, self.validation, work=self.work)

    def _scored(self, seen: Inspection) -> Score:
        targets = self.validation.targets
        return self.task.score(seen.outputs, np.empty(0) if targets is None else targets)

    def _artifact(self, model: onnx.ModelProto, stack: ExitStack) -> Artifact:
        """Write an artifact that is removed when ``stack`` closes."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.work, prefix="candidate-"))
        return throwaway(model, self.source, Path(folder))


def _action(candidate: Candidate) -> str:
    """Say what a step of the trail changed."""
    if candidate.form.rest == "float16":
        return "FP16 for what is not in 8 bits"
    if candidate.restored:
        names = ", ".join([*candidate.restored][:2])
        more = f" and {len(candidate.restored) - 2} more" if len(candidate.restored) > 2 else ""
        return f"{len(candidate.restored)} most sensitive nodes in float32: {names}{more}"
    if candidate.smoothing is not None:
        return f"{candidate.smoothing.label} ({candidate.form.method}, {candidate.observer})"
    return f"plain quantization ({', '.join(filter(None, (candidate.form.method, candidate.observer)))})"


def throwaway(model: onnx.ModelProto, source: Artifact, out: Path) -> Artifact:
    """Write a graph and the companions of an artifact into an empty folder: it can be measured, not delivered."""
    from compress.export.companions import copy_companions
    from compress.export.onnx_clean import write_onnx
    from compress.export.signature import read_graph

    write_onnx(model, out / "model.onnx")
    copy_companions(source.path, out)
    return create_artifact(
        out,
        kind="onnx",
        task=source.manifest.task,
        traits=(),
        graphs={"model": read_graph(out / "model.onnx")},
        parameters=source.manifest.parameters,
        made_by=PassRecord(name="candidate", version=1, config={}),
    )
