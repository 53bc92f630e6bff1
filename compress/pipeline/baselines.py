"""What speed-ups are stated against. On a CPU: the model in PyTorch, and exported unchanged to ONNX.

On a GPU: the model in FP32, and the fastest way in which it runs there uncompressed, most likely in FP16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.artifact import Artifact
from compress.bench.measurement import Measurement
from compress.pipeline.lineage import ancestry
from compress.pipeline.planning import onnx_baseline
from compress.pipeline.running import RunState
from compress.runtimes.base import runtimes
from compress.runtimes.target import Group, Isa, Target, find_target

TORCH, ONNX = "torch FP32", "ONNX Runtime FP32"
"""The two baselines of a CPU, as reports name them."""
UNCHANGED = frozenset({"export", "cast", "build"})
"""Passes after which a model is still the uncompressed one, at another precision."""
ALWAYS = ("torch-cuda", "torch-cuda-fp16", "torch-cuda-fp16-compiled")
"""Targets that the uncompressed torch model is measured on wherever a GPU target is asked for."""
_PRECISIONS = ("fp16", "bf16")


@dataclass(frozen=True)
class Baseline:
    """An uncompressed model on a target, which the rows of one group are divided by."""

    name: str
    step: str
    target: Target


def baselines(
    state: RunState, stages: Mapping[str, Artifact], wanted: Sequence[Target], group: Group
) -> tuple[Baseline, ...]:
    """Return what is measured as a baseline of one group of targets.

    Args:
        stages: the finished steps that can be measured.
        wanted: the recipe's targets.
        group: (device, threads, isa).
    """
    return tuple((_on_gpu if group[0] == "cuda" else _on_cpu)(state, stages, wanted, group))


def _on_cpu(
    state: RunState, stages: Mapping[str, Artifact], wanted: Sequence[Target], group: Group
) -> Iterator[Baseline]:
    _, threads, isa = group
    asked, reference, exported = state.recipe.measure.baselines, state.plan.reference, onnx_baseline(state.plan)
    if "torch" in asked and reference in stages and stages[reference].kind == "torch":
        yield Baseline(TORCH, reference, _cpu_target("torch", "torch-cpu", wanted, threads, isa))
    if "onnx" in asked and exported is not None and exported in stages:
        yield Baseline(ONNX, exported, _cpu_target("onnxruntime", "ort-cpu", wanted, threads, isa))


def _cpu_target(runtime: str, prefix: str, wanted: Sequence[Target], threads: int | None, isa: Isa | None) -> Target:
    for target in wanted:
        if (target.runtime, target.group, target.memory_bytes) == (runtime, ("cpu", threads, isa), None):
            return target
    name = "-".join(filter(None, [prefix, f"{threads}t" if threads else "", isa]))
    added = Target(name=name, description="added for the baseline", runtime=runtime, threads=threads, isa=isa)
    return added if isa is None else added.model_copy(update={"evidence": "proxy"})


def _on_gpu(
    state: RunState, stages: Mapping[str, Artifact], wanted: Sequence[Target], group: Group
) -> Iterator[Baseline]:
    """Yield every way in which the uncompressed model runs on the GPU here, FP32 first."""
    asked, reference = state.recipe.measure.baselines, state.plan.reference
    gpu = [target for target in wanted if target.group == group]
    if "torch" in asked and reference in stages and stages[reference].kind == "torch":
        usual = [target for target in map(find_target, ALWAYS) if target.group == group]
        others = [target for target in gpu if target.runtime == "torch" and target not in usual]
        yield from (Baseline(name_of(target), reference, target) for target in [*usual, *others] if _is_here(target))
    exported = onnx_baseline(state.plan)
    if "onnx" in asked and exported is not None and exported in stages:
        ort = [target for target in gpu if target.runtime == "onnxruntime" and _is_here(target)]
        yield from (Baseline(name_of(target), exported, target) for target in ort)
    engines = [target for target in gpu if target.runtime == "tensorrt" and _is_here(target)]
    for step, artifact in stages.items():
        precision = next((name for name in _PRECISIONS if name in artifact.traits), "")
        if artifact.kind == "tensorrt" and precision and is_uncompressed(state, step):
            yield from (Baseline(name_of(target, precision), step, target) for target in engines)


def strongest(found: Sequence[Baseline], cells: Mapping[tuple[str, str], Measurement]) -> tuple[Baseline, ...]:
    """Return FP32 and the fastest baseline, in this order; the fastest alone if that is FP32.

    A baseline counts if it was measured and every number that it answered is one: FP16 may overflow.
    """
    times = {}
    for baseline in found:
        m = cells.get((baseline.step, baseline.target.name))
        if m is not None and m.status == "ok" and m.samples_ms and (m.outputs is None or np.isfinite(m.outputs).all()):
            times[baseline] = float(m.flat_ms.mean())
    if not times:
        return tuple(found[:1])
    first, best = next(iter(times)), min(times, key=lambda baseline: times[baseline])
    return (first,) if first == best else (first, best)


def is_uncompressed(state: RunState, step: str) -> bool:
    """Say whether a step only changed the precision and the format of the reference model."""
    for each in ancestry(state, step):
        if each.id == state.plan.reference:
            return True
        if each.pass_.name not in UNCHANGED:
            return False
    return state.plan.reference not in state.plan.by_id


def name_of(target: Target, precision: str = "") -> str:
    """Return how reports call the uncompressed model on a target: ``torch FP16 compiled``, ``TensorRT FP16``."""
    runtime = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}.get(target.runtime, target.runtime)
    words = [runtime, (precision or target.precision or "fp32").upper()]
    words += ["compiled"] if target.compile else []
    return " ".join([*words, *(["CUDA graph"] if target.cuda_graph else [])])


def _is_here(target: Target) -> bool:
    return runtimes.get(target.runtime)().available(target).ok
