"""Emulated targets: no time ever, a stated part of the examples, one reason where they cannot run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.artifact import Artifact
from compress.bench import emulation
from compress.bench.emulation import emulated_part
from compress.bench.measurement import COSTS, Measurement
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError, RecipeError, UsageError
from compress.pipeline.emulated import isa_of, part_of, twin_of
from compress.quantization.isa import reduced_range_for
from compress.report import model as report
from compress.runtimes import arm64_root, arm64_setup
from compress.runtimes.arm64_root import why_no_arm64
from compress.runtimes.base import runtimes
from compress.runtimes.cores import pinned_cores, thread_count
from compress.runtimes.target import Target, builtin_targets, find_target, parse_target
from compress.search.deploy import require_onnx_target
from compress.tasks.text_classification import TextClassification

EMULATED = [target for target in builtin_targets().values() if target.evidence == "emulated"]
COST: dict[str, Any] = {
    "samples_ms": [[[1.0]]],
    "end_to_end_ms": [[[1.0]]],
    "memory_phases": [{"name": "load"}],
    "throughputs": [{"batch": 1}],
    "scenarios": [{"scenario": "offline"}],
}


def row(**fields: Any) -> Measurement:
    usual = {"subject": "a", "target": "t", "status": "ok", "evidence": "emulated", "digest": "d", "size_bytes": 1}
    return Measurement(**(usual | {"threads": 1} | fields))


@pytest.mark.parametrize("name", COSTS)
def test_an_emulated_measurement_refuses_every_cost(name: str) -> None:
    cost = {name: COST.get(name, 1)}
    with pytest.raises(ValidationError, match=name):
        row(**cost)
    assert getattr(row(evidence="measured", **cost), name)
    assert row().status == "ok"


@pytest.mark.parametrize("name", report.COSTS)
def test_an_emulated_row_of_a_report_refuses_every_cost(name: str) -> None:
    latency = report.Latency(p50_ms=1.0, inputs=1, rounds=1)
    values: dict[str, Any] = {
        "latency": latency,
        "speedups": {"x": report.Speedup(ratio=1.0)},
        "end_to_end": report.EndToEnd(latency=latency),
        "throughputs": (report.ThroughputPoint(batch=1, per_s=1.0),),
        "scenarios": (report.ScenarioResult(scenario="offline", value=1.0, unit="per s", valid=True),),
        "energy": report.Energy(joules_per_input=1.0, source="RAPL"),
        "memory": report.Memory(load_growth_bytes=1),
    }
    fields: dict[str, Any] = {"step": "a", "target": "t", name: values.get(name, 1)}
    with pytest.raises(ValidationError, match=name):
        report.Row(evidence="emulated", **fields)
    assert report.Row(evidence="measured", **fields)
    assert report.Row(step="a", target="t", evidence="emulated", agreement=0.5)


def test_built_in_targets_emulate_three_generations() -> None:
    assert {target.emulate for target in EMULATED} == {"cortex-a72", "neoverse-n1", "max"}
    assert {target.runtime for target in EMULATED} == {"onnxruntime-arm64"}
    with pytest.raises(RecipeError):
        parse_target("{name: x, runtime: onnxruntime-arm64, emulate: max}", "x")


def test_the_part_is_a_seeded_draw_without_repetition() -> None:
    part = emulated_part(910, 200, 0)
    assert part == sorted(set(part)) == emulated_part(910, 200, 0) != emulated_part(910, 200, 1)
    assert (len(part), part[0] >= 0, part[-1] < 910) == (200, True, True)
    assert emulated_part(5, 200, 0) == [0, 1, 2, 3, 4]


def test_rows_compare_on_their_own_examples() -> None:
    task = TextClassification(("a", "b"), max_length=8)
    everywhere = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    here = row(evidence="measured", target="ort-cpu-1t", outputs=everywhere)
    there = row(outputs=np.array([[0.0, 1.0], [0.25, 0.5]], dtype=np.float32), examples=[1, 2])
    assert part_of(everywhere, there).tolist() == [[0, 1], [1, 0]]
    twin = twin_of(task, there, [there, here])
    assert twin == report.Twin(target="ort-cpu-1t", n=2, same=1, max_abs=0.75)
    assert twin_of(task, here, [here]) is None
    assert twin_of(task, row(outputs=np.array([[np.nan, 1.0]]), examples=[1]), [here]) is None
    arm = {"flags": ["asimd", "asimddp"], "architecture": "aarch64"}
    assert isa_of(EMULATED[0], row(placement=arm)) == "arm64-dot"
    assert isa_of(EMULATED[0], row(placement=arm | {"flags": ["asimd"]})) == "arm64"
    assert isa_of(EMULATED[0], row()) is None


def test_without_an_emulator_or_a_root_the_row_says_why(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm64_root.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arm64_root.sys, "platform", "linux")
    monkeypatch.setenv("MCOMPRESS_ARM64", str(tmp_path / "nothing"))
    monkeypatch.setattr(arm64_root.shutil, "which", lambda name: None)
    (found,) = measure(
        [Subject("a", tiny_onnx(), tiny_encoded, EMULATED[0])], settings=MeasureSettings(), work=tmp_path
    )
    assert (found.status, found.samples_ms) == ("skipped", [])
    assert "qemu-user-static" in found.reason
    monkeypatch.setattr(arm64_root.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "mcompress arm64 setup" in why_no_arm64()
    with pytest.raises(MissingCapabilityError, match="cannot run here"):
        runtimes.get("onnxruntime-arm64")().require(EMULATED[0])


def test_a_search_for_a_time_does_not_run_an_emulator(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.runtimes.onnxruntime_arm64.why_no_arm64", lambda: "")
    subject = Subject("a", tiny_onnx(), tiny_encoded, EMULATED[0])
    (found,) = measure([subject], settings=MeasureSettings(), work=tmp_path, latency_only=True)
    assert (found.status, found.reason) == ("skipped", "an emulator's time says nothing about the device")


def test_int8_for_an_emulated_target_keeps_all_its_bits_and_no_latency_is_searched_there() -> None:
    for target in EMULATED:
        needed, reason = reduced_range_for(target)
        assert not needed
        assert "ARM" in reason
        with pytest.raises(UsageError, match="emulated processor"):
            require_onnx_target(target)


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("deb http://one.example/debian bookworm main\n", "http://one.example/debian"),
        ("# x\nTypes: deb\nURIs: https://two.example/debian/\nSuites: trixie\n", "https://two.example/debian"),
        ("deb [signed-by=/k.gpg arch=amd64] http://three.example/debian sid main\n", "http://three.example/debian"),
        ("deb http://archive.example/ubuntu noble main\n", None),
        ("URIs: http://one.example/debian-security\n", None),
    ],
)
def test_the_mirror_is_the_one_of_apt(text: str, mirror: str | None, tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(text, encoding="utf-8")
    assert arm64_setup.mirror_of(tmp_path) == mirror


def test_setup_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCOMPRESS_ARM64", str(tmp_path / "arm64"))
    monkeypatch.setattr(arm64_setup, "why_no_emulator", lambda: "")
    monkeypatch.setattr(arm64_setup.shutil, "which", lambda name: None)
    with pytest.raises(MissingCapabilityError, match="apt-get is not here"):
        arm64_setup.set_up_arm64()
    monkeypatch.setattr(arm64_setup.shutil, "which", lambda name: name)
    monkeypatch.setattr(arm64_setup, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(MissingCapabilityError, match="keys"):
        arm64_setup.set_up_arm64()
    monkeypatch.setattr(arm64_setup, "KEYRING", tmp_path)
    monkeypatch.setattr(arm64_setup, "KEYRING", Path(__file__))
    monkeypatch.setattr(arm64_setup, "_SOURCES", tmp_path)
    with pytest.raises(MissingCapabilityError, match="no Debian mirror"):
        arm64_setup.set_up_arm64()
    assert not (tmp_path / "arm64").exists()


@pytest.mark.skipif(bool(why_no_arm64()), reason=why_no_arm64() or "arm64 can be emulated")
def test_emulated_answers_equal_those_of_this_machine(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    artifact = tiny_onnx()
    broken = tiny_onnx("broken", seed=1)
    (broken.path / "model.onnx").write_bytes(b"")
    one = find_target("ort-arm64-a72")
    places: list[tuple[Artifact, Target]] = [(artifact, find_target("ort-cpu-1t")), (artifact, one), (broken, one)]
    settings = MeasureSettings(inputs=2, rounds=3, warmup_seconds=0, throughput_seconds=0.01, emulated_examples=7)
    here, there, failed = measure(
        [Subject("a", made, tiny_encoded, target) for made, target in places], settings=settings, work=tmp_path
    )
    assert (there.status, there.reason, failed.status) == ("ok", "", "failed")
    assert "ONNX Runtime for arm64 could not run the model" in failed.reason or "ended" in failed.reason
    assert there.examples is not None
    assert len(there.examples) == 7
    assert here.outputs is not None
    assert there.outputs is not None
    np.testing.assert_allclose(there.outputs, here.outputs[there.examples], rtol=1e-5, atol=1e-6)
    assert there.placement["architecture"] == "aarch64"
    assert "asimddp" not in there.placement["flags"]


class SlowChild:
    """Answers of an emulator; counts its jobs over all instances."""

    asked = 0

    def __init__(self, target: Target) -> None: ...

    def __enter__(self) -> SlowChild:
        return self

    def __exit__(self, *_: object) -> None: ...

    def open(self, *_: object) -> dict[str, Any]:
        return {}

    def ask(self, op: str, out: str, **job: Any) -> dict[str, Any]:
        SlowChild.asked += 1
        np.save(out, np.zeros((1, 2), dtype=np.float32))
        return {}


def test_an_interruption_ends_every_emulated_process_soon(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "Child", SlowChild)
    monkeypatch.setattr(SlowChild, "asked", 0)
    interrupted = threading.Event()

    def emit(message: str, done: int | None = None, total: int | None = None) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    subject = Subject("a", tiny_onnx(), tiny_encoded, EMULATED[0])
    with pytest.raises(KeyboardInterrupt):
        emulation.run_emulated([subject] * 6, range(20), work=tmp_path, emit=emit, workers=1)
    assert SlowChild.asked <= 2


def test_emulated_processes_may_use_every_core() -> None:
    assert [pinned_cores(target) for target in EMULATED] == [[]] * len(EMULATED)
    assert thread_count(EMULATED[0]) == 1
