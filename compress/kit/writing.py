"""``mcompress kit``: put models of a run, inputs and a program into one folder that another device can run."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import __version__
from compress.artifact import Artifact, hash_json, open_artifact
from compress.bench.protocol import predict
from compress.data.encoded import Encoded
from compress.disk import write_atomically
from compress.errors import CompressError, UsageError
from compress.kit.readme import readme
from compress.kit.runner import runner_text
from compress.models.remote_code import CUSTOM_CODE
from compress.passes.base import Progress
from compress.pipeline import folder
from compress.pipeline.inputs import load_inputs
from compress.pipeline.measuring import ONNX
from compress.pipeline.planning import SOURCE, make_plan
from compress.pipeline.source import resolve_source
from compress.recipe import load_recipe
from compress.report.files import read_report
from compress.report.model import Report
from compress.runtimes.target import Target
from compress.store import Store
from compress.tasks.base import Task

SCHEMA = 1
KITS = "kits"
"""Folder of a run that remembers the kits made from it: without it no result comes back."""
_MODEL_FILES = {"onnx": (".onnx", ".data", ".onnx_data", ".bin"), "torch": (".json", ".safetensors")}
_NOT_NEEDED = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"}


@dataclass(frozen=True)
class Kit:
    """A written kit: its folder, the steps in it, its digest and its size."""

    path: Path
    steps: tuple[str, ...]
    digest: str
    size_bytes: int


def write_kit(
    run: Path, steps: Sequence[str], out: Path, *, variables: Sequence[str] = (), store: Store, emit: Progress
) -> Kit:
    """Write a kit of a run's steps, and note in the run what its result must fit.

    Args:
        run: a run folder.
        steps: ids, the first is what the table on the device compares with; empty = the plain ONNX export (where
            it was measured) and the step that the report ships.
        out: new or empty folder.
        variables: ``NAME=value`` for the recipe's ``${NAME}``: the evaluated split is read again.
        store: where the run's artifacts are.
        emit: progress sink.

    Raises:
        UsageError: nothing to ship, an unknown step, a kind that no kit can hold, or other data than the run read.
    """
    folder.read_run(run)
    record = read_report(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The folder exists and is not empty.", value=out, fix="Choose another one.")
    chosen = tuple(dict.fromkeys(steps or _usual_steps(record, run)))
    recipe = load_recipe(run / folder.RECIPE_FILE, variables=variables)
    plan = make_plan(recipe)
    source = resolve_source(recipe, store, emit)
    data, task = load_inputs(plan, source)
    split = record.data.evaluated
    _same_data(record, split, data[split].digest)

    def artifact_of(step: str) -> Artifact:
        if step == SOURCE and source is not None:
            return open_artifact(source.path)
        return folder.find_artifact(run, step, store)

    artifacts = {step: _fit_for_a_kit(step, artifact_of(step), task) for step in chosen}
    encoded = {step: task.encode(artifact.path, data[split].rows) for step, artifact in artifacts.items()}
    answers = next(iter(encoded.values())).targets
    reference, outputs = _reference(record, artifact_of, task, data[split].rows, store, emit)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kit-") as temporary:
        made = Path(temporary) / "kit"
        made.mkdir()
        models = [_add_model(made, step, artifact, encoded[step]) for step, artifact in artifacts.items()]
        order = np.random.default_rng(recipe.run.seed).permutation(len(data[split]))
        head = {
            "schema_version": SCHEMA,
            "mcompress": __version__,
            "recipe": record.recipe,
            "task": task.name,
            "split": split,
            "examples": len(data[split]),
            "sequence": [int(index) for index in order[: recipe.measure.inputs]],
            "models": models,
        }
        kit = _finish(made, head)
        if out.exists():
            out.rmdir()
        made.rename(out)
    _remember(run, kit, task, reference, answers, outputs)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Kit(out, chosen, kit["digest"], size)


def _usual_steps(record: Report, run: Path) -> list[str]:
    if record.verdict.step is None:
        raise UsageError(
            "The report ships nothing, so there is no usual kit.",
            value=run,
            fix=f"Name steps: RUN:STEP; it has {', '.join(step.id for step in record.steps if step.status == 'done')}.",
        )
    plain = [record.baselines[ONNX].step] if ONNX in record.baselines else []
    return [*plain, record.verdict.step]


def _same_data(record: Report, split: str, digest: str) -> None:
    known = next((it.digest for it in record.data.splits if it.name == split), None)
    if known != digest:
        raise UsageError(
            f"The {split} split is not the one that the run evaluated.",
            value=f"digest {digest[:12]}, in the report {(known or 'none')[:12]}",
            fix="Give the data that the run read (`--var DATA=...`), or run the recipe again.",
        )


def _fit_for_a_kit(step: str, artifact: Artifact, task: Task) -> Artifact:
    if artifact.manifest.task != task.dump():
        raise UsageError(f"Step {step!r} answers another question than the run.", value=step, fix="Name another step.")
    if artifact.kind not in _MODEL_FILES:
        raise UsageError(
            f"A kit holds no {artifact.kind} artifact: it fits one machine or one library.",
            value=step,
            fix="Name the ONNX step that it was made from; the kit builds a TensorRT engine on the device.",
        )
    if CUSTOM_CODE in artifact.traits:
        raise UsageError(
            "This torch model needs its author's code to be opened, and a kit holds none.",
            value=step,
            fix="Name a step behind `export`: its ONNX file opens anywhere.",
        )
    if artifact.kind == "torch" and "structure.json" in artifact.manifest.files:
        raise UsageError(
            "A pruned torch model needs mcompress itself to be opened.",
            value=step,
            fix="Name a step behind `export`: its ONNX file opens anywhere.",
        )
    return artifact


def _reference(
    record: Report, artifact_of: Any, task: Task, rows: Sequence[Mapping[str, Any]], store: Store, emit: Progress
) -> tuple[str, np.ndarray | None]:
    """Run the report's reference on the evaluated split, here, so that the device's answers can be paired with it."""
    for place in record.baselines.values():
        where = next((target for target in record.targets if target.name == place.target), None)
        if where is None or where.evidence != "measured":
            continue
        target = Target(name=where.name, runtime=where.runtime, device=where.device, threads=where.threads)
        emit(f"answers of the reference, {place.step} on {place.target}, for {len(rows):,} examples")
        try:
            artifact = artifact_of(place.step)
            with store.workspace() as work:
                return place.step, predict(artifact, target, task.encode(artifact.path, rows), work=work)
        except CompressError as error:
            emit(f"without a paired difference: {error.what}")
    return "", None


def _add_model(made: Path, step: str, artifact: Artifact, encoded: Encoded) -> dict[str, Any]:
    place = made / "models" / step
    for name in artifact.manifest.files:
        if name.endswith(_MODEL_FILES[artifact.kind]) and name not in _NOT_NEEDED:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, place / name)
    graph = artifact.manifest.graphs["model"]
    model: dict[str, Any] = {
        "name": step,
        "digest": artifact.digest,
        "kind": artifact.kind,
        "file": f"models/{step}/{graph.file}" if artifact.kind == "onnx" else f"models/{step}",
        "inputs": [value.name for value in graph.inputs],
        "output": graph.outputs[0].name,
        "size_bytes": artifact.size_bytes,
        "parameters": artifact.manifest.parameters,
        "evaluation": _add_inputs(made, encoded),
        "golden": _add_golden(made, step, artifact),
    }
    if artifact.kind == "torch":
        config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
        model["auto_class"] = config["architectures"][0]
    return model


def _add_inputs(made: Path, encoded: Encoded) -> str:
    """Write the examples once for all models whose tokenizers agree; return the file's name."""
    (made / "inputs").mkdir(exist_ok=True)
    draft = made / "inputs" / "draft.npz"
    encoded.save(draft)
    name = f"inputs/{_sha256(draft)[:12]}.npz"
    draft.replace(made / name)
    return name


