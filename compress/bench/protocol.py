"""The measuring protocol: artifacts side by side, in interleaved rounds.

Subjects whose targets share a device and a number of threads form one group, so that a ratio between two runtimes
is as fair as one between two artifacts. For each group: open each artifact in a fresh child, warm it up, then run
rounds A B C, B C A, C A B over one seeded sequence of real inputs. While one child is timed the others wait on their
standard input, so they use no processor, and slow drift of the machine falls on all of them alike. Then, one child
after another: peak memory, predictions of every example, throughput, operator placement. A child that fails leaves a
row with the reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compress.artifact import Artifact, Kind
from compress.bench.emulation import NO_TIMES, emulated_part, run_emulated
from compress.bench.environment import busy_warnings
from compress.bench.launch import Child, ChildError
from compress.bench.measurement import Measurement
from compress.bench.settings import MINIMUM_ROUNDS, MeasureSettings
from compress.data.encoded import Encoded
from compress.errors import RunError, UsageError
from compress.runtimes.base import runtimes
from compress.runtimes.cores import pinned_cores, thread_count
from compress.runtimes.target import Target
from compress.tasks.base import Row

__all__ = ["Inspection", "MeasureSettings", "Measurement", "Subject", "fits", "inspect", "measure", "predict"]


class Emit(Protocol):
    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None: ...


def silent(message: str, done: int | None = None, total: int | None = None) -> None:
    """Take progress and say nothing."""


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


def fits(kind: Kind, target: Target) -> bool:
    """Say whether a target can run artifacts of this kind at all; a pair that does not fit is left out."""
    return kind in runtimes.get(target.runtime).kinds


def measure(
    subjects: Sequence[Subject],
    *,
    settings: MeasureSettings,
    work: Path,
    emit: Emit = silent,
    seed: int = 0,
    latency_only: bool = False,
    batch_size: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> list[Measurement]:
    """Measure subjects side by side, group by group.

    Args:
        subjects: artifacts with the same examples, in the same order; each fits its target, whose memory limit
            binds its process.
        settings: the recipe's ``measure:`` section.
        work: existing folder for intermediate files; they are removed.
        emit: progress sink.
        seed: draws the timed sequence.
        latency_only: leave out memory, predictions, throughput and placement.
        batch_size: examples that run together; a latency sample is then that of one batch, and the sequence is
            cut into batches in the order in which it was drawn.
        clock: seconds, for the time budget of the rounds.

    Returns:
        One row per subject, in their order: ok, or skipped, failed or oom with the reason.

    Raises:
        UsageError: the subjects do not have the same number of examples.
    """
    lanes = [_Lane(subject) for subject in subjects]
    if not lanes:
        return []
    sequence = _sequence([subject.encoded for subject in subjects], settings.inputs, seed)
    for lane in lanes:
        found = runtimes.get(lane.target.runtime)().available(lane.target)
        if not found.ok or (latency_only and lane.target.evidence == "emulated"):
            lane.stopped("skipped", found.reason or NO_TIMES)
    groups: dict[tuple[str, int], list[_Lane]] = {}
    for lane in lanes:
        if "status" not in lane.facts and lane.target.evidence != "emulated":
            groups.setdefault((lane.target.device, thread_count(lane.target)), []).append(lane)
    for group in groups.values():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            plan = _Plan(sequence, settings, latency_only, batch_size)
            _measure_group(group, plan, Path(folder), emit=emit, clock=clock)
    emulated = [lane for lane in lanes if lane.target.evidence == "emulated" and "status" not in lane.facts]
    if emulated:
        part = emulated_part(len(lanes[0].subject.encoded), settings.emulated_examples, seed)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found_facts = run_emulated([lane.subject for lane in emulated], part, work=Path(folder), emit=emit)
        for lane, facts in zip(emulated, found_facts, strict=True):
            lane.facts |= facts
    return [lane.measurement(sequence) for lane in lanes]


@dataclass(frozen=True)
class _Plan:
    """What is run on every subject of a group."""

    sequence: list[int]
    settings: MeasureSettings
    latency_only: bool
    batch_size: int


def _measure_group(
    lanes: Sequence[_Lane], plan: _Plan, folder: Path, *, emit: Emit, clock: Callable[[], float]
) -> None:
    settings = plan.settings
    busy = busy_warnings(pinned_cores(lanes[0].target))
    for lane in lanes:
        lane.warnings += busy
    files = _save_encoded(lanes, folder)
    for launch in range(settings.launches):
        with ExitStack() as stack:
            for number, lane in enumerate(lanes):
                emit("measuring: opening artifacts", number + 1, len(lanes))
                lane.launch(stack, files[id(lane.subject.encoded)], plan)
            _run_rounds(lanes, plan, emit=emit, clock=clock)
            last = launch == settings.launches - 1 and not plan.latency_only
            for number, lane in enumerate(lanes if last else ()):
                lane.finish(plan.sequence, settings, folder / "outputs.npy")
                emit("measuring: memory, predictions, throughput", number + 1, len(lanes))


@dataclass(frozen=True)
class Inspection:
    """What one run over every example shows of an artifact.

    Attributes:
        outputs: (n, labels) float32, in the order of the examples.
        peak_rss_bytes: largest resident memory of the child, its libraries included.
        placement: what ``Session.placement`` says.
    """

    outputs: np.ndarray
    peak_rss_bytes: int
    placement: Mapping[str, Any]


def predict(artifact: Artifact, target: Target, encoded: Encoded, *, work: Path, batch_size: int = 1) -> np.ndarray:
    """Run every example through an artifact in one fresh child, as ``inspect`` does, and return its outputs."""
    return _run_all(artifact, target, encoded, work, batch_size, ("predict",))["outputs"]  # type: ignore[no-any-return]


def inspect(artifact: Artifact, target: Target, encoded: Encoded, *, work: Path, batch_size: int = 1) -> Inspection:
    """Run every example through an artifact in one fresh child, without the target's memory limit.

    Args:
        work: existing folder for intermediate files; they are removed.
        batch_size: examples per padded batch; dynamic INT8 gives other outputs for other batches, hence 1.

    Raises:
        UsageError: the artifact's kind does not fit the target.
        MissingCapabilityError: the target cannot run here.
        RunError: the child failed.
    """
    facts = _run_all(artifact, target, encoded, work, batch_size, ("predict", "memory", "placement"))
    return Inspection(facts["outputs"], facts["peak_rss_bytes"], facts["placement"])


def _run_all(
    artifact: Artifact, target: Target, encoded: Encoded, work: Path, batch_size: int, ops: Sequence[str]
) -> dict[str, Any]:
    if not fits(artifact.kind, target):
        raise UsageError(
            f"The target {target.name!r} does not run {artifact.kind} artifacts.",
            value=artifact.kind,
            fix=f"Use a target for {artifact.kind}, or export the model first.",
        )
    runtimes.get(target.runtime)().require(target)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source, out = Path(folder) / "encoded.npz", Path(folder) / "outputs.npy"
        encoded.save(source)
        jobs: dict[str, dict[str, Any]] = {"predict": {"out": str(out), "batch": batch_size}}
        facts: dict[str, Any] = {}
        try:
            with Child(target, limited=False) as child:
                child.open(str(artifact.path), target, str(source))
                for op in ops:
                    facts |= child.ask(op, **jobs.get(op, {}))
        except ChildError as error:
            raise RunError(
                f"The artifact could not be run on {target.name!r}.",
                value=error.reason,
                fix="Open the file with the runtime itself to see more; produce the artifact again if it is damaged.",
            ) from error
        return facts | {"outputs": np.load(out, allow_pickle=False)}


@dataclass
class _Lane:
    """One subject on its way through the protocol: its child and what is known so far."""

    subject: Subject
    child: Child | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[list[list[float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return self.subject.target

    def stopped(self, status: str, reason: str) -> _Lane:
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

    def launch(self, stack: ExitStack, encoded: Path, plan: _Plan) -> None:
        """Start a fresh child, open the artifact and warm up; a subject that failed before is left alone."""
        if "status" in self.facts:
            return
        self.child = stack.enter_context(Child(self.target))
        self.facts["memory_limit_by"] = self.child.enforcement
        try:
            opened = self.child.open(str(self.subject.artifact.path), self.target, str(encoded))
        except ChildError as error:
            self._end(error)
            return
        job = {"indices": plan.sequence, "batch": plan.batch_size}
        warm = self.ask("warmup", **job, seconds=plan.settings.warmup_seconds)
        if not self.samples:
            self.facts |= opened
            self.facts["first_ms"] = warm and warm["first_ms"]
        self.samples.append([])
        if warm and not warm["settled"]:
            self.warnings.append(f"launch {len(self.samples)}: latency had not settled when warm-up ended")

    def round(self, plan: _Plan) -> None:
        answer = self.ask("round", indices=plan.sequence, batch=plan.batch_size)
        if answer:
            self.samples[-1].append(answer["ms"])

    def finish(self, sequence: Sequence[int], settings: MeasureSettings, out: Path) -> None:
        """Take what is not latency. Peak memory comes first; what may need more than a single input comes last."""
        self.facts |= self.ask("memory") or {}
        peak, limit = self.facts.get("peak_rss_bytes"), self.target.memory_bytes
        if limit and peak and self.facts["memory_limit_by"] == "checked afterwards" and peak > limit:
            self.stopped("oom", f"peak of {peak / 2**20:.0f} MiB above the limit of {limit / 2**20:g} MiB")
        if self.ask("predict", out=str(out), batch=1):
            self.facts["outputs"] = np.load(out, allow_pickle=False)
            self._finish_optional(sequence, settings)

    def _finish_optional(self, sequence: Sequence[int], settings: MeasureSettings) -> None:
        """Throughput and placement: a failure here is a warning, since single inputs were served in full."""
        batch, seconds = settings.throughput_batch, settings.throughput_seconds
        jobs: Mapping[str, dict[str, Any]] = {
            "throughput": {"indices": list(sequence), "batch": batch, "seconds": seconds},
            "placement": {},
        }
        for op, job in jobs.items():
            if self.child is None or not self.child.alive:
                return
            try:
                self.facts |= self.child.ask(op, **job)
            except ChildError as error:
                self.warnings.append(error.reason)
        if "throughput_per_s" in self.facts:
            self.facts["throughput_batch"] = batch

    def measurement(self, sequence: Sequence[int]) -> Measurement:
        """Build the row. A launch without a single round is dropped from the samples."""
        manifest, lengths = self.subject.artifact.manifest, self.subject.encoded.lengths
        facts = {"status": "ok"} | self.facts
        timed = [] if self.target.evidence == "emulated" else list(sequence)
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
            input_indices=timed,
            input_tokens=[int(lengths[index]) for index in timed],
            warnings=self.warnings,
            **facts,
        )

    def _end(self, error: ChildError) -> None:
        self.stopped(error.status, error.reason)
        if self.child is not None:
            self.child.close(kill=True)
        self.child = None


def _sequence(encoded: Sequence[Encoded], inputs: int, seed: int) -> list[int]:
    """Draw the timed examples, the same for every subject, in random order."""
    sizes = {len(examples) for examples in encoded}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError(
            "The artifacts to measure do not have the same examples.",
            value=f"numbers of examples: {sorted(sizes)}",
            fix="Encode one and the same non-empty split for each of them.",
        )
    count = sizes.pop()
    drawn = np.random.default_rng(seed).permutation(count)[: min(inputs, count)]
    return [int(index) for index in drawn]


def _save_encoded(lanes: Sequence[_Lane], folder: Path) -> dict[int, Path]:
    """Write each distinct ``Encoded`` once; return its file by identity."""
    files: dict[int, Path] = {}
    for lane in lanes:
        encoded = lane.subject.encoded
        if id(encoded) not in files:
            files[id(encoded)] = folder / f"encoded-{len(files)}.npz"
            encoded.save(files[id(encoded)])
    return files


def _run_rounds(lanes: Sequence[_Lane], plan: _Plan, *, emit: Emit, clock: Callable[[], float]) -> None:
    """Interleave the rounds of one launch; who goes first rotates."""
    settings = plan.settings
    start, budget = clock(), settings.seconds / settings.launches
    for number in range(settings.rounds):
        if number >= MINIMUM_ROUNDS and clock() - start >= budget:
            for lane in lanes:
                lane.warnings.append(f"{number} of {settings.rounds} rounds: the time for this group was used up")
            return
        shift = number % len(lanes)
        for lane in (*lanes[shift:], *lanes[:shift]):
            lane.round(plan)
        emit("measuring: timing rounds", number + 1, settings.rounds)
