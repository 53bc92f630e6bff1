"""The store beside other processes, damaged, read-only, and with leftovers; what gc takes and what it leaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.app import app
from compress.errors import StorageError
from compress.store import Store
from compress.store.claims import Claim, read_claims
from compress.store.upkeep import collect, list_store, verify_store

DAY = 86400.0


def key(name: str) -> str:
    return (name.encode().hex() + "0" * 64)[:64]


def put(store: Store, name: str, text: str = "1", **options) -> Path:
    return store.get_or_build(key(name), name, lambda out: (out / "x").write_text(text), **options)[0]


def entry(store: Store, name: str) -> Path:
    return store.root / "entries" / key(name)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, told) -> Store:
    made = Store(tmp_path / "home")
    made.tell = told.append
    return made


def age(store: Store, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry(store, name) / "entry.json", (then, then))


def start(code: str, *words: object) -> subprocess.Popen[str]:
    """Start a process that prints a line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


WORKING = """
import sys
from compress.store import Store
with Store(sys.argv[1]).workspace() as work:
    (work / "x").write_text("1")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(store) -> None:
    dead, alive = start(WORKING, store.root), start(WORKING, store.root)
    assert len(list((store.root / "work").iterdir())) == 2
    dead.kill()
    dead.wait()
    with store.workspace() as mine:
        left = list((store.root / "work").iterdir())
        assert mine in left
        assert len(left) == 2
    alive.communicate("", timeout=20)
    assert list((store.root / "work").iterdir()) == []


def test_a_lock_ends_with_its_owner(store) -> None:
    code = """
import sys
from compress.store import Store
def build(out):
    (Store(sys.argv[1]).partial(sys.argv[2]) / "epoch").write_text("1")
    print("ready", flush=True)
    sys.stdin.read()
Store(sys.argv[1]).get_or_build(sys.argv[2], "x", build)
"""
    owner = start(code, store.root, key("x"))
    assert store.find(key("x")) is None
    owner.kill()
    owner.wait()
    path = put(store, "x", "2")
    assert (path / "x").read_text() == "2"
    assert list((store.root / "work").iterdir()) == []
    assert list((store.root / "partial").iterdir()) == []


def test_a_wait_is_told(store, told) -> None:
    code = """
import sys
from compress.store import Store
def build(out):
    (out / "x").write_text("theirs")
    print("ready", flush=True)
    sys.stdin.readline()
