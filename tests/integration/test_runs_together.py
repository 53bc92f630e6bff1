"""Several runs at once on one store, of the same and of different recipes: each step is computed once."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from compress.store import Store
from compress.store.upkeep import list_store, verify_store

INT8 = {"quantize": {}, "id": "int8"}
RECIPES = {"small": [INT8], "large": [INT8, {"cast": {}, "id": "fp16", "from": "model"}]}


def together(lab: Any, drive: Any, source: dict[str, Any], processes: int, rounds: int) -> None:
    """Let processes run two recipes in turn; what they have in common is common work. A new seed renews all steps."""
    home = lab.root / f"together-{processes}"
    measure = {**lab.measure, "targets": ["torch-cpu-1t"]}  # no stage runs there, so nothing is measured
    names = [list(RECIPES)[i % 2] for i in range(processes)]
    steps: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        first = lab.recipe(f"together-{processes}", RECIPES["small"], **source)
        drivers = [stack.enter_context(drive(first, f"{i}")) for i in range(processes)]
        for round_ in range(rounds):
            changes = source | {"run": {"threads": 1, "seed": round_}, "measure": measure}
            recipes = {name: lab.recipe(f"{name}-{processes}-{round_}", RECIPES[name], **changes) for name in RECIPES}
            outs = [lab.root / f"together-{processes}-{round_}-{i}" for i in range(processes)]
            for it, out, name in zip(drivers, outs, names, strict=True):
                it.begin(home, out, recipe=recipes[name])
            for it, out in zip(drivers, outs, strict=True):
                done = it.end()
                assert done["code"] == 0, done["said"]
                for step in read_steps(out).values():
                    steps.setdefault(step["key"], []).append(step)
    store = Store(home)
    assert len(steps) == 2 * rounds
    assert all(sum(not step["cached"] for step in made) == 1 for made in steps.values())
    assert all(len({step["digest"] for step in made}) == 1 for made in steps.values())
    listed = list_store(store)
    assert steps.keys() <= {it.key for it in listed}
    assert [wrong for _, wrong in verify_store(store, lambda *_: None) if wrong] == []
    assert list(home.glob("work/*")) == list(home.glob("partial/*")) == []
    shared = Counter(len(it.runs) for it in listed if it.key in steps)
    assert shared == {processes: rounds, processes // 2: rounds}
    print(f"{processes} runs at once, {rounds} rounds: {len(steps)} steps, each computed once; {len(listed)} entries")


def read_steps(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())["steps"]
    return found


def test_three_runs_at_once(lab, drive, tiny_exported) -> None:
    together(lab, drive, lab.exported(tiny_exported()), processes=3, rounds=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_runs_at_once(lab, drive, tiny_exported) -> None:
    together(lab, drive, lab.exported(tiny_exported()), processes=8, rounds=20)
