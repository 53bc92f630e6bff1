"""A run that is stopped at any file operation, in any way, and started again: the same as one that was left alone.

The faults are those of ``fault_driver.py``. Each chain stops one run several times, at drawn places, and lets it end.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

DEADLY = ("kill", "power")
FAULTS = (*DEADLY, "full", "memory", "interrupt")
EVERY = [
    {"finetune": {"epochs": 2, "batch_size": 8}},
    {"prune": {"layers": 1, "samples": 16}},
    {"distill": {"teacher": "finetune", "epochs": 3, "batch_size": 8, "seeds": 2}},
    {"trim": {}},
    {"factorize": {}, "optional": True},
    {"qat": {"epochs": 2, "batch_size": 8}, "id": "qat", "optional": True},
    {"export": {}, "from": "trim"},
    {"quantize": {}, "id": "int8"},
    {"cast": {}, "id": "fp16", "from": "export"},
    {"build": {}, "id": "engine", "from": "fp16", "optional": True},
    {"sparsify": {"multiple": 4, "by": "inputs", "samples": 16}, "from": "finetune"},
]
TIMED = {"engine"}
"""TensorRT times kernels while it builds, so no two engines are equal."""


def entries(home: Path) -> dict[str, bytes]:
    """The records of finished work, which hold the digests of all files."""
    return {path.parent.name: path.read_bytes() for path in home.glob("entries/*/entry.json")}


def facts(out: Path) -> dict[str, Any]:
    """What two runs must agree in: digests of all artifacts, accuracies, which examples were right, file names."""
    record = json.loads((out / "run.json").read_text())
    assert record["finished"]
    report = json.loads((out / "report.json").read_text())
    outcomes = out / "outcomes.json"
    return {
        "digests": {
            name: (step["status"], None if name in TIMED else step["digest"]) for name, step in record["steps"].items()
        },
        "accuracies": {f"{row['step']} {row['target']}": row["accuracy"] for row in report["rows"]},
        "outcomes": outcomes.read_text() if outcomes.exists() else None,
        "files": sorted(path.relative_to(out).as_posix() for path in out.rglob("*")),
    }


def half_made(home: Path, out: Path) -> set[Path]:
    """What lies under a temporary name."""
    return {*home.glob("work/*"), *out.rglob(".*")}


def stop_and_go(
    lab: Any, drive: Any, name: str, steps: list[Any], chains: int, stops: int, faults: tuple[str, ...], **changes: Any
) -> None:
    """Let ``chains`` runs meet ``stops`` faults each, then end, and compare each with an undisturbed run."""
    recipe, draw = lab.recipe(name, steps, **changes), random.Random(name)
    reference, aim = lab.root / f"{name}-home", lab.root / f"{name}-out"
    with drive(recipe) as it:
        whole = it.run(reference, aim)
        assert whole["code"] == 0, whole["said"]
        struck = 0
        for chain in range(chains):
            home, out = lab.root / f"{name}-home-{chain}", lab.root / f"{name}-out-{chain}"
            known: dict[str, bytes] = {}
            for stop in range(stops):
                how = faults[(chain + stop) % len(faults)]
                at = draw.randint(1, max(whole["operations"] // 3, 2))
                before = half_made(home, out)
                seen = it.run(home, out, at, how)
                where = f"{name}, chain {chain}, stop {stop}: {how} at operation {at}: {seen}"
                struck += seen["code"] != 0
                expected = {"kill": (137,), "power": (137,), "full": (4,), "memory": (4,), "interrupt": (130,)}[how]
                assert seen["code"] in (0, *expected), where
                if how == "full" and seen["code"]:
                    assert "MB free" in seen["said"][-1] or "GB free" in seen["said"][-1], where
                    assert str(home) in seen["said"][-1] or str(out) in seen["said"][-1], where
                if how not in DEADLY:
                    assert half_made(home, out) <= before, where
                now = entries(home)
                assert {key: now.get(key) for key in known} == known, f"{where}: finished work was done again"
                known = now
            final = it.run(home, out)
            where = f"{name}, chain {chain}: {final}"
            assert final["code"] == 0, where
            assert not any("damaged" in line for line in final["said"]), where
            now = entries(home)
            assert {key: now.get(key) for key in known} == known, f"{where}: finished work was done again"
            assert facts(out) == facts(aim), where
            assert now.keys() == entries(reference).keys(), where
            assert half_made(home, out) == set(), where
            assert list(home.glob("partial/*")) == [], where
            print(f"{name}, chain {chain}: equal after {struck} faults so far")
        assert struck > chains * stops // 2
    print(f"{name}: {struck} faults in {chains} runs of about {whole['operations']} operations")


def test_stopped_at_any_operation(lab, drive, tiny_exported) -> None:
    source = lab.exported(tiny_exported())
    stop_and_go(lab, drive, "stopped", [{"quantize": {}}], chains=1, stops=7, faults=FAULTS, **source)


def test_stopped_while_training(lab, drive) -> None:
    steps = [{"distill": {"teacher": "model", "epochs": 4, "batch_size": 8}}]
    stop_and_go(
        lab, drive, "stopped-training", steps, chains=1, stops=4, faults=("power", "kill", "interrupt", "power")
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_stops_over_every_pass(lab, drive) -> None:
    stop_and_go(lab, drive, "stopped-everywhere", EVERY, chains=11, stops=10, faults=FAULTS)
