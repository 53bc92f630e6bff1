"""Clocks, temperature and power of a GPU, from a fake NVML: recorded, drift is said, nothing is ever set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.bench import gpu_software, nvml
from compress.bench.commands import Commands
from compress.bench.gpu_state import drift, in_words
from compress.bench.lane import Lane, Plan
from compress.bench.measurement import Measurement
from compress.bench.protocol import _Group
from compress.bench.settings import MeasureSettings
from compress.pipeline.gpu import on_the_cpu, state_in_words
from compress.runtimes.target import find_target

COOL = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 41, "power_w": 120.4, "throttled": []}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_state_is_read_and_what_is_not_told_is_none(fake_nvml: Callable[..., Any]) -> None:
    fake = fake_nvml()
    state = nvml.device_state()
    assert state == {**COOL, "power_w": 120.4, "memory_used_bytes": 512}

    def refuse(*_: Any) -> None:
        raise fake.NVMLError

    fake.nvmlDeviceGetTemperature = fake.nvmlDeviceGetPowerUsage = refuse
    fake.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x1 | 0x4 | 0x40
    state = nvml.device_state()
    assert state is not None
    assert (state["temperature_c"], state["power_w"]) == (None, None)
    assert state["throttled"] == ["power cap", "hardware thermal limit"], "being idle is no throttling"
    assert fake.open == 0
    fake_nvml(driver=False)
    assert nvml.device_state() is None


def test_the_device_is_the_one_that_cuda_counts_first(
    fake_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, asked = fake_nvml(devices=2), []
    fake.nvmlDeviceGetHandleByPciBusId = lambda bus: asked.append(bus) or 1
    monkeypatch.setattr(nvml, "first_bus_id", lambda: "0000:1B:00.0")
    nvml.device_state()
    assert nvml.energy_millijoules() == 0
    assert asked == ["0000:1B:00.0"] * 2


def test_nothing_of_nvml_that_sets_is_called() -> None:
    import compress.bench

    for file in Path(compress.bench.__path__[0]).glob("*.py"):
        assert "nvmlDeviceSet" not in file.read_text(encoding="utf-8")


def test_a_clock_that_falls_and_a_throttled_gpu_are_said() -> None:
    assert drift([COOL, COOL | {"sm_mhz": 1900}]) == []
    assert drift([COOL, COOL | {"sm_mhz": 1500, "throttled": ["power cap"]}]) == [
        "the GPU's clock changed while measuring: between 1500 and 1980 MHz",
        "the GPU was throttled while measuring: power cap",
    ]
    assert drift([COOL | {"sm_mhz": None, "throttled": None}]) == []
    assert drift([]) == []


def test_the_state_in_words() -> None:
    words = "SM 1,500 to 1,980 MHz, memory 2,619 MHz, 41 °C, 120 W"
    assert in_words([COOL, COOL | {"sm_mhz": 1500}]) == words
    assert in_words([]) == ""
    first = measured(gpu_states=[COOL])
    assert state_in_words([first, measured(), measured(gpu_states=[COOL | {"sm_mhz": 1500}])]) == words


def measured(**fields: Any) -> Measurement:
    facts = {"status": "ok", "evidence": "measured", "digest": "", "size_bytes": 1, "threads": 1} | fields
    return Measurement(subject="a", target="ort-cuda", **facts)


def test_nodes_on_the_cpu_are_a_finding_of_a_gpu_target_only() -> None:
    placement = {"nodes": {CUDA: 18, CPU: 2}, "cpu_node_share": 0.1, "cpu_time_share": 0.031}
    m = measured(placement=placement | {"cpu_operators": {"Gather": 1, "Shape": 1}})
    sentence = "2 of 20 nodes (10 %) ran on the CPU, in 3 % of the kernels' time: Gather, Shape."
    assert list(on_the_cpu(m, find_target("ort-cuda"))) == [sentence]
    assert list(on_the_cpu(m, find_target("ort-cpu-1t"))) == []
    clean = {"nodes": {CUDA: 20}, "cpu_node_share": 0.0, "cpu_time_share": 0.0, "cpu_operators": {}}
    assert list(on_the_cpu(measured(placement=clean), find_target("ort-cuda"))) == []


def test_a_launch_reads_the_state_after_its_first_and_its_last_round(
    fake_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml()
    asked: list[int] = []
    lane = Lane(SimpleNamespace(target=find_target("torch-cuda")), child=SimpleNamespace(), samples=[[]])  # type: ignore[arg-type]
    monkeypatch.setattr(Lane, "turn", lambda self, indices, plan, meter: asked.append(len(group.gpu_states)))
    plan = Plan([0], MeasureSettings(rounds=5, precision=None), True, 1, lambda: 0.0)
    group = _Group([lane], plan, Path(), lambda *_: None, lambda: 0.0)
    ends = iter([False, False, True])
    group.pace = SimpleNamespace(ends=lambda done, series: next(ends), why=lambda: "")  # type: ignore[assignment]
    group.on_gpu, group.gpu_states = True, []
    group._run_rounds(0, None)
    assert asked == [0, 1, 1]
    assert len(group.gpu_states) == 2
    group.on_gpu, group.gpu_states = False, []
    ends = iter([True])
    group._run_rounds(0, None)
    assert group.gpu_states == []


class Timed:
    """A session with a device clock that tells the length of its input."""

    def __init__(self, clock: bool) -> None:
        self.clock = clock

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": np.zeros((1, 2), dtype=np.float32)}

    def device_ms(self, batch: dict[str, np.ndarray]) -> float | None:
        return float(batch["input_ids"].shape[1]) if self.clock else None


def test_the_device_clock_has_runs_of_its_own(tiny_encoded: Any) -> None:
    commands = Commands()
    commands.attach(Timed(True), tiny_encoded, "logits")  # type: ignore[arg-type]
    expected = float(np.median(tiny_encoded.lengths[:5]))
    assert commands.do_device_clock(range(5)) == {"gpu_latency_ms": expected}
    commands.attach(Timed(False), tiny_encoded, "logits")  # type: ignore[arg-type]
    assert commands.do_device_clock(range(5)) == {}


def test_software_is_named_without_importing_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "version.py"
    monkeypatch.setattr(
        gpu_software, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    file.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", encoding="utf-8")
    assert gpu_software.torch_cuda() is None
    file.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n", encoding="utf-8")
    assert gpu_software.torch_cuda() == "13.0"


def test_two_onnxruntimes_are_named_as_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.runtimes import onnxruntime_package

    monkeypatch.setattr(onnxruntime_package, "is_installed", {"onnxruntime", "onnxruntime-gpu"}.__contains__)
    assert "overwrite each other" in str(gpu_software.onnxruntime_facts())
    monkeypatch.setattr(onnxruntime_package, "is_installed", lambda name: False)
    assert gpu_software.onnxruntime_facts() == "not installed"
