"""Run every example through one artifact in one fresh child: its outputs, its peak memory, its placement."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact, Kind
from compress.bench.launch import Child, ChildError
from compress.data.encoded import Encoded
from compress.errors import RunError, UsageError
from compress.runtimes.base import runtimes
from compress.runtimes.target import Target


@dataclass(frozen=True)
class Inspection:
    """What one run over every example shows of an artifact.

    Attributes:
        outputs: (n, labels) float32, in the order of the examples.
        peak_rss_bytes: largest resident memory of the child, its libraries included.
        placement: what ``Session.placement`` says.
    """

    outputs: np.ndarray
    peak_rss_bytes: int
    placement: Mapping[str, Any]


def fits(kind: Kind, target: Target) -> bool:
    """Say whether a target can run artifacts of this kind at all; a pair that does not fit is left out."""
    return kind in runtimes.get(target.runtime).kinds


def predict(artifact: Artifact, target: Target, encoded: Encoded, *, work: Path, batch_size: int = 1) -> np.ndarray:
    """Run every example through an artifact in one fresh child, as ``inspect`` does, and return its outputs."""
    return _run_all(artifact, target, encoded, work, batch_size, ("predict",))["outputs"]  # type: ignore[no-any-return]


def inspect(artifact: Artifact, target: Target, encoded: Encoded, *, work: Path, batch_size: int = 1) -> Inspection:
    """Run every example through an artifact in one fresh child, without the target's memory limit.

    Args:
        work: existing folder for intermediate files; they are removed.
        batch_size: examples per padded batch; dynamic INT8 gives other outputs for other batches, hence 1.

    Raises:
        UsageError: the artifact's kind does not fit the target.
        MissingCapabilityError: the target cannot run here.
        RunError: the child failed.
    """
    facts = _run_all(artifact, target, encoded, work, batch_size, ("predict", "memory", "placement"))
    return Inspection(facts["outputs"], facts["peak_rss_bytes"], facts["placement"])


def _run_all(
    artifact: Artifact, target: Target, encoded: Encoded, work: Path, batch_size: int, ops: Sequence[str]
) -> dict[str, Any]:
    if not fits(artifact.kind, target):
        raise UsageError(
            f"The target {target.name!r} does not run {artifact.kind} artifacts.",
            value=artifact.kind,
            fix=f"Use a target for {artifact.kind}, or export the model first.",
        )
    runtimes.get(target.runtime)().require(target)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source, out = Path(folder) / "encoded.npz", Path(folder) / "outputs.npy"
        encoded.save(source)
        jobs: dict[str, dict[str, Any]] = {"predict": {"out": str(out), "batch": batch_size}}
        facts: dict[str, Any] = {}
        try:
            with Child(target, limited=False) as child:
                child.open(str(artifact.path), target, str(source))
                for op in ops:
                    facts |= child.ask(op, **jobs.get(op, {}))
        except ChildError as error:
            raise RunError(
                f"The artifact could not be run on {target.name!r}.",
                value=error.reason,
                fix="Open the file with the runtime itself to see more; produce the artifact again if it is damaged.",
            ) from error
        return facts | {"outputs": np.load(out, allow_pickle=False)}
