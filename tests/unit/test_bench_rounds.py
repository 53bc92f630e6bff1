"""Order, budget and end of the rounds, with fake children and a fake clock: who runs when, what a death leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from compress.artifact import Artifact
from compress.bench import idle, lane, protocol
from compress.bench.launch import ChildError
from compress.bench.measurement import Measurement
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.bench.rounds import Pace, half_widths, launch_share, rotated
from compress.bench.timing_statistics import ratio_of_totals
from compress.data.encoded import Encoded
from compress.pipeline.costs import costs_of
from compress.runtimes.target import Target, find_target

Log = list[tuple[str, str]]
PLAIN = {"launches": 1, "precision": None}
"""Settings of a fixed number of rounds in one launch."""


class FakeChild:
    """Answers as the worker would, logs (artifact, op), fails where told to; a round of any kind takes a second.

    Attributes:
        failures: (artifact, op) -> what every such job ends with; with a number, from that launch on.
        series: artifact -> the ms that each input of its next round takes; 1 where there are none.
        opened: how often each artifact was.
    """

    log: Log
    failures: dict[tuple[Any, ...], ChildError]
    series: dict[str, Iterator[float]]
    opened: dict[str, int]
    now: float
    jobs: list[dict[str, Any]]

    def __init__(self, target: Any) -> None:
        self.alive, self.enforcement = True, None

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, kill: bool = False) -> None:
        self.alive = False

    def open(self, artifact: str, target: Any, encoded: str) -> dict[str, Any]:
        self.name = Path(artifact).name
        return self.ask("open")

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        self.log.append((self.name, op))
        self.jobs.append({"op": op} | job)
        FakeChild.now += op in {"round", "end_to_end"}
        if op == "open":
            self.opened[self.name] = self.opened.get(self.name, 0) + 1
        launch = self.opened[self.name]
        failure = self.failures.get((self.name, op)) or self.failures.get((self.name, op, launch))
        if failure is not None:
            self.alive = failure.status != "oom"
            raise failure
        ms = next(self.series[self.name]) if op == "round" and self.name in self.series else 1.0
        if op == "predict":
            np.save(job["out"], np.zeros((24, 2), dtype=np.float32))
        return {
            "open": {"load_ms": 2.0 * launch, "import_rss_bytes": 10, "runtime_version": "1"},
            "warmup": {"first_ms": 3.0 * launch, "settled": self.name != "c", "warmup_s": launch},
            "round": {"ms": [ms] * len(job.get("indices", ()))},
            "memory": {"peak_rss_bytes": 20, "frameworks": []},
            "prepare_end_to_end": {},
            "end_to_end": {"ms": [4.0] * 5},
            "predict": {"examples": 24},
            "throughput_prepare": {},
            "throughput": {"per_s": 5.0, "seconds": 0.1},
            "placement": {"placement": {"providers": ["CPU"]}},
        }[op]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeChild]:
    FakeChild.log, FakeChild.failures, FakeChild.series, FakeChild.opened, FakeChild.jobs = [], {}, {}, {}, []
    FakeChild.now = 0.0
    monkeypatch.setattr(lane, "Child", FakeChild)
    monkeypatch.setattr(protocol.idle, "begin", lambda cores, device: (idle.Watch((), {}, 0.0), ["busy"]))
    monkeypatch.setattr(protocol.idle, "end", lambda watch, device, threads: [])
    monkeypatch.setattr(protocol, "find_meter", lambda device: None)
    return FakeChild


@pytest.fixture
def subjects(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> list[Subject]:
    return [Subject(name, tiny_onnx(name), tiny_encoded, find_target("ort-cpu-1t")) for name in "abc"]


@pytest.fixture
def run(fake: type[FakeChild], subjects: list[Subject], tmp_path: Path) -> Callable[..., list[Measurement]]:
    """Return ``run(subjects, **settings)``: measure on the clock that only rounds move on."""

    def run(some: list[Subject] | None = None, **settings: Any) -> list[Measurement]:
        return measure(
            some or subjects,
            settings=MeasureSettings(**{"inputs": 5, "precision": 0.01} | settings),
            work=tmp_path,
            clock=lambda: FakeChild.now,
        )

    return run


def rounds(log: Log, op: str = "round") -> str:
    return "".join(name for name, done in log if done == op)


def test_rounds_interleave_and_rotate(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    rows = run(rounds=4, **PLAIN)
    assert rounds(fake.log) == "abcbcacababc"
    assert [name for name, op in fake.log if op in {"open", "warmup"}] == ["a", "a", "b", "b", "c", "c"]
    tail = [(name, op) for name, op in fake.log if op not in {"open", "warmup", "round"}]
    assert tail[:9] == [(name, op) for name in "abc" for op in ("memory", "predict", "placement")]
    assert {op for _, op in tail[9:]} == {"throughput_prepare", "throughput"}
    assert [np.array(row.samples_ms).shape for row in rows] == [(1, 4, 5)] * 3
    assert rows[0].warnings == ["busy"]
    assert rows[2].warnings == ["busy", "launch 1: latency had not settled when warm-up ended"]


def test_artifacts_take_turns_within_a_round(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    """24 inputs are turns of 10, 10 and 4; who goes first rotates through the turns and then through the rounds."""
    rows = run(inputs=24, rounds=2, **PLAIN)
    assert rounds(fake.log) == "abcbcacab" + "bcacababc"
    assert [np.array(row.samples_ms).shape for row in rows] == [(1, 2, 24)] * 3


def test_a_round_that_a_child_does_not_survive_is_dropped(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    def until_gone() -> Iterator[float]:
        yield from [1.0] * 4
        raise ChildError("failed", "round: gone")  # in the second turn of the second round

    fake.series["b"] = until_gone()
    rows = run(inputs=24, rounds=2, **PLAIN)
    assert [len(row.samples_ms[0]) for row in rows] == [2, 1, 2]
    assert [row.status for row in rows] == ["ok", "failed", "ok"]


def test_the_next_launch_begins_with_the_next_artifact(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    run(rounds=1, launches=3, precision=None)
    assert rounds(fake.log) == "abcbcacab"
    assert rounds(fake.log, "open") == "abcbcacab"
    assert [list(rotated("ab", number)) for number in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_latency_alone_asks_for_nothing_else(fake: type[FakeChild], subjects: list[Subject], tmp_path: Path) -> None:
    rows_too = [replace(subject, rows=[{"text": "a"}] * 24) for subject in subjects]
    settings = MeasureSettings(inputs=5, rounds=3, **PLAIN)
    rows = measure(rows_too, settings=settings, work=tmp_path, latency_only=True, batch_size=2)
    assert {op for _, op in fake.log} == {"open", "warmup", "round"}
    assert [(row.status, row.outputs, row.peak_rss_bytes) for row in rows] == [("ok", None, None)] * 3


def test_targets_with_other_threads_form_another_group(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    a, b, c = subjects
    two = Target(name="two", runtime="onnxruntime", threads=2)
    limited = find_target("edge-512m")
    mixed = [a, replace(b, target=two), replace(c, target=limited)]
    rows = measure(mixed, settings=MeasureSettings(inputs=5, rounds=2, **PLAIN), work=tmp_path)
    assert rounds(fake.log) == "accabb", "one thread with one thread, whatever the memory limit"
    assert [(row.subject, row.target) for row in rows] == [("a", "ort-cpu-1t"), ("b", "two"), ("c", "edge-512m")]


def test_time_budget_is_shared_by_launches_and_leaves_three_rounds(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    rows = run(rounds=9, seconds=30, launches=2, precision=None)
    assert [len(launch) for launch in rows[0].samples_ms] == [5, 5], "three artifacts: three seconds a round"
    assert "5 of 9 rounds: the time for this group was used up" in rows[0].warnings
    assert rounds(fake.log, "predict") == "abc", "only the last launch predicts"
    assert [len(launch) for launch in run(rounds=9, seconds=0.001, **PLAIN)[0].samples_ms] == [3]


def noisy(spread: float) -> Iterator[float]:
    """Rounds that differ by this share, up and down."""
    return (1.0 + spread * (-1) ** number for number in itertools.count())


def test_rounds_end_when_every_ratio_is_precise(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    fake.series["b"] = noisy(0.002)
    rows = run()
    assert [len(launch) for launch in rows[0].samples_ms] == [5, 5, 5]
    assert [row.warnings for row in rows[:2]] == [["busy"], ["busy"]]


def test_one_imprecise_ratio_keeps_all_going_and_says_so_in_its_row(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    fake.series["b"] = noisy(0.2)
    rows = run(rounds=7, seconds=1000)
    assert [[len(launch) for launch in row.samples_ms] for row in rows] == [[7, 7, 7]] * 3
    assert rows[0].warnings == ["busy"], "the first row is what the others are compared with"
    (warning,) = rows[1].warnings[1:]
    width = half_widths([rows[0].samples_ms, rows[1].samples_ms])[0]
    assert width > 0.01
    assert warning == (
        f"precision of ±1 % not reached: ±{100 * width:.2g} % after 21 rounds, no more than 7 per launch are run"
    )


def test_missed_precision_names_the_time_that_was_used_up(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    fake.series["b"] = noisy(0.2)
    rows = run(seconds=54)
    assert [len(launch) for launch in rows[0].samples_ms] == [6, 6, 6], "54 s, 3 launches, 3 s a round"
    assert rows[1].warnings[-1].endswith("after 18 rounds, the time for this group was used up")


def test_time_that_a_launch_leaves_goes_to_the_next_ones(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    fake.series["b"] = itertools.chain([1.0] * 5, noisy(0.2))
    rows = run(seconds=60, launches=2)
    assert [len(launch) for launch in rows[0].samples_ms] == [5, 15], "15 s spent, 45 s left"


def test_launches_that_differ_are_the_reason_where_each_was_precise(
    fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    fake.series["b"] = itertools.chain([1.0] * 5, [1.2] * 5, [1.1] * 5)
    rows = run()
    assert [len(launch) for launch in rows[1].samples_ms] == [5, 5, 5]
    assert rows[1].warnings[-1].endswith("after 15 rounds, its launches differ from one another")


def test_a_row_alone_is_measured_to_the_precision_of_its_own_total(
    fake: type[FakeChild], subjects: list[Subject], run: Callable[..., list[Measurement]]
) -> None:
    assert [len(launch) for launch in run(subjects[:1])[0].samples_ms] == [5, 5, 5]
    fake.series["a"] = noisy(0.2)
    row = run(subjects[:1], rounds=6)[0]
    assert [len(launch) for launch in row.samples_ms] == [6, 6, 6]
    assert row.warnings[-1].startswith("precision of ±1 % not reached")


def test_a_single_round_has_no_precision_at_all(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    rows = run(launches=1, rounds=1)
    assert rows[1].warnings[-1] == (
        "precision of ±1 % not reached: no interval after 1 round, no more than 1 per launch are run"
    )


def test_share_of_a_launch_makes_equal_launches_as_precise_as_asked_together() -> None:
    assert launch_share(1) == 1.0
    assert launch_share(3) == pytest.approx(3**0.5 * 1.959964 / 4.302653, rel=1e-6)
    assert launch_share(5) == pytest.approx(5**0.5 * 1.959964 / 2.776445, rel=1e-6)


def test_cold_costs_are_medians_over_the_launches(run: Callable[..., list[Measurement]]) -> None:
    row = run(launches=3)[0]
    assert (row.load_ms, row.first_ms, row.warmup_s) == (4.0, 6.0, 2.0), "2, 4, 6 and 3, 6, 9 and 1, 2, 3"


def test_second_clock_has_rounds_of_its_own_after_the_model_ones(
    fake: type[FakeChild], subjects: list[Subject], run: Callable[..., list[Measurement]]
) -> None:
    texts = [{"text": f"text {i}", "text_pair": None, "label": "x"} for i in range(24)]
    rows = run([replace(subject, rows=texts) for subject in subjects[:2]], launches=2)
    assert [np.array(row.end_to_end_ms).shape for row in rows] == [(2, 5, 5)] * 2
    ops = [op for name, op in fake.log if name == "a"]
    first, second = ops[: ops.index("open", 1)], ops[ops.index("open", 1) :]
    assert first == ["open", "warmup", *["round"] * 5, "prepare_end_to_end", *["end_to_end"] * 5]
    order = [op for op in second if op not in {"round", "end_to_end"}]
    assert order[:6] == ["open", "warmup", "memory", "predict", "placement", "prepare_end_to_end"], (
        "memory is taken before a tokenizer is loaded"
    )
    assert set(order[6:]) == {"throughput_prepare", "throughput"}
    assert rounds(fake.log, "end_to_end")[:4] == "abba"


def test_second_clock_keeps_a_quarter_of_the_time(
    fake: type[FakeChild], subjects: list[Subject], run: Callable[..., list[Measurement]]
) -> None:
    fake.series["b"] = noisy(0.2)
    texts = [{"text": "a", "text_pair": None}] * 24
    row = run([replace(subject, rows=texts) for subject in subjects[:2]], launches=1, seconds=24)[0]
    assert (len(row.samples_ms[0]), len(row.end_to_end_ms[0])) == (9, 3), "18 s and 6 s at 2 s a round"
    off = run([replace(subject, rows=texts) for subject in subjects], end_to_end=False)[0]
    assert off.end_to_end_ms == []


@pytest.mark.parametrize(("status", "op"), [("failed", "prepare_end_to_end"), ("oom", "end_to_end")])
def test_second_clock_that_fails_leaves_the_rest_of_the_row(
    status: Any,
    op: str,
    fake: type[FakeChild],
    subjects: list[Subject],
    run: Callable[..., list[Measurement]],
) -> None:
    fake.failures["a", op] = ChildError(status, f"{op}: no tokenizer")
    texts = [{"text": "a", "text_pair": None}] * 24
    a, b = run([replace(subject, rows=texts) for subject in subjects[:2]], launches=2)
    assert (a.status, a.end_to_end_ms, a.not_measured) == ("ok", [], {"end_to_end": f"{op}: no tokenizer"})
    assert f"{op}: no tokenizer" in a.warnings
    assert [len(launch) for launch in a.samples_ms] == [5, 5], "opened afresh in the second launch"
    assert a.throughput_per_s == 5.0
    assert [len(launch) for launch in b.end_to_end_ms] == [5, 5]


def test_child_that_the_second_clock_kills_at_last_still_has_predicted(
    fake: type[FakeChild], subjects: list[Subject], run: Callable[..., list[Measurement]]
) -> None:
    fake.failures["a", "end_to_end"] = ChildError("oom", "end_to_end: killed")
    row = run([replace(subjects[0], rows=[{"text": "a"}] * 24)], launches=1)[0]
    assert row.status == "ok"
    assert row.outputs is not None
    assert row.not_measured["throughput"] == "the measuring process had ended"


def stopped_pair(rng: np.random.Generator, spread: float) -> tuple[list[Any], list[Any]]:
    """Two equal artifacts whose rounds drift together and vary apart, for as long as a default pace lets them."""
    pace, inputs = Pace(MeasureSettings(), lambda: 0.0), rng.uniform(1, 5, 20)
    a: list[list[list[float]]] = []
    b: list[list[list[float]]] = []
    for _ in range(3):
        a.append([])
        b.append([])
        pace.begin()
        while not a[-1] or not pace.ends(len(a[-1]), lambda: [a, b]):
            drift = np.exp(rng.normal(0, 0.05))
            for side in (a, b):
                side[-1].append(list(inputs * drift * np.exp(rng.normal(0, spread))))
    return a, b


def test_stopping_when_precise_keeps_the_coverage_of_the_interval() -> None:
    rng = np.random.default_rng(1)
    held, lengths = 0, []
    for _ in range(100):
        a, b = stopped_pair(rng, spread=0.012)
        ratio = ratio_of_totals(a, b, resamples=1000)
        held += ratio.low <= 1 <= ratio.high
        lengths += [len(launch) for launch in a]
    assert held >= 88, "of 100 intervals of 95 %: fewer have a chance below 1 in 200"
    assert 5 in lengths
    assert max(lengths) > 5, "the rule was at work"


class FakeMeter:
    """A counter that gives 10 J for each second of the clock."""

    source = "fake"

    def read(self) -> list[int]:
        return [int(10 * FakeChild.now)]

    def joules(self, before: list[int], after: list[int]) -> float:
        return float(after[0] - before[0])


def test_energy_is_of_the_rounds_of_one_launch_each_row_alone(
    run: Callable[..., list[Measurement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "find_meter", lambda device: FakeMeter())
    row = run(launches=2)[0]
    assert (row.energy_joules, row.energy_seconds, row.energy_inputs, row.energy_source) == (50.0, 5.0, 25, "fake")
    costs = costs_of(row)["energy"]
    assert (costs.joules_per_input, costs.watts, costs.source) == (2.0, 10.0, "fake")
    monkeypatch.setattr(protocol, "find_meter", lambda device: None)
    assert costs_of(run(launches=1)[0])["energy"] is None


def test_death_in_a_round_ends_one_row_only(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    fake.failures["b", "round"] = ChildError("failed", "round: gone")
    a, b, c = run(rounds=3, launches=2, precision=None)
    assert [(row.status, row.reason) for row in (a, b, c)] == [("ok", ""), ("failed", "round: gone"), ("ok", "")]
    assert rounds(fake.log).count("b") == 1
    assert b.samples_ms == []
    assert (b.load_ms, b.first_ms) == (2.0, 3.0), "what was measured before stays"


@pytest.mark.parametrize("name", "ab")
def test_death_in_the_second_launch_keeps_the_first_and_the_others_go_on(
    name: str, fake: type[FakeChild], run: Callable[..., list[Measurement]]
) -> None:
    fake.failures[name, "round", 2] = ChildError("failed", "round: gone")
    rows = {row.subject: row for row in run()}
    gone = rows.pop(name)
    assert (gone.status, [len(launch) for launch in gone.samples_ms]) == ("failed", [5])
    for row in rows.values():
        assert (row.status, [len(launch) for launch in row.samples_ms]) == ("ok", [5, 5, 5])
    assert fake.opened[name] == 2, "not opened again"
    assert rounds(fake.log, "predict") == "".join(rows)


def test_group_whose_last_child_dies_ends(fake: type[FakeChild], run: Callable[..., list[Measurement]]) -> None:
    for name in "abc":
        fake.failures[name, "round", 2] = ChildError("failed", "round: gone")
    rows = run()
    assert {row.status for row in rows} == {"failed"}
    assert fake.opened == {"a": 2, "b": 2, "c": 2}


def test_memory_that_runs_out_in_a_batch_is_a_warning(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    fake.failures["a", "throughput"] = ChildError("oom", "throughput: killed at the memory limit of 512 MiB")
    settings = MeasureSettings(inputs=5, rounds=3, **PLAIN)
    row = measure(subjects[:1], settings=settings, work=tmp_path)[0]
    assert (row.status, row.throughput_per_s, row.throughput_batch) == ("ok", None, None)
    assert row.outputs is not None
    assert not any("throughput" in warning for warning in row.warnings), "said once, as what is not measured"
    assert {point["reason"][:9] for point in row.throughputs} == {"killed at", "not tried"}


def test_sequence_is_seeded_and_never_longer_than_the_split(
    fake: type[FakeChild], subjects: list[Subject], tmp_path: Path
) -> None:
    settings = MeasureSettings(inputs=100, rounds=1, **PLAIN)
    rows = [measure(subjects[:1], settings=settings, work=tmp_path, seed=seed)[0] for seed in (0, 0, 1)]
    assert sorted(rows[0].input_indices) == list(range(24))
    assert rows[0].input_indices == rows[1].input_indices != rows[2].input_indices


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        MeasureSettings.model_validate(yaml.safe_load("{target: [ort-cpu-1t]}"))
    with pytest.raises(ValidationError):
        MeasureSettings(rounds=0)
    assert MeasureSettings.model_validate(MeasureSettings().model_dump()) == MeasureSettings()
    assert all(field.description for field in MeasureSettings.model_fields.values())
