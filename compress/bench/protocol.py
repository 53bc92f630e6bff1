"""The measuring protocol: artifacts side by side, in interleaved rounds.

Subjects whose targets share a device and a number of threads form one group, so that a ratio between two runtimes
is as fair as one between two artifacts. For each group, several launches: open each artifact in a fresh child, warm
it up, then run rounds over one seeded sequence of real inputs until the ratios are precise enough or the time is
used up (``rounds``). In a round they take turns of a few inputs, A B C, B C A, C A B, so that what disturbs the
machine falls on all of them alike; while one child is timed the others wait on their standard input, so they use no
processor. A few rounds of their own follow on the second clock, end to end. In the last launch, child after child:
memory and predictions of every example before those, after them what may need more memory than a single input:
throughput (``sweep``) and scenarios (``scenarios``). A child that fails leaves a row with the reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compress.bench import idle
from compress.bench.emulation import NO_TIMES, emulated_part, run_emulated
from compress.bench.energy import Meter, find_meter
from compress.bench.examples import save_rows
from compress.bench.gpu_state import drift
from compress.bench.inspecting import Inspection, fits, inspect, predict
from compress.bench.lane import Lane, Plan, Subject
from compress.bench.launch import without_folders
from compress.bench.measurement import Measurement
from compress.bench.nvml import device_state
from compress.bench.rounds import Pace, Series, missed_precision, rotated
from compress.bench.scenarios import measure_scenarios
from compress.bench.settings import MeasureSettings
from compress.bench.sweep import measure_throughput
from compress.data.encoded import Encoded
from compress.errors import CompressError, UsageError
from compress.runtimes.base import runtimes
from compress.runtimes.cores import pinned_cores, thread_count
from compress.tasks.base import task_from

__all__ = ["Inspection", "MeasureSettings", "Measurement", "Subject", "fits", "inspect", "measure", "predict"]


class Emit(Protocol):
    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None: ...


def silent(message: str, done: int | None = None, total: int | None = None) -> None:
    """Take progress and say nothing."""


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
    lanes = [Lane(subject) for subject in subjects]
    if not lanes:
        return []
    sequence = _sequence([subject.encoded for subject in subjects], settings.inputs, seed)
    for lane in lanes:
        found = runtimes.get(lane.target.runtime)().takes(lane.subject.artifact, lane.target)
        if not found.ok or (latency_only and lane.target.evidence == "emulated"):
            lane.stopped("skipped", found.reason or NO_TIMES)
    groups: dict[tuple[str, int], list[Lane]] = {}
    for lane in lanes:
        if "status" not in lane.facts and lane.target.evidence != "emulated":
            groups.setdefault((lane.target.device, thread_count(lane.target)), []).append(lane)
    for group in groups.values():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            plan = Plan(sequence, settings, latency_only, batch_size, clock)
            _Group(group, plan, Path(folder), emit, clock).measure()
    emulated = [lane for lane in lanes if lane.target.evidence == "emulated" and "status" not in lane.facts]
    if emulated:
        part = emulated_part(len(lanes[0].subject.encoded), settings.emulated_examples, seed)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found_facts = run_emulated([lane.subject for lane in emulated], part, work=Path(folder), emit=emit)
        for lane, facts in zip(emulated, found_facts, strict=True):
            lane.facts |= facts
    return [lane.measurement(sequence) for lane in lanes]


@dataclass
class _Group:
    """Subjects that are measured side by side."""

    lanes: Sequence[Lane]
    plan: Plan
    folder: Path
    emit: Emit
    clock: Callable[[], float]

    def measure(self) -> None:
        first, settings = self.lanes[0].target, self.plan.settings
        device, threads = first.device, thread_count(first)
        watch, found = idle.begin(pinned_cores(first), device)
        files, rows = _save_encoded(self.lanes, self.folder), self._save_rows()
        self.meter = None if self.plan.latency_only else find_meter(device)
        self.on_gpu, self.gpu_states = device == "cuda", list[dict[str, Any]]()
        self.pace = Pace(settings, self.clock, second_clock=bool(rows))
        self.emit(
            f"measuring {len(self.lanes)} artifacts side by side on {device}, {threads} thread{'s' * (threads > 1)}: "
            f"{settings.launches} launch{'es' * (settings.launches > 1)}, up to {settings.seconds:g} s of rounds in all"
        )
        for launch in range(settings.launches):
            with ExitStack() as stack:
                for number, lane in enumerate(rotated(self.lanes, launch)):
                    self.emit("measuring: opening artifacts", number + 1, len(self.lanes))
                    lane.launch(stack, files[id(lane.subject.encoded)], self.plan)
                self._run(launch, rows, last=launch == settings.launches - 1)
        missed = missed_precision([[] if "status" in lane.facts else lane.samples for lane in self.lanes], self.pace)
        found += idle.end(watch, device, threads) + drift(self.gpu_states)
        for lane, warning in zip(self.lanes, missed, strict=True):
            lane.warnings[:0] = found
            lane.facts |= {"gpu_states": self.gpu_states} if self.gpu_states else {}
            lane.warnings += [warning] if warning else []

    def _run(self, launch: int, rows: Mapping[int, Path], *, last: bool) -> None:
        """Run what is timed and what is not with the children of one launch."""
        finish = last and not self.plan.latency_only
        self.pace.begin()
        self._run_rounds(launch, self.meter if last else None)
        self.pace.pause()
        for number, lane in enumerate(self.lanes if finish else ()):
            self.emit("measuring: memory, predictions", number + 1, len(self.lanes))
            lane.finish(self.folder / "outputs.npy", self.plan)
        self._run_second_clock(launch, rows)
        self.pace.end()
        if finish:
            measure_throughput(self.lanes, self.plan.sequence, self.plan.settings, self.emit)
            measure_scenarios(self.lanes, self.plan.sequence, self.plan.settings, self.emit)

    def _run_rounds(self, launch: int, meter: Meter | None) -> None:
        done, turns = 0, self.plan.turns()
        while any(lane.child for lane in self.lanes):
            for number, indices in enumerate(turns, start=launch + done):
                for lane in rotated(self.lanes, number):
                    lane.turn(indices, self.plan, meter)
            for lane in self.lanes:
                lane.end_round()
            done += 1
            self.emit("measuring: timing rounds", done, self.plan.settings.rounds)
            ends = self.pace.ends(done, self._series)
            if done == 1 or ends:
                self._note_gpu()
            if ends:
                if self.plan.settings.precision is None and done < self.plan.settings.rounds:
                    for lane in self.lanes:
                        lane.warnings.append(f"{done} of {self.plan.settings.rounds} rounds: {self.pace.why()}")
                return

    def _note_gpu(self) -> None:
        """Read the GPU's clocks right after it worked: they fall when it rests."""
        state = device_state() if self.on_gpu else None
        self.gpu_states += [state] if state is not None else []

    def _run_second_clock(self, launch: int, rows: Mapping[int, Path]) -> None:
        lanes = [lane for lane in self.lanes if id(lane.subject.rows) in rows]
        ready = [lane for lane in lanes if lane.prepare_end_to_end(rows[id(lane.subject.rows)], self.plan)]
        self.pace.resume()
        done = 0
        while ready and not self.pace.second_ends(done):
            for lane in rotated(ready, launch + done):
                lane.end_to_end_round(self.plan)
            done += 1
            self.emit("measuring: end to end", done)

    def _series(self) -> list[Series]:
        """Return the samples of the rows that are still being timed."""
        return [lane.samples for lane in self.lanes if lane.child is not None]

    def _save_rows(self) -> dict[int, Path]:
        """Write the timed sequence for the second clock; return each file by the identity of its rows."""
        files: dict[int, Path] = {}
        for lane in self.lanes if self.plan.settings.end_to_end and not self.plan.latency_only else ():
            rows = lane.subject.rows
            if rows is None or id(rows) in files:
                continue
            task = task_from(lane.subject.artifact.manifest.task)
            chosen, name = [rows[i] for i in self.plan.sequence], f"rows-{len(files)}"
            try:
                files[id(rows)] = save_rows(chosen, task.columns, self.folder, name)
            except (CompressError, OSError, TypeError, ValueError) as error:
                lane.lacks("end_to_end", f"the examples could not be written: {without_folders(str(error))}")
        return files


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


def _save_encoded(lanes: Sequence[Lane], folder: Path) -> dict[int, Path]:
    """Write each distinct ``Encoded`` once; return its file by identity."""
    files: dict[int, Path] = {}
    for lane in lanes:
        encoded = lane.subject.encoded
        if id(encoded) not in files:
            files[id(encoded)] = folder / f"encoded-{len(files)}.npz"
            encoded.save(files[id(encoded)])
    return files
