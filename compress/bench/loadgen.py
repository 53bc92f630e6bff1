"""The child's part of a scenario: MLCommons' LoadGen issues the queries, an open session answers them.

LoadGen decides when a query comes and which input it is, takes the times, and says whether its conditions held; this
module only connects it to a session and reads its summary. Single-stream and offline queries are answered where they
are issued; those of the server scenario go through one queue to one thread, first come, first served, one at a time.
"""

from __future__ import annotations

import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from compress.data.encoded import Encoded
from compress.runtimes.base import Session

MODULE = "mlperf_loadgen"
PERCENTILE = {"single-stream": 90.0, "server": 99.0}
"""What MLPerf states of the scenario's latencies."""
QUERIES = {"single-stream": 64, "server": 459}
"""Queries without which LoadGen's early stopping cannot vouch for that percentile: (1 - 0.99) = q^n."""
STRETCH = 3
"""A run ends after this many times its duration, whether it has had its queries or not."""
_NAMES = {"single-stream": "SingleStream", "offline": "Offline", "server": "Server"}
_SEEDS = {"qsl_rng_seed": 1, "sample_index_rng_seed": 2, "schedule_rng_seed": 3}
"""The same inputs and, scaled by the rate, the same arrivals for every artifact."""


class Driver:
    """Runs scenarios on one session.

    Args:
        session: open; answers one query at a time.
        encoded: the examples.
        indices: those that LoadGen draws from, with replacement.
    """

    def __init__(self, session: Session, encoded: Encoded, indices: Sequence[int]) -> None:
        self._loadgen: Any = import_module(MODULE)
        self._session, self._encoded = session, encoded.select(indices)
        self._lengths = self._encoded.lengths
        self._feeds = [self._encoded.batch([i]) for i in range(len(self._encoded))]
        self._error: Exception | None = None

    def run(self, scenario: str, *, seconds: float, rate: float, bound_ms: float, batch: int) -> dict[str, Any]:
        """Run one scenario once.

        Args:
            scenario: single-stream, offline or server.
            seconds: least duration.
            rate: queries per second: server: of the Poisson process; otherwise what is expected.
            bound_ms: server: what the 99th percentile must keep.
            batch: offline: samples that run together, sorted by length.

        Returns:
            What ``read_summary`` returns, with ``queries`` (samples answered), ``seconds`` and ``rate``.
        """
        lg, self._error, self._answered = self._loadgen, None, 0
        settings = _settings(lg, scenario, seconds, rate, bound_ms)
        answer = {"single-stream": self._one_by_one, "offline": lambda q: self._in_batches(q, batch)}
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, _Issuer(self._one_by_one) as issuer:
            sut = lg.ConstructSUT(answer.get(scenario, issuer.put), lambda: None)
            qsl = lg.ConstructQSL(len(self._feeds), len(self._feeds), lambda samples: None, lambda samples: None)
            try:
                lg.StartTestWithLogSettings(sut, qsl, settings, _logs(lg, folder), "")
            finally:
                lg.DestroyQSL(qsl)
                lg.DestroySUT(sut)
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
        if self._error is not None:
            raise self._error
        passed = time.monotonic() - begun
        return read_summary(summary) | {"queries": self._answered, "seconds": passed, "rate": rate}

    def _one_by_one(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._answer([sample], self._feeds[sample.index])

    def _in_batches(self, samples: Sequence[Any], size: int) -> None:
        ordered = sorted(samples, key=lambda sample: int(self._lengths[sample.index]))
        for at in range(0, len(ordered), size):
            part = ordered[at : at + size]
            self._answer(part, self._encoded.batch([sample.index for sample in part]))

    def _answer(self, samples: Sequence[Any], feed: Any) -> None:
        """Run a batch and report it. An error must not cross LoadGen: it is kept, and nothing more is run."""
        if self._error is None:
            try:
                self._session.run(feed)
            except Exception as error:
                self._error = error
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([response(sample.id, 0, 0) for sample in samples])
        self._answered += len(samples)


def read_summary(text: str) -> dict[str, Any]:
    """Return what LoadGen's summary says.

    Returns:
        ``valid``; ``unmet``: its conditions that did not hold; ``latencies_ms``: percentile -> ms; ``per_s``: samples
        per second, None for the single stream.
    """
    fields = dict(re.findall(r"^\s*(.+?)\s*:\s*(\S+)\s*$", text, re.M))
    found = re.findall(r"^(\d+\.\d+) percentile latency \(ns\)\s*:\s*(\d+)", text, re.M)
    per_s = fields.get("Samples per second") or fields.get("Completed samples per second")
    return {
        "valid": fields.get("Result is") == "VALID",
        "unmet": [name.removesuffix(" satisfied") for name, value in fields.items() if value.upper() == "NO"],
        "latencies_ms": {f"{float(q):g}": int(ns) / 1e6 for q, ns in found},
        "per_s": None if per_s is None else float(per_s),
    }


class _Issuer:
    """One thread that answers queries in the order in which they came."""

    def __init__(self, answer: Callable[[Sequence[Any]], None]) -> None:
        self._queries: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()
        self._answer = answer
        self._thread = threading.Thread(target=self._work, daemon=True)

    def put(self, samples: Sequence[Any]) -> None:
        self._queries.put(samples)

    def _work(self) -> None:
        while (samples := self._queries.get()) is not None:
            self._answer(samples)

    def __enter__(self) -> _Issuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queries.put(None)
        self._thread.join()


def _settings(lg: Any, scenario: str, seconds: float, rate: float, bound_ms: float) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, _NAMES[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1e3)
    settings.max_duration_ms = int(seconds * STRETCH * 1e3)
    settings.min_query_count = QUERIES.get(scenario, 1)
    settings.single_stream_expected_latency_ns = int(1e9 / rate)
    settings.offline_expected_qps = rate
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(bound_ms * 1e6)
    settings.server_target_latency_percentile = PERCENTILE["server"] / 100
    for name, value in _SEEDS.items():
        setattr(settings, name, value)
    return settings


def _logs(lg: Any, folder: str) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings
