"""Which of several ways to factor a model is faster where it will run: measured, and none if none is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import hash_json
from compress.bench.environment import environment
from compress.data.encoded import Encoded
from compress.runtimes.target import Target
from compress.search.deploy import Precision, Speedup, deploy, measure_speedup
from compress.store import Store
from compress.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def time_variants(
    variants: Mapping[str, PreTrainedModel],
    whole: PreTrainedModel,
    folder: Path,
    task: Task,
    encoded: Encoded,
    target: Target,
    precision: Precision,
    store: Store,
    key: str,
) -> dict[str, Speedup]:
    """Deploy variants of a model beside it and time them in interleaved rounds; kept in the store.

    Args:
        variants: name -> model, at least one.
        whole: what they are compared with, deployed in the same precision.
        folder: with their configuration and tokenizer.
        task: of all of them.
        encoded: examples whose lengths stand for those to come.
        target: where they run.
        precision: fp32, int8 or fp16.
        store: where the times are kept, so that a second run decides alike.
        key: digest of everything that decides the weights.

    Returns:
        Name -> how much faster than ``whole``.

    Raises:
        UsageError, MissingCapabilityError, RunError: see ``measure_speedup``.
    """

    def build(out: Path) -> None:
        with store.workspace() as work:
            models = {"whole": whole, **variants}
            made = [
                deploy(model, folder, task, precision, work / name.replace(" ", "-"), target=target)
                for name, model in models.items()
            ]
            times = measure_speedup(made[1:], made[0], encoded, target, work=work)
        rows = {name: vars(speedup) for name, speedup in zip(variants, times, strict=True)}
        (out / "times.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    cpu = environment()["cpu"]
    parts = {
        "factoring": 1,
        "weights": key,
        "precision": precision,
        "target": target.model_dump(mode="json"),
        "cpu": cpu,
    }
    path, _ = store.get_or_build(hash_json(parts), f"times of factors on {target.name}", build)
    return {name: Speedup(**row) for name, row in json.loads((path / "times.json").read_text(encoding="utf-8")).items()}


def fastest(times: Mapping[str, Speedup]) -> str | None:
    """Return the fastest of the variants that are faster than the whole model beyond their 95 % interval, if any."""
    sure = {name: speedup.value for name, speedup in times.items() if speedup.low > 1.0}
    return max(sure, key=sure.__getitem__) if sure else None
