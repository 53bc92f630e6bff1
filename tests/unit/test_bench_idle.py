"""Signs that something else uses the machine: faked system files and counters, one sentence for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.bench import idle
from compress.bench.idle import CoreTime, Watch, core_times, during


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return ``set(load, percents)``: a machine of two cores that is otherwise at rest."""

    def set_(load: float = 0.1, percents: tuple[float, ...] = (0.0, 0.0)) -> None:
        monkeypatch.setattr("psutil.getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: list(percents))
        monkeypatch.setattr(idle.os, "cpu_count", lambda: 2)
        monkeypatch.setattr(idle, "STAT", tmp_path / "stat")
        monkeypatch.setattr(idle, "GOVERNORS", tmp_path)

    set_()
    return set_


@pytest.mark.parametrize(
    ("load", "percents", "expected"),
    [(0.1, (0.0, 0.0), 0), (9.0, (0.0, 0.0), 1), (0.1, (0.0, 80.0), 1), (9.0, (0.0, 80.0), 2), (0.1, (80.0, 0.0), 0)],
)
def test_busy_machine_is_noticed_on_the_measured_core(
    load: float, percents: tuple[float, ...], expected: int, machine: Callable[..., None]
) -> None:
    machine(load, percents)
    assert len(idle.begin([1], "cpu")[1]) == expected


def test_load_of_our_own_threads_is_not_held_against_us(machine: Callable[..., None]) -> None:
    watch = idle.begin([1], "cpu")[0]
    machine(load=2.9)
    assert idle.end(watch, "cpu", threads=1) == []
    machine(load=3.1)
    assert idle.end(watch, "cpu", threads=1) == ["the load average was 2.1 beside ours when measuring ended"]


def test_powersave_governor_is_named(machine: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "cpu1" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("performance\n")
    assert idle.begin([1], "cpu")[1] == []
    (folder / "scaling_governor").write_text("powersave\n")
    assert idle.begin([1], "cpu")[1] == ["the frequency governor of the measured cores is powersave"]
    assert idle.begin([0], "cpu")[1] == []


def test_core_times_are_read_in_seconds() -> None:
    text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 100 50 50 600 100 20 30 50 7 0\nintr 5\n"
    assert core_times(text, 100) == {1: CoreTime(2.5, 0.5, 10.0)}
    assert core_times("cpu0 1 1 1 1\n", 1) == {0: CoreTime(3.0, 0.0, 4.0)}, "old kernels have four columns"
    assert core_times("", 100) == {}


@pytest.mark.parametrize(
    ("busy", "steal", "own", "expected"),
    [
        (90.0, 0.0, 80.0, []),
        (90.0, 0.0, 65.0, ["other processes used 25 % of the measured cores while measuring"]),
        (70.0, 5.0, 70.0, ["the hypervisor took 5 % of the measured cores' time while measuring"]),
        (70.0, 5.0, 10.0, ["other processes", "the hypervisor"]),
        (10.0, 0.0, 50.0, []),
    ],
)
def test_what_others_used_is_what_we_did_not(busy: float, steal: float, own: float, expected: list[str]) -> None:
    watch = Watch((1,), {0: CoreTime(5, 0, 5), 1: CoreTime(1.0, 2.0, 100.0)}, 3.0)
    times = {0: CoreTime(105, 0, 105), 1: CoreTime(1.0 + busy, 2.0 + steal, 200.0)}
    found = during(watch, times, own)
    assert len(found) == len(expected)
    assert all(sentence.startswith(start) for sentence, start in zip(found, expected, strict=True))


def test_system_that_tells_nothing_gives_no_finding() -> None:
    assert during(Watch((1,), {}, 0.0), {}, 0.0) == []
    assert during(Watch((1,), {1: CoreTime(1, 1, 2)}, 0.0), {1: CoreTime(1, 1, 2)}, 0.0) == []


def test_real_system_files_are_readable_here() -> None:
    watch, found = idle.begin([], "cpu")
    assert all(isinstance(sentence, str) for sentence in found)
    assert watch.own_s > 0
    if idle.STAT.is_file():
        assert all(0 <= time.busy <= time.total for time in watch.times.values())


def test_other_processes_on_the_gpu_are_counted(
    machine: Callable[..., None], fake_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    mine, other = SimpleNamespace(pid=os.getpid(), usedGpuMemory=5), SimpleNamespace(pid=1, usedGpuMemory=None)
    fake_nvml(processes=[mine])
    watch, found = idle.begin([], "cuda")
    assert found == []
    fake_nvml(processes=[mine, other])
    assert idle.begin([], "cuda")[1] == ["other processes on the GPU when measuring began: 1"]
    assert idle.end(watch, "cuda", 1) == ["other processes on the GPU when measuring ended: 1"]
    assert idle.begin([], "cpu")[1] == [], "the GPU does not matter there"
