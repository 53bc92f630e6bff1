"""Signals, dead children and neighbours: one clean line, the right exit code, and nothing that lives on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

PATIENCE_S = 120


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def workers(process: subprocess.Popen[str], module: str = "compress.bench.worker") -> list[psutil.Process]:
    """The measuring children of a command."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if module in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is no more, or only waits for whoever adopted it to notice."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def long_recipe(lab, tiny_exported) -> Path:
    """A recipe that measures for minutes."""
    measure = {**lab.measure, "rounds": 100_000, "seconds": 600, "precision": 1e-9, "launches": 1}
    return lab.recipe("long", [{"cast": {}}], measure=measure, **lab.exported(tiny_exported()))


@pytest.fixture
def measuring(lab, long_recipe, request) -> Any:
    """A run in the middle of its measurement: its process, its store, its folder."""
    home, out = lab.root / "home-long", lab.root / f"out-{request.node.name}"
    process = lab.start("run", long_recipe, "--out", out, MCOMPRESS_HOME=str(home))
    wait_for(lambda: (out / "run.json").is_file(), process)
    wait_for(lambda: json.loads((out / "run.json").read_text())["steps"].get("cast"), process)
    wait_for(lambda: workers(process), process)
    time.sleep(1)
    yield process, home, out
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_measuring(measuring, number) -> None:
    process, home, out = measuring
    children = workers(process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("interrupted: finished steps are kept")
    assert "Traceback" not in said
    assert all(map(has_ended, children))
    assert list((home / "work").iterdir()) == []
    assert not list(out.rglob(".*"))
    assert not json.loads((out / "run.json").read_text())["finished"]


def test_the_exit_code_is_the_same_where_a_library_was_executing_a_text(tmp_path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import atexit, os, signal, sys, threading\n"
        "from compress.cli import main\n"
        "from compress.cli.app import app\n"
        "from compress.cli.console import guarded\n"
        "@guarded\n"
        "def waits():\n"
        "    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "    exec('import time\\nwhile True: time.sleep(0.01)')\n"
        "app.command()(waits)\n"
        "atexit.register(print, 'cleaned up')\n"
        "sys.argv = ['mcompress', 'waits']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr.startswith("interrupted: finished steps are kept")


def test_children_do_not_outlive_a_killed_run(lab, measuring) -> None:
    process, home, _ = measuring
    children = workers(process)
    process.kill()
    process.communicate()
    wait_for(lambda: all(map(has_ended, children)))
    assert list((home / "work").iterdir())
    shown = lab.command("store", "gc", MCOMPRESS_HOME=str(home))
    assert shown.returncode == 0, shown.stderr
    assert "kept, used by a run that exists" in shown.stdout
    assert list((home / "work").iterdir()) == []


def test_a_second_run_into_the_same_folder_is_refused(lab, measuring, long_recipe) -> None:
    process, home, out = measuring
    before = (out / "run.json").read_bytes()
    second = lab.command("run", long_recipe, "--out", out, MCOMPRESS_HOME=str(home))
    assert second.returncode == 2
    assert "Another run is writing into this folder." in second.stderr
    assert (out / "run.json").read_bytes() == before
    assert process.poll() is None


def test_a_killed_measuring_child_is_a_row_with_a_reason(lab, measuring) -> None:
    process, home, out = measuring

    def no_child_is_left() -> bool:
        for child in workers(process):
            child.kill()
        return (out / "report.html").exists()

    wait_for(no_child_is_left)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, said
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"failed"}
    assert all("SIGKILL" in row["reason"] for row in rows)
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize("delay_s", [0.3, 1.5])
def test_interrupted_while_starting(lab, long_recipe, delay_s) -> None:
    home = lab.root / f"home-start-{delay_s}"
    process = lab.start("run", long_recipe, "--out", lab.root / f"out-start-{delay_s}", MCOMPRESS_HOME=str(home))
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in said
    assert not list((home / "work").glob("*"))
