"""Files and folders that appear whole; space and memory that do not suffice."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from compress import disk
from compress.errors import RunError, StorageError
from compress.resources import in_units, is_full, is_out_of_memory, require_space, space_explained


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """What is synced and renamed, in order, by name."""
    seen: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):

        def moved(self: Path, to: Path) -> Path:
            seen.append(f"rename {self.name} {Path(to).name}")
            rename(self, to)
            return Path(to)

        monkeypatch.setattr(Path, name, moved)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, order) -> None:
    disk.write_atomically(tmp_path / "folder" / "run.json", "text")
    partial = f".run.json.{os.getpid()}.partial"
    assert order == [f"sync {partial}", f"rename {partial} run.json", "sync folder"]
    assert (tmp_path / "folder" / "run.json").read_text() == "text"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["run.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    disk.write_atomically(tmp_path / "a", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomically(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, order) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "x").write_text("1")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("0")
    disk.make_folder(tmp_path / "made", lambda partial: shutil.copytree(source, partial))
    partial = f".made.{os.getpid()}.partial"
    assert {"sync x", "sync inner", f"sync {partial}"} == set(order[:-2])
    assert order[-2:] == [f"rename {partial} made", f"sync {tmp_path.name}"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inner", "inner", "made", "source", "x", "x"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path) -> None:
    (tmp_path / "deliverables" / ".int8.7.partial").mkdir(parents=True)
    (tmp_path / "deliverables" / ".int8.7.partial" / "model.onnx").write_text("half")
    for name in (".run.json.12.partial", "run.json", ".gitignore", "x.partial"):
        (tmp_path / name).write_text("1")
    disk.remove_partials(tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert names == [".gitignore", "deliverables", "run.json", "x.partial"]


def test_a_folder_lock_ends_with_its_process(tmp_path) -> None:
    code = "import sys; from pathlib import Path; from compress.disk import lock_folder; "
    code += "print(lock_folder(Path(sys.argv[1])) is not None, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert disk.lock_folder(tmp_path) is None
        other.kill()
    handle = disk.lock_folder(tmp_path)
    assert handle is not None
    os.close(handle)


Usage = namedtuple("Usage", "total used free")


def test_space_is_asked_for_where_the_folder_will_be(tmp_path, monkeypatch) -> None:
    asked = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**9, 0, 10**8)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_space(tmp_path / "not" / "there", 60 * 10**6, "step 'x'")
    assert asked == [tmp_path]
    with pytest.raises(StorageError) as caught:
        require_space(tmp_path / "not" / "there", 10**9, "step 'x'")
    assert caught.value.exit_code == 4
    assert caught.value.what == "There is not enough space for step 'x'."
    assert caught.value.value == f"{tmp_path}/not/there: 100.0 MB free, about 1.0 GB needed"
    assert "MCOMPRESS_HOME" in caught.value.fix


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "whatever"),
        OSError(errno.EDQUOT, "whatever"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RunError("The artifact could not be run.", value="predict: [Errno 28] No space left on device", fix="x"),
    ],
)
def test_every_way_to_say_that_a_disk_is_full(tmp_path, error) -> None:
    assert is_full(error)
    wrapped = KeyError("wrapped")
    wrapped.__cause__ = error
    with pytest.raises(StorageError, match="The disk is full"), space_explained(tmp_path, needed=10**6):
        raise wrapped


def test_other_errors_pass_as_they_are(tmp_path) -> None:
    with pytest.raises(KeyError), space_explained(tmp_path):
        raise KeyError("x")
    assert not is_full(OSError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_every_way_to_say_that_memory_is_used_up(error) -> None:
    assert is_out_of_memory(error)
    assert not is_full(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_units() -> None:
    assert [in_units(n) for n in (0, 999, 1000, 12_300_000, 999_600_000, 5_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "1.0 GB",
        "5.0 GB",
    ]
