"""Choose what is measured where: every stage on every target that fits, beside both baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.artifact import Artifact
from compress.bench.protocol import Measurement, Subject, fits, measure
from compress.passes.base import Progress
from compress.pipeline.baselines import ONNX as ONNX
from compress.pipeline.baselines import TORCH as TORCH
from compress.pipeline.baselines import Baseline as Baseline
from compress.pipeline.baselines import baselines as choose_baselines
from compress.pipeline.baselines import strongest
from compress.pipeline.running import RunState
from compress.runtimes.target import Group, Target, find_targets


@dataclass(frozen=True)
class Measured:
    """All measurements of a run.

    Attributes:
        targets: those of the recipe, then those added for a baseline.
        measurements: in the order of the cells.
        baselines: (device, threads, isa) -> the baselines of that group.
        split: the split whose examples were run.
        answers: its labels as the task's metrics want them; None if it has none.
    """

    targets: tuple[Target, ...]
    measurements: tuple[Measurement, ...]
    baselines: Mapping[Group, tuple[Baseline, ...]]
    split: str
    answers: np.ndarray | None


def measure_run(state: RunState, work: Path, emit: Progress) -> Measured:
    """Measure the stages of a run, baselines included, interleaved within each group of targets."""
    settings = state.recipe.measure
    wanted = find_targets(settings.targets)
    split = "test" if "test" in state.data else "validation"
    stages = _stages(state)
    encoded = {id_: state.task.encode(artifact.path, state.data[split].rows) for id_, artifact in stages.items()}
    pairs = [(id_, target) for target in wanted for id_, artifact in stages.items() if fits(artifact.kind, target)]
    baselines: dict[Group, tuple[Baseline, ...]] = {}
    for group in dict.fromkeys(target.group for target in wanted):
        baselines[group] = choose_baselines(state, stages, wanted, group)
        pairs += [(b.step, b.target) for b in baselines[group] if (b.step, b.target) not in pairs]
    rows = state.data[split].rows
    subjects = [Subject(id_, stages[id_], encoded[id_], target, rows) for id_, target in pairs]
    measurements = measure(subjects, settings=settings, work=work, seed=state.recipe.run.seed, emit=emit)
    cells = {(m.subject, m.target): m for m in measurements}
    added = [b.target for group in baselines.values() for b in group if b.target not in wanted]
    targets = tuple(dict.fromkeys([*wanted, *added]))
    baselines |= {group: strongest(found, cells) for group, found in baselines.items() if group[0] == "cuda"}
    return Measured(targets, tuple(measurements), baselines, split, next(iter(encoded.values())).targets)


def _stages(state: RunState) -> dict[str, Artifact]:
    """Return what can be scored: an encoder whose head a fine-tuning replaced answers another question."""
    made = {id_: o.artifact for id_, o in state.outcomes.items() if o.status == "done" and o.artifact is not None}
    return {id_: artifact for id_, artifact in made.items() if artifact.manifest.task == state.task.dump()}
