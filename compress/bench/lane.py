"""One subject on its way through the protocol: its children, one after another, and what is known so far."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.bench.energy import Meter, Usage
from compress.bench.launch import CHECKED, ENDED, Child, ChildError
from compress.bench.measurement import Measurement
from compress.bench.rounds import Series
from compress.bench.settings import TURN, MeasureSettings
from compress.data.encoded import Encoded
from compress.runtimes.cores import pinned_cores, thread_count
from compress.runtimes.target import Target
from compress.tasks.base import Row

_COLD = ("load_ms", "first_ms", "warmup_s")
"""What every launch pays once; reports show medians."""


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact on a target, and the examples as its own tokenizer encodes them.

    ``rows`` are the same examples as they were read, for the end-to-end clock; None leaves that clock out.
    """

    label: str
    artifact: Artifact
    encoded: Encoded
    target: Target
    rows: Sequence[Row] | None = None


@dataclass(frozen=True)
class Plan:
    """What is run on every subject of a group."""

    sequence: list[int]
    settings: MeasureSettings
    latency_only: bool
    batch_size: int
    clock: Callable[[], float]

    def turns(self) -> list[list[int]]:
        """Cut the sequence into what one artifact runs before the next one does."""
        size = TURN * self.batch_size
        return [self.sequence[start : start + size] for start in range(0, len(self.sequence), size)]


@dataclass
class Lane:
    """One subject on its way through the protocol: its child and what is known so far."""

    subject: Subject
    child: Child | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: Series = field(default_factory=list)
    end_to_end: Series = field(default_factory=list)
    cold: list[dict[str, float]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    warnings: list[str] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    _round: list[float] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return self.subject.target

    def stopped(self, status: str, reason: str) -> Lane:
        self.facts |= {"status": status, "reason": reason}
        return self

    def ask(self, op: str, **job: Any) -> dict[str, Any] | None:
        """Ask the child; None if there is none any more, and from then on the row says why."""
        if self.child is None:
            return None
        try:
            return self.child.ask(op, **job)
        except ChildError as error:
            self._end(error)
            return None

    def launch(self, stack: ExitStack, encoded: Path, plan: Plan) -> None:
        """Start a fresh child, open the artifact and warm up; a subject that failed before is left alone."""
        if "status" in self.facts:
            return
        try:
            self.child = stack.enter_context(Child(self.target))
            self.facts["memory_limit_by"] = self.child.enforcement
            if self.child.enforcement == CHECKED:
                self.warnings.append("no control group: the memory limit did not bind, the peak was checked afterwards")
            opened = self.child.open(str(self.subject.artifact.path), self.target, str(encoded))
        except ChildError as error:
            self._end(error)
            return
        job = {"indices": plan.sequence, "batch": plan.batch_size}
        self.facts |= opened
        warm = self.ask("warmup", **job, seconds=plan.settings.warmup_seconds)
        self.cold.append({name: found[name] for found in (opened, warm or {}) for name in _COLD if name in found})
        self.samples.append([])
        if warm and not warm["settled"]:
            self.warnings.append(f"launch {len(self.samples)}: latency had not settled when warm-up ended")

    def turn(self, indices: Sequence[int], plan: Plan, meter: Meter | None = None) -> None:
        """Time a part of the sequence; ``end_round`` makes a round of the parts."""
        before, start = meter and meter.read(), plan.clock()
        answer = self.ask("round", indices=indices, batch=plan.batch_size)
        if answer is None:
            return
        self._round += answer["ms"]
        after = meter and meter.read()
        if meter is not None and before and after:
            self.usage.add(meter, before, after, plan.clock() - start, len(indices))

    def end_round(self) -> None:
        """Keep the round that the turns made up; one that the child did not survive is dropped."""
        if self.child is not None:
            self.samples[-1].append(self._round)
        self._round = []

    def prepare_end_to_end(self, rows: Path, plan: Plan) -> bool:
        """Open the tokenizer or preprocessor in the child; a failure here or later leaves the rest of the row alone."""
        if "status" in self.facts or "end_to_end" in self.not_measured:
            return False
        self.end_to_end.append([])
        return self._try("prepare_end_to_end", "end_to_end", rows=str(rows), batch=plan.batch_size) is not None

    def end_to_end_round(self, plan: Plan) -> None:
        if "end_to_end" not in self.not_measured:
            answer = self._try("end_to_end", "end_to_end", batch=plan.batch_size)
            if answer:
                self.end_to_end[-1].append(answer["ms"])

    def finish(self, out: Path, plan: Plan) -> None:
        """Take what is not latency and needs one input at a time; memory comes first."""
        self.facts |= self.ask("memory") or {}
        peak, limit = self.facts.get("peak_rss_bytes"), self.target.memory_bytes
        if limit and peak and self.facts["memory_limit_by"] == CHECKED and peak > limit:
            self.stopped("oom", f"peak of {peak / 2**20:.0f} MiB above the limit of {limit / 2**20:g} MiB")
        if self.ask("predict", out=str(out), batch=1):
            self.facts["outputs"] = np.load(out, allow_pickle=False)
            if self.target.device == "cuda":
                clock = {"indices": plan.sequence, "batch": plan.batch_size}
                self.facts |= self._try("device_clock", "gpu_latency", **clock) or {}
            self.facts |= self._try("placement", "placement") or {}

    def lacks(self, what: str, reason: str) -> None:
        """Put on record that this row will not have something."""
        self.not_measured[what] = reason
        self.warnings.append(reason)

    def _try(self, op: str, what: str, **job: Any) -> dict[str, Any] | None:
        """Ask the child for something that the row can do without; None if it cannot, and why is on record."""
        if self.child is None:
            return None
        if not self.child.alive:
            self.not_measured.setdefault(what, ENDED)
            return None
        try:
            return self.child.ask(op, **job)
        except ChildError as error:
            self.lacks(what, error.reason)
            return None

    def measurement(self, sequence: Sequence[int]) -> Measurement:
        """Build the row. A launch without a single round is dropped from the samples; cold costs are medians."""
        manifest, lengths = self.subject.artifact.manifest, self.subject.encoded.lengths
        timed = [] if self.target.evidence == "emulated" else list(sequence)
        facts = {"status": "ok"} | self.facts | _medians(self.cold) | self.usage.facts()
        return Measurement(
            subject=self.subject.label,
            target=self.target.name,
            evidence=self.target.evidence,
            digest=manifest.digest,
            size_bytes=self.subject.artifact.size_bytes,
            parameters=manifest.parameters,
            threads=thread_count(self.target),
            pinned_cores=pinned_cores(self.target),
            memory_limit_bytes=self.target.memory_bytes,
            samples_ms=[launch for launch in self.samples if launch],
            end_to_end_ms=[launch for launch in self.end_to_end if launch],
            input_indices=timed,
            input_tokens=[int(lengths[index]) for index in timed],
            warnings=list(dict.fromkeys(self.warnings)),
            not_measured=self.not_measured,
            **facts,
        )

    def _end(self, error: ChildError) -> None:
        self.stopped(error.status, error.reason)
        if self.child is not None:
            self.child.close(kill=True)
        self.child = None


def _medians(cold: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return the median over the launches of what each of them paid before its rounds."""
    seen = {name: [costs[name] for costs in cold if name in costs] for name in _COLD}
    return {name: statistics.median(values) if values else None for name, values in seen.items()}