Store(sys.argv[1]).get_or_build(sys.argv[2], "x", build)
"""
    owner = start(code, store.root, key("x"))
    store.tell = lambda line: (told.append(line), owner.stdin.write("\n"), owner.stdin.flush())
    assert (put(store, "x", "mine") / "x").read_text() == "theirs"
    assert told == ["      waiting for another run, which is making 'x'"]
    owner.wait(timeout=20)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add", "record", "no record"])
def test_damage_is_told_and_made_again(store, told, harm) -> None:
    path = put(store, "x", "good")
    record = entry(store, "x") / "entry.json"
    if harm == "flip":
        (path / "x").write_text("goof")
    elif harm == "truncate":
        os.truncate(path / "x", 2)
    elif harm == "remove":
        (path / "x").unlink()
    elif harm == "add":
        (path / "y").write_text("1")
    elif harm == "record":
        os.truncate(record, 20)
    else:
        record.unlink()
    (wrong,) = [wrong for _, wrong in verify_store(store, lambda *_: None)]
    assert wrong is not None
    assert (put(store, "x", "good") / "x").read_text() == "good"
    (line,) = told
    assert line.endswith("so it is made again")
    assert wrong in line
    assert sorted(path.name for path in entry(store, "x").rglob("*")) == ["entry.json", "payload", "x"]
    assert verify_store(store, lambda *_: None)[0][1] is None


def test_an_entry_of_another_version_is_made_again(store, told) -> None:
    put(store, "x")
    record = entry(store, "x") / "entry.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99}))
    assert store.find(key("x")) is None
    assert len(told) == 1
    put(store, "x")
    assert store.find(key("x")) is not None


def test_partial_checkpoints_of_a_finished_entry_go(store) -> None:
    """A kill between publishing and tidying up."""
    put(store, "x")
    (store.partial(key("x")) / "checkpoint").write_text("1")
    put(store, "x")
    assert list((store.root / "partial").iterdir()) == []


def forbid_writing(monkeypatch, store: Store) -> None:
    """Do what a read-only file system does, which permissions cannot do to the super-user."""
    opened, made, linked = os.open, os.mkdir, os.rename
    root = str(store.root)

    def refuse(path: object) -> None:
        if str(path).startswith(root):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    def open_(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "mkdir", lambda path, *r, **m: (refuse(path), made(path, *r, **m))[1])
    monkeypatch.setattr(os, "rename", lambda path, *r, **m: (refuse(path), linked(path, *r, **m))[1])
    monkeypatch.setattr(os, "utime", lambda path, *r, **m: refuse(path))


def test_a_read_only_store_can_be_read(store, told, monkeypatch) -> None:
    path = put(store, "x", "kept")
    put(store, "bad", "good")
    (entry(store, "bad") / "payload" / "x").write_text("evil")
    fresh = Store(store.root)
    fresh.tell = told.append
    forbid_writing(monkeypatch, store)
    assert fresh.find(key("x")) == path
    assert put(fresh, "x", "never") == path
    assert {it.label for it in list_store(fresh)} == {"x", "bad"}
    assert [wrong is None for it, wrong in verify_store(fresh, lambda *_: None) if it.label == "x"] == [True]
    assert fresh.find(key("bad")) is None
    assert "cannot be written to" in told[-1]
    for make in (lambda: put(fresh, "new"), lambda: put(fresh, "bad"), lambda: fresh.workspace().__enter__()):
        with pytest.raises(StorageError, match="cannot be written to") as caught:
            make()
        assert caught.value.exit_code == 4
        assert str(store.root) in caught.value.value
        assert "MCOMPRESS_HOME" in caught.value.fix


def test_inputs_are_on_record(store) -> None:
    first = put(store, "first")

    def build(out: Path) -> None:
        put(store, "table")
        store.find(key("absent"))
        (out / "x").write_text("1")

    store.get_or_build(key("second"), "second", build, made_from=[first])
    made_from = {it.label: it.made_from for it in list_store(store)}
    assert made_from["first"] == made_from["table"] == ()
    assert set(made_from["second"]) == {key("first"), key("table"), key("absent")}


def test_gc_keeps_what_is_recent_needed_or_in_use(store, tmp_path) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"
    for folder, name in ((run, "of a run"), (gone, "of a run that is gone")):
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        with Store(store.root).serving(folder, lambda *_: None):
            put(Store(store.root), name)
    (gone / "run.json").unlink()
    for name in ("old", "recent", "old and read"):
        put(Store(store.root), name)
    reader = Store(store.root)
    assert reader.find(key("old and read"))
    for name in ("of a run", "of a run that is gone", "old", "old and read"):
        age(store, name, 40 * DAY)
    (store.partial(key("unfinished")) / "checkpoint").write_text("1")
    dry = collect(store, older_than_s=30 * DAY, dry_run=True)
    assert len(list_store(store)) == 6
    done = collect(store, older_than_s=30 * DAY)
    assert {it.label for it in done.removed} == {"old", "of a run that is gone"} == {it.label for it in dry.removed}
    assert done.bytes == dry.bytes == 2
    assert done.kept == {"in use": 1, "used by a run that exists": 1, "used recently": 2}
    assert reader.find(key("old and read")) is not None
    del reader
    rest = collect(store, older_than_s=0, keep_runs=False)
    assert {it.label for it in rest.removed} == {
        "of a run",
        "recent",
        "old and read",
        "checkpoints of an unfinished step",
    }
    assert list_store(store) == []
    assert list((store.root / "work").iterdir()) == []
    assert len(list((store.root / "claims").iterdir())) == 1  # of the run that exists


def test_gc_never_touches_what_is_being_made(store) -> None:
    code = """
import sys
from compress.store import Store
def build(out):
    store.find(sys.argv[3])
    (store.partial(sys.argv[2]) / "epoch").write_text("1")
    print("ready", flush=True)
    sys.stdin.readline()
    (out / "x").write_text("1")
