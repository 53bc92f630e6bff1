"""The throughput sweep: order of the points, its batches, what a failure leaves, and what a report states of it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from compress.bench.launch import ChildError
from compress.bench.measurement import Measurement
from compress.bench.protocol import MeasureSettings, silent
from compress.bench.settings import THROUGHPUT_REPEATS
from compress.bench.sweep import full_batches, measure_throughput
from compress.pipeline.throughput import missing_throughputs, throughputs_of
from compress.runtimes.streams import run_concurrently

LENGTHS = np.array([9, 2, 8, 3])


class FakeChild:
    """Reaches ``rate * batch`` inputs per second; fails or dies where told to."""

    def __init__(self, name: str, log: list[tuple[Any, ...]], fails: dict[int, str] | None = None) -> None:
        self.name, self.log, self.fails, self.alive = name, log, fails or {}, True

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        if op == "throughput_prepare":
            self.batch, self.streams = len(job["groups"][0]), job["streams"]
            self.log.append((self.name, "prepare", self.batch, self.streams))
            if self.streams > 1 and self.name == "single":
                return {"cannot": "one at a time"}
            status = self.fails.get(self.batch)
            if status:
                self.alive = status != "oom"
                raise ChildError(status, f"throughput_prepare: {status} at {self.batch}")  # type: ignore[arg-type]
            return {}
        self.log.append((self.name, "repeat", self.batch, self.streams))
        return {"per_s": 10.0 * self.batch * self.streams, "seconds": 0.01}


def lane(child: FakeChild, ms: float = 1.0) -> Any:
    subject = SimpleNamespace(encoded=SimpleNamespace(lengths=LENGTHS))
    return SimpleNamespace(child=child, subject=subject, facts={}, samples=[[[ms] * 4]], warnings=[], not_measured={})


def settings(**changes: Any) -> MeasureSettings:
    return MeasureSettings(**{"throughput_batches": [1, 4], "throughput_batch": 4, **changes})


def test_repetitions_of_all_artifacts_alternate_at_each_point() -> None:
    log: list[tuple[Any, ...]] = []
    lanes = [lane(FakeChild(name, log)) for name in "ab"]
    measure_throughput(lanes, [0, 1, 2, 3], settings(), silent)
    first = [("a", "prepare", 1, 1), ("b", "prepare", 1, 1)]
    assert log[:2] == first
    assert "".join(name for name, *_ in log[2 : 2 + 2 * THROUGHPUT_REPEATS]) == "abba" * (THROUGHPUT_REPEATS // 2)
    assert [(p["batch"], p["streams"], len(p["per_s"])) for p in lanes[0].facts["throughputs"]] == [
        (1, 1, THROUGHPUT_REPEATS),
        (4, 1, THROUGHPUT_REPEATS),
    ]
    assert (lanes[0].facts["throughput_per_s"], lanes[0].facts["throughput_batch"]) == (40.0, 4)


def test_a_slow_artifact_gets_fewer_repetitions_and_all_get_fewer_inputs() -> None:
    log: list[tuple[Any, ...]] = []
    slow, fast = lane(FakeChild("slow", log), ms=1000.0), lane(FakeChild("fast", log))
    slow.child.ask = lambda op, **job: {"per_s": 1.0, "seconds": 1.5} if op == "throughput" else seen.append(job) or {}
    seen: list[dict[str, Any]] = []
    measure_throughput([slow, fast], [0, 1, 2, 3], settings(throughput_seconds=2.0), silent)
    assert [len(p["per_s"]) for p in slow.facts["throughputs"]] == [3, 3], "4.5 s, since three are the least"
    assert [len(p["per_s"]) for p in fast.facts["throughputs"]] == [6, 6]
    assert [len(job["groups"]) for job in seen] == [1, 1], "a third of a second is less than one input"


def test_an_error_stops_larger_batches_only_and_a_death_everything_after() -> None:
    log: list[tuple[Any, ...]] = []
    wide = settings(throughput_batches=[1, 4, 16], throughput_streams=[1, 2])
    error, death = lane(FakeChild("error", log, {4: "failed"})), lane(FakeChild("death", log, {4: "oom"}))
    measure_throughput([error, death], [0, 1, 2, 3], wide, silent)
    reasons = [(p["batch"], p["streams"], p.get("reason", "")) for p in error.facts["throughputs"]]
    assert reasons == [
        (1, 1, ""),
        (4, 1, "failed at 4"),
        (16, 1, "not tried: batch 4 failed"),
        (1, 2, ""),
        (4, 2, "failed at 4"),
        (16, 2, "not tried: batch 4 failed"),
    ]
    assert {p["reason"] for p in death.facts["throughputs"][2:]} == {
        "not tried: the measuring process ended at an earlier point"
    }
    assert death.warnings == []
    assert "throughput_per_s" not in error.facts


def test_a_runtime_without_streams_says_so_without_a_warning() -> None:
    single = lane(FakeChild("single", []))
    measure_throughput([single], [0, 1, 2, 3], settings(throughput_streams=[2]), silent)
    assert [p.get("reason") for p in single.facts["throughputs"]] == [None, None, "one at a time", "one at a time"]
    assert single.warnings == []
    assert single.facts["throughput_per_s"] == 40.0, "what rows state is of one stream, asked for or not"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 20), st.integers(1, 40))
def test_every_batch_is_full_and_lengths_keep_their_distribution(lengths: list[int], batch: int, limit: int) -> None:
    groups = full_batches(np.array(lengths), batch, limit)
    assert {len(group) for group in groups} == {batch}
    taken = [lengths[i] for group in groups for i in group]
    assert taken == sorted(taken)
    assert 0 <= len(taken) - limit < batch
    ranks = np.sort(lengths)
    wanted = [ranks[int((i + 0.5) / len(taken) * len(lengths))] for i in range(len(taken))]
    assert np.abs(np.array(taken) - wanted).max() <= np.diff(ranks, prepend=ranks[0]).max()


def test_streams_run_everything_once_and_at_the_same_time() -> None:
    most, now, done, lock = 0, 0, [], threading.Lock()

    def run(item: int) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1
            done.append(item)

    run_concurrently(run, iter(range(1, 10)), 3)
    assert sorted(done) == list(range(1, 10))
    assert most == 3


def test_an_error_in_a_stream_is_raised() -> None:
    def run(item: int) -> None:
        raise MemoryError(str(item))

    with pytest.raises(MemoryError):
        run_concurrently(run, iter([1, 2, 3]), 2)


def test_a_report_states_means_intervals_the_best_point_and_reasons() -> None:
    points = [
        {"batch": 1, "streams": 1, "per_s": [10.0, 12.0, 11.0, 11.0, 11.0, 13.0]},
        {"batch": 4, "streams": 1, "per_s": [40.0, 20.0]},
        {"batch": 16, "streams": 1, "per_s": [], "reason": "killed"},
        {"batch": 1, "streams": 2, "per_s": [], "reason": "one at a time"},
    ]
    m = Measurement(
        subject="a",
        target="t",
        status="ok",
        evidence="measured",
        digest="",
        size_bytes=1,
        threads=1,
        throughputs=points,
    )
    first, second = throughputs_of(m)
    mean, error = np.mean(points[0]["per_s"]), scipy.stats.sem(points[0]["per_s"])
    low, high = scipy.stats.t.interval(0.95, 5, loc=mean, scale=error)
    assert (first.per_s, first.low, first.high) == pytest.approx((mean, low, high), rel=1e-4)
    assert not first.best
    assert (second.per_s, second.low, second.high, second.best) == (30.0, None, None, True)
    assert missing_throughputs(m) == {
        "throughput": "killed",
        "throughput, batch 16": "killed",
        "throughput, batch 1, 2 streams": "one at a time",
    }
    assert missing_throughputs(m.model_copy(update={"throughput_per_s": 1.0, "throughputs": points[:2]})) == {}
