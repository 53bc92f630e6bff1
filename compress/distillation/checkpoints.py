"""Checkpoints of a training run that survive a kill or a power loss: sealed when whole, verified when resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from compress.disk import hash_files, sync_folder, sync_tree, write_atomically

_STATE = "trainer_state.json"
_SEAL = "whole.json"
"""Written last, after everything else is on the disk: sha256 of every file of the checkpoint."""


def seal(checkpoint: Path) -> None:
    """Put on record that a checkpoint is whole, once it is on the disk."""
    sync_tree(checkpoint)
    sync_folder(checkpoint.parent)
    write_atomically(checkpoint / _SEAL, json.dumps(hash_files(checkpoint), indent=1) + "\n")


def rotate(checkpoint: Path, best: str | None) -> None:
    """Remove the checkpoints beside this one, but for the best. No clock decides which is the last."""
    kept = {checkpoint.name, Path(best).name if best else ""}
    for path in checkpoint.parent.glob("checkpoint-*"):
        if path.name not in kept:
            (path / _SEAL).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint from which training goes on as if it had not stopped; remove what is of no use.

    It and the best one, to which it refers, must both be whole.
    """
    whole = {}
    for path in folder.glob("checkpoint-*"):
        if _is_whole(path):
            whole[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    for step in sorted(whole, reverse=True):
        best = json.loads((whole[step] / _STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
        if best is None or Path(best) in whole.values():
            return whole[step]
        shutil.rmtree(whole[step], ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        sealed = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
        found = hash_files(checkpoint)
    except (OSError, ValueError):
        return False
    return {name: digest for name, digest in found.items() if name != _SEAL} == sealed and _STATE in sealed
