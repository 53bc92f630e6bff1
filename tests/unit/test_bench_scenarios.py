"""Scenarios: the search for a rate against the closed form of a queue, LoadGen's summary, what a report says."""

from __future__ import annotations

import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq

from compress.bench import loadgen, scenarios
from compress.bench.launch import ChildError
from compress.bench.loadgen import Driver, read_summary
from compress.bench.measurement import Measurement
from compress.bench.protocol import MeasureSettings, silent
from compress.bench.scenarios import MISSING, SERVER_RUNS, RateSearch, derived_bound_ms, measure_scenarios
from compress.data.encoded import Encoded
from compress.pipeline.scenarios import missing_scenarios, scenarios_of

SERVICE_MS = 10.0
"""Every inference of the fake takes this long: with Poisson arrivals it is the queue M/D/1."""


def md1_rate(bound_ms: float, share: float = 0.99) -> float:
    """Arrivals per second at which that share of an M/D/1 queue's answers takes ``bound_ms`` at most (Erlang 1909)."""
    service, wait = SERVICE_MS / 1e3, (bound_ms - SERVICE_MS) / 1e3

    def answered(rate: float) -> float:
        terms = (
            (rate * (k * service - wait)) ** k / math.factorial(k) * math.exp(-rate * (k * service - wait))
            for k in range(int(wait / service) + 1)
        )
        return (1 - rate * service) * sum(terms)

    return float(brentq(lambda rate: answered(rate) - share, 1e-6, 0.999 / service))


def fake_loadgen(queries: int = 200_000) -> ModuleType:
    """LoadGen's interface; a server run simulates the queue, other runs take ``SERVICE_MS`` per sample."""
    module: Any = ModuleType(loadgen.MODULE)
    module.__spec__ = ModuleSpec(loadgen.MODULE, None)
    suts: list[Any] = []

    def start(sut: int, qsl: int, settings: Any, logs: Any, audit: str) -> None:
        samples = [SimpleNamespace(id=i, index=i % 3) for i in range(4)]
        suts[sut](samples)
        latencies, lines = np.full(queries, SERVICE_MS), ["Result is : VALID"]
        if settings.scenario == "Server":
            latencies = simulate(settings.server_target_qps, queries)
            kept = np.percentile(latencies, 99) <= settings.server_target_latency_ns / 1e6
            result, word = ("VALID", "Yes") if kept else ("INVALID", "NO")
            lines = [f"Completed samples per second    : {settings.server_target_qps:.2f}", f"Result is : {result}"]
            lines.append(f"  Performance constraints satisfied : {word}")
        elif settings.scenario == "Offline":
            lasts = settings.offline_expected_qps * settings.min_duration_ms / 1e3 * SERVICE_MS / 1e3
            word = "Yes" if lasts * 1e3 >= settings.min_duration_ms else "NO"
            lines = [f"Samples per second: {1e3 / SERVICE_MS}", f"Result is : {'' if word == 'Yes' else 'IN'}VALID"]
            lines.append(f"  Min duration satisfied : {word}")
        lines += [f"{q:.2f} percentile latency (ns)   : {np.percentile(latencies, q) * 1e6:.0f}" for q in (90, 99)]
        Path(logs.log_output.outdir, "mlperf_log_summary.txt").write_text("\n".join(lines), encoding="utf-8")

    def construct(issue: Any, flush: Any) -> int:
        suts.append(issue)
        return len(suts) - 1

    module.TestSettings = module.LogSettings = module.LogOutputSettings = SimpleNamespace
    module.TestScenario = SimpleNamespace(SingleStream="SingleStream", Offline="Offline", Server="Server")
    module.TestMode = SimpleNamespace(PerformanceOnly="PerformanceOnly")
    module.ConstructSUT, module.ConstructQSL = construct, lambda *_: 0
    module.DestroySUT = module.DestroyQSL = lambda _: None
    module.QuerySampleResponse = lambda id_, data, size: id_
    module.QuerySamplesComplete = lambda responses: None
    module.StartTestWithLogSettings = start
    return module


def simulate(rate: float, queries: int) -> np.ndarray:
    """Latencies in ms, by Lindley's recursion: W' = max(0, W + service - gap)."""
    gaps = np.random.default_rng(0).exponential(1e3 / rate, queries)
    steps = np.concatenate([[0.0], np.cumsum(SERVICE_MS - gaps[1:])])
    return steps - np.minimum.accumulate(steps) + SERVICE_MS


