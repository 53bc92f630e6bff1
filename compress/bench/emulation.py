"""Answers of emulated processors: outputs on a seeded part of the examples, and no time of any kind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.bench.launch import Child, ChildError
from compress.runtimes.cores import usable_cores

if TYPE_CHECKING:
    from compress.bench.protocol import Emit, Subject

NO_TIMES = "an emulator's time says nothing about the device"
_CHUNK = 5


def emulated_part(count: int, wanted: int, seed: int) -> list[int]:
    """Return the examples that emulated targets run, ascending: a seeded draw, the same for every subject."""
    drawn = np.random.default_rng([seed, 1]).permutation(count)[: min(wanted, count)]
    return sorted(int(index) for index in drawn)


def run_emulated(
    subjects: Sequence[Subject], part: Sequence[int], *, work: Path, emit: Emit, workers: int | None = None
) -> list[dict[str, Any]]:
    """Run ``part`` of each subject's examples, several processes at a time since nothing is timed.

    Args:
        subjects: on emulated targets that can run here.
        part: indices of examples, ascending.
        work: existing folder for intermediate files.
        workers: emulated processes at a time; None = one per usable core.

    Returns:
        For each subject the facts of its row: outputs and the examples that they belong to, or status and reason.
        When one raises, or on an interruption, the others end after the examples they are at.
    """
    lock, stopped, done, total = threading.Lock(), threading.Event(), 0, len(subjects) * len(part)

    def advance(examples: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise CancelledError
        with lock:
            done += examples
            emit("emulating arm64: examples", done, total)

    def one(number: int) -> dict[str, Any]:
        folder = work / f"emulated-{number}"
        folder.mkdir()
        return _answers(subjects[number], part, folder, advance)

    with ThreadPoolExecutor(workers or len(usable_cores())) as pool:
        try:
            return list(pool.map(one, range(len(subjects))))
        except BaseException:
            stopped.set()
            raise


def _answers(subject: Subject, part: Sequence[int], folder: Path, advance: Any) -> dict[str, Any]:
    subject.encoded.save(folder / "encoded.npz")
    outputs = []
    try:
        with Child(subject.target) as child:
            child.open(str(subject.artifact.path), subject.target, str(folder / "encoded.npz"))
            for start in range(0, len(part), _CHUNK):
                chunk = list(part[start : start + _CHUNK])
                child.ask("predict", out=str(folder / "outputs.npy"), batch=1, indices=chunk)
                outputs.append(np.load(folder / "outputs.npy", allow_pickle=False))
                advance(len(chunk))
            placement = child.ask("placement")["placement"]
    except ChildError as error:
        return {"status": error.status, "reason": error.reason}
    return {
        "outputs": np.concatenate(outputs),
        "examples": list(part),
        "placement": placement,
        "runtime_version": placement.get("packages", {}).get("onnxruntime", ""),
    }
