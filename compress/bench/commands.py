"""What a measuring child can do: open, warm up, time rounds on either clock, measure throughput and memory, predict."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import open_artifact
from compress.bench.examples import load_rows
from compress.bench.memory import memory_phase, peak_phase
from compress.bench.nvml import process_bytes
from compress.bench.repeating import Repeater
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError
from compress.runtimes.base import Session, runtimes
from compress.runtimes.target import Target
from compress.tasks.base import Row, Task, task_from
from compress.trust import trusting

FRAMEWORKS = ("onnx", "onnxruntime", "openvino", "tensorrt", "torch", "transformers")
WINDOW = 10
"""Inferences per warm-up window; every window runs the same inputs, so their medians are comparable."""
AGREEMENT = 0.05
"""Warm-up has settled when the medians of three windows in a row lie within this share of the smallest."""
WARMUP_CAP = 10
"""Warm-up ends unsettled after this many times its least duration."""


class Commands:
    """One opened artifact and the commands on it.

    Args:
        clock: monotonic time in nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._batches: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        self._phases: list[dict[str, Any]] = []
        self._gpu_bytes: list[int] = []
        self._on_gpu = False

    def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run ``job["op"]`` with the job's other fields as arguments."""
        arguments = {name: value for name, value in job.items() if name != "op"}
        command: Callable[..., dict[str, Any]] = getattr(self, f"do_{job['op']}")
        return command(**arguments)

    def attach(self, session: Session, encoded: Encoded, output: str) -> None:
        """Use an open session; ``output`` names the array that ``predict`` writes."""
        self._session, self._encoded, self._output = session, encoded, output
        self._repeater = Repeater(session, encoded, self._clock)

    def attach_task(self, task: Task, encode: Callable[[Sequence[Row]], Encoded], rows: Sequence[Row]) -> None:
        """Use an open tokenizer or preprocessor on ``rows``, the timed sequence as the user has it."""
        self._task, self._encode, self._rows = task, encode, rows

    def do_open(self, artifact: str, target: dict[str, Any], encoded: str, trust: Sequence[str] = ()) -> dict[str, Any]:
        """Open an artifact; the library is imported and the examples are read before memory is first taken.

        ``trust`` holds the digests of what code may run, as the parent was told.
        """
        opened, place = open_artifact(artifact, verify=False), Target.model_validate(target)
        examples = Encoded.load(Path(encoded))
        runtime = runtimes.get(place.runtime)()
        runtime.require(place)
        runtime.preload(place)
        self._on_gpu = place.device == "cuda"
        self._note_memory("import")
        start = self._clock()
        with trusting(trust):
            session = runtime.open(opened, place)
        load_ms = (self._clock() - start) / 1e6
        self._note_memory("load")
        self._folder, self._task_options = opened.path, opened.manifest.task
        self.attach(session, examples, opened.manifest.graphs["model"].outputs[0].name)
        version = getattr(sys.modules.get(runtime.package), "__version__", "")
        return {"import_rss_bytes": self._phases[0]["rss_bytes"], "load_ms": load_ms, "runtime_version": version}

    def do_warmup(self, indices: Sequence[int], seconds: float, batch: int = 1) -> dict[str, Any]:
        """Run every input once, then the first few until their window medians agree or the cap is reached.

        Some runtimes prepare kernels or memory for each new length: no timed round may be the first to see one.
        """
        feeds, begun = self._prepare(indices, batch), self._clock()
        window = feeds[:WINDOW]
        first_ms = self._time(feeds[0])
        self._note_memory("first")
        for feed in feeds:
            self._time(feed)
        start, medians = self._clock(), list[float]()
        while True:
            medians.append(statistics.median(self._time(feed) for feed in window))
            now = self._clock()
            passed, settled = (now - start) / 1e9, _settled(medians[-3:])
            if (passed >= seconds and settled) or (passed >= seconds * WARMUP_CAP and len(medians) >= 3):
                return {"first_ms": first_ms, "settled": settled, "warmup_s": (now - begun) / 1e9}

    def do_round(self, indices: Sequence[int], batch: int = 1) -> dict[str, Any]:
        """Time the sequence, one example at a time at its real length: host arrays in, host arrays out.

        With ``batch`` that many neighbours of the sequence run together, padded to the longest of them. The first
        inference runs once before, untimed: it brings the model back into the caches after the others' turns.
        """
        feeds = self._prepare(indices, batch)
        self._time(feeds[0])
        return {"ms": [self._time(feed) for feed in feeds]}

    def do_prepare_end_to_end(self, rows: str, batch: int = 1) -> dict[str, Any]:
        """Read the sequence, open the artifact's own tokenizer or preprocessor once, and answer a window untimed."""
        task = task_from(self._task_options)
        self.attach_task(task, task.encoder(self._folder), load_rows(Path(rows)))
        for start in range(0, min(WINDOW, len(self._rows)), batch):
            self._answer(self._rows[start : start + batch])
        return {}

    def do_end_to_end(self, batch: int = 1) -> dict[str, Any]:
        """Time the sequence from the text or the pixels to the decoded answer, one example in flight."""
        return {"ms": [self._answer(self._rows[i : i + batch]) for i in range(0, len(self._rows), batch)]}

    def do_throughput_prepare(self, groups: Sequence[Sequence[int]], streams: int) -> dict[str, Any]:
        """Get a point of the throughput sweep ready, see ``sweep.Repeater``."""
        try:
            self._repeater.prepare(groups, streams)
        except MissingCapabilityError as error:
            return {"cannot": f"{error.what} {error.value or ''}".strip()}
        return {}

    def do_throughput(self, seconds: float) -> dict[str, Any]:
        """Time one repetition of that point."""
        return self._repeater.repeat(seconds)

    def do_scenario(self, scenario: str, indices: Sequence[int], **job: Any) -> dict[str, Any]:
        """Run one MLPerf-style scenario, see ``loadgen.Driver``."""
        from compress.bench.loadgen import Driver

        return Driver(self._session, self._encoded, indices).run(scenario, **job)

    def do_predict(self, out: str, batch: int, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """Write the outputs of the examples, in order, as one float32 ``.npy``: (n, ...)."""
        chosen = self._encoded if indices is None else self._encoded.select(indices)
        rows = [self._session.run(chosen.batch(part))[self._output] for part in chosen.batches(batch)]
        np.save(out, np.concatenate(rows).astype(np.float32, copy=False), allow_pickle=False)
        return {"examples": len(chosen)}

    def do_memory(self) -> dict[str, Any]:
        """Return memory by phase up to now, and which frameworks this process has loaded.

        The GPU's figure by process is the largest of the phases: what its allocators take they keep.
        """
        loaded = [name for name in FRAMEWORKS if name in sys.modules]
        self._note_memory("steady")
        peak = peak_phase()
        return {
            "peak_rss_bytes": peak["rss_bytes"],
            "memory_phases": [*self._phases, peak],
            "gpu_process_bytes": max(self._gpu_bytes, default=None),
            "frameworks": loaded,
        } | self._session.memory()

    def do_device_clock(self, indices: Sequence[int], batch: int = 1) -> dict[str, Any]:
        """Time the sequence once more by the device's own clock, apart from the rounds: its events cost time too."""
        found = [self._session.device_ms(feed) for feed in self._prepare(indices, batch)]
        times = [ms for ms in found if ms is not None]
        return {"gpu_latency_ms": statistics.median(times)} if times else {}

    def do_placement(self) -> dict[str, Any]:
        return {"placement": self._session.placement()}

    def _prepare(self, indices: Sequence[int], batch: int) -> list[dict[str, np.ndarray]]:
        """Return the arrays of a sequence, built where there are none yet, so that no clock ever covers it."""
        groups = [tuple(indices[i : i + batch]) for i in range(0, len(indices), batch)]
        for group in groups:
            if group not in self._batches:
                self._batches[group] = self._encoded.batch(group)
        return [self._batches[group] for group in groups]

    def _note_memory(self, phase: str) -> None:
        self._phases = [each for each in self._phases if each["name"] != phase] + [memory_phase(phase)]
        held = process_bytes(os.getpid()) if self._on_gpu else None
        if held is not None:
            self._gpu_bytes.append(held)

    def _answer(self, rows: Sequence[Row]) -> float:
        start = self._clock()
        encoded = self._encode(rows)
        outputs = self._session.run(encoded.batch(range(len(rows))))[self._output]
        self._task.predictions(outputs)
        return (self._clock() - start) / 1e6

    def _time(self, feed: dict[str, np.ndarray]) -> float:
        run, clock = self._session.run, self._clock
        start = clock()
        run(feed)
        return (clock() - start) / 1e6


def _settled(medians: Sequence[float]) -> bool:
    return len(medians) >= 3 and max(medians) <= min(medians) * (1 + AGREEMENT)