def _add_golden(made: Path, step: str, artifact: Artifact) -> str | None:
    golden = artifact.manifest.golden
    if golden is None:
        return None
    arrays = {f"in/{name}": np.asarray(rows) for name, rows in golden.inputs.items()}
    arrays = {name: rows.astype("float32") if rows.dtype.kind == "f" else rows for name, rows in arrays.items()}
    arrays |= {f"out/{name}": np.asarray(rows, dtype=np.float32) for name, rows in golden.outputs.items()}
    (made / "golden").mkdir(exist_ok=True)
    np.savez(made / "golden" / f"{step}.npz", **arrays)  # type: ignore[arg-type]
    return f"golden/{step}.npz"


def _finish(made: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Add the program and the texts; settle digests."""
    (made / "run.py").write_text(runner_text(), encoding="utf-8")
    (made / "README.md").write_text(readme(head), encoding="utf-8")
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    files = {name: {"sha256": _sha256(made / name), "bytes": (made / name).stat().st_size} for name in names}
    kit: dict[str, Any] = {**head, "files": files}
    kit["digest"] = hash_json(kit)
    (made / "kit.json").write_text(folder.as_json(kit), encoding="utf-8")
    sums = {name: record["sha256"] for name, record in files.items()} | {"kit.json": _sha256(made / "kit.json")}
    (made / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")
    return kit


def _remember(
    run: Path,
    kit: Mapping[str, Any],
    task: Task,
    reference: str,
    answers: np.ndarray | None,
    outputs: np.ndarray | None,
) -> None:
    place = run / KITS / kit["digest"][:16]
    place.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in (("targets", answers), ("reference", outputs)) if array is not None}
    np.savez(place / "answers.npz", **arrays)  # type: ignore[arg-type]
    memory = {"kit": kit, "task": task.dump(), "reference": reference}
    write_atomically(place / "kit.json", folder.as_json(memory))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
