"""Energy counters and NVML, read from a fake powercap folder and a fake pynvml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.bench import nvml
from compress.bench.energy import Usage, find_meter
from compress.bench.environment import gpus

RANGE = 1_000_000


def zone(root: Path, folder: str, name: str, energy: int) -> Path:
    path = root / folder
    path.mkdir(exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return path


def test_packages_are_summed_and_parts_of_them_left_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:1", "package-1", 200)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 9)
    meter = find_meter("cpu", tmp_path)
    assert meter is not None
    before = meter.read()
    assert (before, meter.source) == ([100, 200], "RAPL package")
    (first / "energy_uj").write_text("600100\n")
    (second / "energy_uj").write_text("400200\n")
    after = meter.read()
    assert before is not None
    assert after is not None
    assert meter.joules(before, after) == pytest.approx(1.0)


def test_counter_that_began_again_is_carried_over_its_range(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = find_meter("cpu", tmp_path)
    assert meter is not None
    assert meter.joules([900_000], [100_000]) == pytest.approx(0.2)


def test_absent_or_unreadable_counters_are_no_meter(tmp_path: Path) -> None:
    assert find_meter("cpu", tmp_path / "absent") is None
    assert find_meter("cpu", tmp_path) is None
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()
    assert find_meter("cpu", tmp_path) is None, "as for a user who may not read the file"


def test_usage_adds_up_and_is_absent_where_nothing_was_read(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter, usage = find_meter("cpu", tmp_path), Usage()
    assert usage.facts() == {}
    assert meter is not None
    usage.add(meter, [0], [250_000], 0.5, 10)
    usage.add(meter, [250_000], [500_000], 0.25, 10)
    assert usage.facts() == {
        "energy_joules": pytest.approx(0.5),
        "energy_source": "RAPL package",
        "energy_inputs": 20,
        "energy_seconds": 0.75,
    }


def test_gpu_energy_is_read_in_millijoules(fake_nvml: Callable[..., Any]) -> None:
    fake_nvml(energy=5000)
    meter = find_meter("cuda")
    assert meter is not None
    assert (meter.read(), meter.source, meter.joules([5000], [6500])) == ([5000], "NVML", 1.5)
    fake_nvml(energy=None)
    assert find_meter("cuda") is None


def test_gpu_memory_of_a_process_is_summed_over_devices(fake_nvml: Callable[..., Any]) -> None:
    held = [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=None)]
    fake_nvml(processes=held, devices=2)
    assert nvml.process_bytes(7) == 200
    assert nvml.process_bytes(8) is None, "listed, but the driver does not tell"
    assert nvml.process_bytes(9) is None, "not listed, as in a container"
    assert nvml.other_processes(frozenset({7})) == [8]
    fake = fake_nvml()
    assert gpus() == [{"name": "Fake GPU", "memory_bytes": 1024, "driver": "1.0"}]
    assert fake.open == 0, "every nvmlInit was shut down"


def test_no_driver_is_no_gpu(fake_nvml: Callable[..., Any]) -> None:
    fake_nvml(driver=False)
    assert (gpus(), nvml.process_bytes(1), nvml.other_processes(frozenset()), nvml.energy_millijoules()) == (
        [],
        None,
        [],
        None,
    )