class Model:
    """A session that counts what it runs, and fails where told to."""

    def __init__(self, fails: bool = False) -> None:
        self.ran: list[tuple[int, ...]] = []
        self.fails = fails

    def run(self, feed: dict[str, np.ndarray]) -> None:
        if self.fails:
            raise MemoryError("no room")
        self.ran.append(feed["input_ids"].shape)


ENCODED = Encoded({"input_ids": [np.ones(n, dtype=np.int64) for n in (3, 5, 2)]}, {"input_ids": 0})


class FakeChild:
    """Runs scenarios in this process."""

    def __init__(self, model: Model) -> None:
        self.alive, self.model = True, model

    def ask(self, op: str, scenario: str, indices: list[int], **job: Any) -> dict[str, Any]:
        try:
            return Driver(self.model, ENCODED, indices).run(scenario, **job)  # type: ignore[arg-type]
        except MemoryError as error:
            raise ChildError("oom", f"scenario: {error}") from error


def lane(ms: float = SERVICE_MS, model: Model | None = None, points: list[dict[str, Any]] | None = None) -> Any:
    facts = {"throughputs": points or []}
    child = FakeChild(model or Model())
    return SimpleNamespace(child=child, facts=facts, samples=[[[ms] * 4]], warnings=[], not_measured={})


def run(lanes: list[Any], **changes: Any) -> list[dict[str, Any]]:
    settings = MeasureSettings(**{"scenarios": ["server"], "scenario_seconds": 10.0, **changes})
    measure_scenarios(lanes, [0, 1, 2], settings, silent)
    return [entry for one in lanes for entry in one.facts["scenarios"]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, loadgen.MODULE, fake_loadgen())


@pytest.mark.parametrize("bound_ms", [25.0, 50.0, 90.0])
def test_the_rate_found_is_that_of_the_queue(bound_ms: float, installed: None) -> None:
    (entry,) = run([lane()], server_latency_ms=bound_ms)
    assert len(entry["runs"]) == SERVER_RUNS
    (result,) = scenarios_of(record([entry]))
    assert result.valid
    truth, capacity = md1_rate(bound_ms), 1e3 / SERVICE_MS
    assert result.value == pytest.approx(truth, abs=capacity / 2**SERVER_RUNS + 0.01 * truth)
    assert (result.observed_ms or 0) <= bound_ms
    assert result.percentile == 99.0


def test_closed_form_agrees_with_the_simulation() -> None:
    assert np.percentile(simulate(md1_rate(50.0), 2_000_000), 99) == pytest.approx(50.0, rel=0.02)


@pytest.mark.parametrize("truth", [3.0, 40.0, 99.0])
def test_bisection_closes_in_on_the_rate(truth: float) -> None:
    search = RateSearch(100.0, least=0.0)
    tried = []
    while (rate := search.next) is not None:
        tried.append(rate)
        search.add(rate, rate <= truth)
    assert len(tried) == SERVER_RUNS
    assert 0 <= truth - max((r for r in tried if r <= truth), default=0.0) <= 100 / 2**SERVER_RUNS


def test_search_tries_no_rate_that_could_not_have_its_queries() -> None:
    search = RateSearch(100.0, least=30.0)
    for _ in range(SERVER_RUNS - 1):
        search.add(search.next or 0.0, False)
    assert 30.0 < (search.next or 0.0) < 33.0
    assert RateSearch(100.0, least=100.0).next is None
    (entry,) = run([lane(ms=900.0)], server_latency_ms=1000.0)
    assert entry["reason"] == "too slow for a 99th percentile in this time: set scenario_seconds to 276"


def test_a_bound_that_no_rate_can_keep_is_a_reason(installed: None) -> None:
    (entry,) = run([lane()], server_latency_ms=5.0)
    assert "10 ms, is above the bound of 5 ms" in entry["reason"]
    assert entry["runs"] == []


def test_without_a_bound_all_artifacts_get_twice_the_slowest_percentile(installed: None) -> None:
    fast, slow = run([lane(), lane(ms=40.0)])
    assert (fast["bound_ms"], slow["bound_ms"], fast["bound"]) == (80.0, 80.0, "derived")
    assert derived_bound_ms([4.0, 6.17]) == 13.0
    assert derived_bound_ms([0.0307]) == 0.062