store = Store(sys.argv[1])
store.get_or_build(sys.argv[2], "x", build)
"""
    put(Store(store.root), "input")
    process = start(code, store.root, key("x"), key("input"))
    assert collect(store, older_than_s=0, keep_runs=False).removed == []
    assert {it.label: bool(it.in_use) for it in list_store(store)} == {
        "input": True,
        "checkpoints of an unfinished step": True,
    }
    process.communicate("\n", timeout=20)
    assert process.returncode == 0
    assert {it.label for it in collect(store, older_than_s=0).removed} == {"input", "x"}


def test_a_killed_run_keeps_its_claim_and_a_finished_one_renews_it(store, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    code = """
import sys
from pathlib import Path
from compress.store import Store
store = Store(sys.argv[1])
with store.serving(Path(sys.argv[2]), print):
    store.find(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.read()
"""
    put(Store(store.root), "first")
    killed = start(code, store.root, run, key("first"))
    assert read_claims(store.root).live == {key("first"): [str(run)]}
    killed.kill()
    killed.wait()
    assert read_claims(store.root).live == {}
    assert read_claims(store.root).runs == {key("first"): [str(run)]}
    with store.serving(run, lambda *_: None):
        put(store, "second")
    assert read_claims(store.root).runs == {key("second"): [str(run)]}


def test_a_claim_whose_writer_died_in_a_line_is_read_and_continued(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    claim = Claim(tmp_path, run)
    claim.add(key("a"))
    claim.close()
    (path,) = (tmp_path / "claims").iterdir()
    with path.open("a") as file:
        file.write(key("b")[:20])
    claim = Claim(tmp_path, run)
    claim.add(key("c"))
    claim.close()
    assert read_claims(tmp_path).runs == {key("a"): [str(run)], key("c"): [str(run)]}


def test_a_clock_that_jumps_only_moves_ages(store) -> None:
    put(store, "x")
    age(store, "x", -400 * DAY)
    assert [it.age_s for it in list_store(store)] == [0]
    store.tell = pytest.fail
    assert store.find(key("x")) is not None
    assert collect(store, older_than_s=DAY, now=0).removed == []


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["store", *map(str, words)])
    assert result.exit_code == code, result.output
    assert all(len(line) <= 80 or "/" in line for line in result.output.splitlines())
    return result.stdout


def test_the_verbs(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MCOMPRESS_HOME", str(store.root))
    monkeypatch.setenv("COLUMNS", "80")
    assert "0 entries, 0 B" in call("ls")
    assert json.loads(call("gc", "--json"))["removed"] == []
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with Store(store.root).serving(run, lambda *_: None):
        source = put(Store(store.root), "a model with a name that is longer than any column can hold")
        Store(store.root).get_or_build(
            key("int8"), "int8", lambda out: (out / "x").write_text("12345"), made_from=[source]
        )
    shown = call("ls")
    assert shown.splitlines()[1].split() == [key("int8")[:10], "5", "B", "0", "s", "1", "run", "int8"]
    assert "that is longer than a..." in shown or "..." in shown
    one = call("ls", key("int8")[:6])
    assert "made from:" in one
    assert f"needed by:    {run}" in one
    assert "used to make:" in call("ls", key("a model")[:6])
    listed = json.loads(call("ls", "--json"))
    assert listed["bytes"] == 6
    assert [it["runs"] for it in listed["entries"]] == [[str(run)]] * 2
    assert call("ls", "ffff", code=2) == ""
    assert call("gc", "--older-than", "soon", code=2) == ""
    assert "would be removed: 0, 0 B\nkept, used by a run that exists: 2" in call(
        "gc", "--dry-run", "--older-than", "0d"
    )
    assert "2 entries checked, 0 damaged" in call("verify")
    (entry(store, "int8") / "payload" / "x").write_text("54321")
    assert "x has changed" in call("verify", code=1)
    assert [it["label"] for it in json.loads(call("verify", "--json", code=1))["damaged"]] == ["int8"]
    removed = call("gc", "--older-than", "0d", "--no-keep-runs")
    assert "removed: 2, 6 B" in removed
    assert "0 entries" in call("ls")
