"""Several processes on one store, some of which die while they work: each key is made once, nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from compress.store import Store
from compress.store.upkeep import list_store, verify_store

WORKER = Path(__file__).with_name("store_worker.py")
KEYS = 6
DIED = 9


def together(folder: Path, processes: int, rounds: int) -> None:
    log = folder / "builds"
    command = [sys.executable, str(WORKER), str(folder / "home"), str(rounds), str(KEYS)]
    running = {seed: subprocess.Popen([*command, str(seed), str(log)]) for seed in range(processes)}
    deaths = 0
    while running:
        for seed, process in list(running.items()):
            try:
                code = process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            del running[seed]
            if code == DIED:  # its successor goes on where it was
                deaths += 1
                heir = 4 * (processes + deaths) + 3
                running[heir] = subprocess.Popen([*command, str(heir), str(log)])
            else:
                assert code == 0
    builds = Counter(log.read_text().split())
    assert len(builds) == rounds * KEYS
    assert set(builds.values()) == {1}
    store = Store(folder / "home")
    assert {it.key for it in list_store(store)} == set(builds)
    assert [wrong for _, wrong in verify_store(store, lambda *_: None) if wrong] == []
    with store.workspace() as work:
        assert list((folder / "home" / "work").iterdir()) == [work]
    print(f"{processes} processes, {rounds} rounds: {len(builds)} keys, each made once; {deaths} deaths")


def test_four_processes(tmp_path) -> None:
    together(tmp_path, 4, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_processes_twenty_rounds(tmp_path) -> None:
    together(tmp_path, 8, 20)