def test_offline_takes_the_best_batch_and_a_second_run_where_the_first_was_short(installed: None) -> None:
    points = [
        {"batch": 1, "streams": 1, "per_s": [50.0]},
        {"batch": 2, "streams": 1, "per_s": [60.0]},
        {"batch": 4, "streams": 1, "per_s": [70.0], "reason": "no room"},
        {"batch": 4, "streams": 2, "per_s": [99.0]},
    ]
    model = Model()
    (entry,) = run([lane(model=model, points=points)], scenarios=["offline"])
    assert [run["rate"] for run in entry["runs"]] == [60.0, 1e3 / SERVICE_MS]
    assert model.ran == [(2, 3), (2, 5)] * 2, "samples 0, 1, 2, 0 in batches of two, sorted by length"
    (result,) = scenarios_of(record([entry]))
    assert (result.value, result.unit, result.valid) == (100.0, "per s", True)
    assert "24,576 samples" in result.text
    assert "Batches of 2" in result.text


def test_single_stream_states_the_90th_percentile(installed: None) -> None:
    (entry,) = run([lane()], scenarios=["single-stream"])
    (result,) = scenarios_of(record([entry]))
    assert (result.value, result.unit, result.percentile, result.queries) == (SERVICE_MS, "ms", 90.0, 4)
    assert result.text.startswith("MLPerf-style, not an MLPerf result")
    assert "600 s" in result.text


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_an_error_of_the_session_does_not_cross_loadgen(scenario: str, installed: None) -> None:
    broken = lane(model=Model(fails=True))
    (entry,) = run([broken], scenarios=[scenario], server_latency_ms=50.0)
    assert entry["reason"] == "scenario: no room"
    assert missing_scenarios(record([entry])) == {f"scenario {scenario}": "scenario: no room"}
    assert scenarios_of(record([entry])) == ()


def test_without_loadgen_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "find_spec", lambda name: None)
    entries = run([lane()], scenarios=["single-stream", "server"])
    assert {entry["reason"] for entry in entries} == {MISSING}
    assert "mcompress[loadgen]" in MISSING


def test_a_process_that_had_ended_is_a_reason(installed: None) -> None:
    dead, alive = lane(), lane()
    dead.child.alive = False
    measure_scenarios([dead, alive], [0, 1, 2], MeasureSettings(scenarios=["single-stream"]), silent)
    assert dead.not_measured == {"scenarios": "the measuring process had ended"}
    assert (len(alive.facts["scenarios"]), alive.not_measured) == (1, {})


def test_a_search_that_failed_everywhere_has_no_value() -> None:
    runs = [
        {"valid": False, "unmet": ["Early stopping"], "latencies_ms": {"99": 60.0}, "per_s": r, "rate": r}
        | {"queries": 459, "seconds": 9.0}
        for r in (50.0, 25.0)
    ]
    entry = {"scenario": "server", "batch": 1, "bound_ms": 50.0, "bound": "given", "runs": runs}
    (result,) = scenarios_of(record([entry]))
    assert (result.value, result.valid, result.observed_ms) == (None, False, 60.0)
    assert "No rate kept the bound; the lowest was 25 per s (early stopping)" in result.text


def test_summary_is_read_as_loadgen_writes_it() -> None:
    text = """
Completed samples per second    : 47.00
Result is : INVALID
  Performance constraints satisfied : Yes
  Min queries satisfied : NO
  Early stopping satisfied: NO
Early Stopping Result:
 * Would need to run at least 315 more queries,
Scheduled samples per second : 47.16
50.00 percentile latency (ns)   : 10408027
99.00 percentile latency (ns)   : 37390897
min_duration (ms): 3000
"""
    assert read_summary(text) == {
        "valid": False,
        "unmet": ["Min queries", "Early stopping"],
        "latencies_ms": {"50": 10.408027, "99": 37.390897},
        "per_s": 47.0,
    }


def record(entries: list[dict[str, Any]]) -> Measurement:
    return Measurement(
        subject="a", target="t", status="ok", evidence="measured", digest="", size_bytes=1, threads=1, scenarios=entries
    )
