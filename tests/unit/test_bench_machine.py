"""Facts about the machine and the process: memory, limits, environment, path scrubbing."""

from __future__ import annotations

import getpass
import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.bench import environment as env
from compress.bench import launch, limits
from compress.bench.launch import Child, ChildError, without_folders
from compress.bench.memory import memory_phase, peak_phase, peak_resident_bytes, resident_bytes
from compress.errors import RunError
from compress.runtimes.target import find_target

MIB = 2**20
KINDS = ("anonymous_bytes", "mapped_bytes")


def test_peak_memory_follows_an_allocation_and_stays() -> None:
    before = peak_resident_bytes()
    size = max(before - resident_bytes(), 0) + 64 * MIB
    block = np.ones(size, dtype=np.uint8)
    assert peak_resident_bytes() >= before + 60 * MIB
    assert resident_bytes() >= block.nbytes
    del block
    assert peak_resident_bytes() >= before + 60 * MIB


def test_peak_memory_without_proc_is_in_bytes_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = peak_resident_bytes()
    monkeypatch.setattr("compress.bench.memory._STATUS", tmp_path / "absent")
    assert peak_resident_bytes() == pytest.approx(expected, rel=0.2)
    assert resident_bytes() > 10 * MIB


def test_phases_tell_mapped_files_from_anonymous_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell them apart")
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 64 * MIB)
    phases = [memory_phase("import")]
    block = np.ones(64 * MIB, dtype=np.uint8)
    phases.append(memory_phase("load"))
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    assert int(mapped[::4096].sum()) == 64 * MIB // 4096 * ord("x")
    phases.append(memory_phase("first"))
    grown = [{key: new[key] - old[key] for key in KINDS} for old, new in itertools.pairwise(phases)]
    assert grown[0]["anonymous_bytes"] == pytest.approx(block.nbytes, rel=0.05)
    assert grown[1]["mapped_bytes"] == pytest.approx(64 * MIB, rel=0.05)
    assert abs(grown[0]["mapped_bytes"]) < MIB
    assert abs(grown[1]["anonymous_bytes"]) < MIB
    for phase in phases:
        assert phase["rss_bytes"] >= phase["anonymous_bytes"] + phase["mapped_bytes"]
    assert peak_phase()["rss_bytes"] >= phases[-1]["rss_bytes"]


def test_memory_that_is_only_reserved_is_not_counted() -> None:
    before = memory_phase("import")
    reserved = np.empty(1024 * MIB, dtype=np.uint8)
    assert memory_phase("load")["rss_bytes"] < before["rss_bytes"] + 64 * MIB
    del reserved


def test_phases_without_proc_have_the_resident_set_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("compress.bench.memory._STATUS", tmp_path / "absent")
    phase = memory_phase("steady")
    assert (phase["name"], phase["anonymous_bytes"], phase["mapped_bytes"]) == ("steady", None, None)
    assert phase["rss_bytes"] > 10 * MIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Load model from /tmp/x/model.onnx failed:Protobuf", "Load model from model.onnx failed:Protobuf"),
        ('File "/home/me/venv/lib/python3/x.py", line 3', 'File "x.py", line 3'),
        (
            "see https://onnxruntime.ai/docs/page.html for 3/4 of it",
            "see https://onnxruntime.ai/docs/page.html for 3/4 of it",
        ),
        ("[E:onnxruntime:/root/build/a.cc:12]", "[E:onnxruntime:a.cc:12]"),
        ("and/or", "and/or"),
    ],
)
def test_machine_paths_are_cut_out_of_reasons(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_known_folders_go_whatever_their_spelling() -> None:
    text = "Load model from /home/jo smith/my models/model.onnx failed in /home/jo smith/my models"
    assert without_folders(text, ["/home/jo smith/my models"]) == "Load model from model.onnx failed in my models"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("said", ["", '{"ok": {"ms": [1.0, 2.'])
def test_a_child_that_dies_in_the_middle_of_its_answer_is_a_reason(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    popen, script = subprocess.Popen, ["sh", "-c", 'read job; printf %s "$0"; kill -9 $$', said]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(script, **options))
    with Child(find_target("ort-cpu-1t")) as child, pytest.raises(ChildError, match=r"round: .* SIGKILL"):
        child.ask("round")


def test_a_cap_that_cannot_be_made_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: object) -> dict[str, str]:
        raise RunError("There is no space left.", value="/home/me/store/copy", fix="")

    monkeypatch.setattr(launch, "capped_environment", full)
    with pytest.raises(ChildError, match=r"no space left\. copy"):
        Child(find_target("ort-cpu-1t-avx2"))


def test_version_2_parents_are_the_nearest_that_delegate_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "user.slice" / "session"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    for folder, delegated in ((tmp_path, "cpu memory"), (own.parent, "memory"), (own, "cpu")):
        (folder / "cgroup.subtree_control").write_text(delegated)
    monkeypatch.setattr(limits, "_own_path", lambda: "user.slice/session")
    assert list(limits._parents(tmp_path)) == [(2, own.parent), (2, tmp_path)]


def test_version_1_is_used_where_version_2_has_no_memory(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("0")
    assert list(limits._parents(tmp_path)) == [(1, tmp_path / "memory")]


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert limits.create_group(64 * MIB, tmp_path) is None


def test_group_that_cannot_be_limited_is_removed(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("0")

    def refuse(group: limits.MemoryGroup, limit_bytes: int) -> bool:
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_limit", refuse)
        assert limits.create_group(64 * MIB, tmp_path) is None
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["memory.limit_in_bytes"]


@pytest.mark.parametrize(
    ("version", "file", "text"),
    [(2, "memory.events", "low 0\noom 3\noom_kill 2\n"), (1, "memory.oom_control", "under_oom 0\noom_kill 2\n")],
)
def test_kills_are_counted(version: int, file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert limits.MemoryGroup(tmp_path, version).oom_kills() == 2  # type: ignore[arg-type]


def test_environment_names_no_host_user_or_path() -> None:
    record = env.environment()
    text = json.dumps(record)
    assert record["packages"]["numpy"] == np.__version__
    assert record["cpu"]["cores"] >= record["cpu"]["usable_cores"] >= 1
    assert record["memory_bytes"] > 100 * MIB
    assert str(Path.home()) not in text
    assert str(Path(__file__).parent) not in text
    words = text.replace('"', " ").split()
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def test_cpu_facts_read_x86_and_arm() -> None:
    x86 = "processor : 0\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 avx512_vnni made_up\n"
    assert env.cpu_facts(x86) == ("Fast CPU", ["avx2", "avx512_vnni"])
    assert env.cpu_facts("processor : 0\nFeatures : fp asimd asimddp\n") == ("", ["asimd", "asimddp"])
    assert env.cpu_facts("") == ("", [])
