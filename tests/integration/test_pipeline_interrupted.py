"""A run that is interrupted, then killed, then finished: the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import compress

STEPS = [
    {"prune": {"layers": 1, "samples": 16}},
    {"distill": {"teacher": "model", "epochs": 16, "batch_size": 8}},
]


def saved_steps(home: Path) -> set[int]:
    """The training steps of the whole checkpoints in a store."""
    steps = set()
    for path in home.glob("partial/*/checkpoint-*/trainer_state.json"):
        try:
            steps.add(json.loads(path.read_text())["global_step"])
        except (OSError, ValueError):
            continue
    return steps


def wait_for(condition: Callable[[], bool], process) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def digests(out: Path) -> dict[str, str]:
    record = json.loads((out / "run.json").read_text())
    assert record["finished"]
    return {name: step["digest"] for name, step in record["steps"].items()}


def test_interrupted_killed_and_resumed_equals_undisturbed(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # No stage runs on the only target, so nothing is measured: the report must cope with that as well.
    recipe = lab.recipe("resumed", STEPS)
    home, out = lab.root / "home-resumed", lab.root / "resumed-out"
    words, store = ("run", recipe, "--out", out), {"MCOMPRESS_HOME": str(home)}

    interrupted = lab.start(*words, **store)
    wait_for(lambda: bool(saved_steps(home)), interrupted)
    interrupted.send_signal(signal.SIGINT)
    said = interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130
    assert "finished steps are kept" in said
    assert "Traceback" not in said
    assert all((entry / "entry.json").is_file() for entry in (home / "entries").iterdir())
    assert not list((home / "work").iterdir())
    assert not (out / "report.json").exists()

    before, seen = saved_steps(home), set()
    killed = lab.start(*words, **store)

    def goes_on() -> bool:
        seen.update(saved_steps(home) - before)
        return bool(seen)

    wait_for(goes_on, killed)
    assert min(seen) > max(before), "training began anew instead of from its checkpoint"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert all((entry / "entry.json").is_file() for entry in (home / "entries").iterdir())
    assert not json.loads((out / "run.json").read_text())["finished"]

    finished = lab.command(*words, **store)
    assert finished.returncode == 0, finished.stderr
    steps = json.loads((out / "run.json").read_text())["steps"]
    assert steps["prune"]["cached"]
    assert not steps["distill"]["cached"]
    assert not list((home / "partial").iterdir())
    assert "Nothing may ship" in (out / "report.md").read_text()

    monkeypatch.setenv("MODEL", str(lab.model))
    monkeypatch.setenv("DATA", str(lab.data))
    whole = compress.run(recipe, lab.root / "undisturbed-out", store=compress.Store(lab.root / "home-2"))
    assert whole.exit_code == 0
    assert digests(out) == digests(whole.folder)
