"""Make the artifacts that ``int8_peers.py`` compares: each peer's in an environment of its own, ours in this one."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.artifact import Artifact, Graph, PassRecord, create_artifact, open_artifact
from compress.bench.launch import without_folders
from compress.data.splits import Row
from compress.quantization.isa import reduced_range_for
from compress.tasks.base import Task, task_from

PEERS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("dynamic", "dynamic-advised", "dynamic-fused", "static"),
    "nncf": ("onnx", "openvino"),
    "transformers": (
        "onnxruntime-dynamic",
        "onnxruntime-dynamic-fused",
        "onnxruntime-static",
        "nncf-onnx",
        "nncf-fx",
        "nncf-openvino",
        "torchao",
    ),
    "olive": ("auto-opt",),
    "modelopt": ("int8", "int8-max"),
}
"""Peer -> its variants; ``peers/PEER_int8.py`` makes them, ``peers/PEER_int8.txt`` pins what it needs."""
SCRIPTS = Path(__file__).parent / "peers"
RECIPE = Path(__file__).parent / "recipes" / "int8.yaml"
KEY, FAILED = "key.txt", "failed.txt"
_SAYS_WHY = ("Error", "Exception", "error:")


class PeerError(Exception):
    """A peer made no artifact; the message is the reason that its row gives."""


@dataclass(frozen=True)
class Candidate:
    """One row of the table: an artifact, or the reason why there is none.

    Attributes:
        name: as the table calls it.
        role: ``baseline``, ``ours`` or ``peer``.
        record: what the peer put on record: options, versions, seconds, peak memory.
    """

    name: str
    role: str
    artifact: Artifact | None = None
    reason: str = ""
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Folders of one comparison, and what every peer is given.

    Attributes:
        venvs: environments, shared by all data sets.
        root: everything else, of this data set.
        model: the model folder as our toolkit takes it in: float32, with its tokenizer.
        fp32: our float32 export of it.
        calibration: CSV file of training texts.
        seconds: time that a peer may take for one artifact.
        retry: try again what failed before.
    """

    venvs: Path
    root: Path
    model: Path
    fp32: Artifact
    calibration: Path
    seconds: float
    retry: bool = False

    @property
    def task(self) -> Task:
        return task_from(self.fp32.manifest.task)


def take_in_model(source: Path, root: Path) -> tuple[Path, Artifact]:
    """Return the model as our toolkit takes it in, and its float32 ONNX export; both are made anew."""
    from compress.models.loading import load_torch
    from compress.models.source import take_in
    from compress.search.deploy import deploy

    torch, onnx = root / "model", root / "fp32"
    for folder in (torch, onnx):
        shutil.rmtree(folder, ignore_errors=True)
    torch.mkdir(parents=True)
    task = task_from(take_in(str(source), torch, "text-classification"))
    return torch, deploy(load_torch(torch, task), torch, task, "fp32", onnx)


def write_texts(rows: Sequence[Row], path: Path) -> None:
    """Write the texts of rows as CSV with the column ``text``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([row["text"]] for row in rows)


def make_ours(model: Path, data: Path, place: Place) -> list[Candidate]:
    """Return our own INT8 artifacts: those of the recipe ``recipes/int8.yaml``, chosen on this machine."""
    from compress.pipeline.planning import make_plan
    from compress.pipeline.running import run_steps
    from compress.recipe import load_recipe
    from compress.store import Store

    variables = [f"MODELS={model.parent.resolve()}", f"DATA={data.parent.resolve()}", f"SET={data.name}"]
    recipe = load_recipe(RECIPE, [f"model={model.resolve()}"], variables)
    state = run_steps(make_plan(recipe), place.root / "ours", Store(place.root / "store"), _say)
    made = {step.id: state.artifact(step.id) for step in state.plan.steps if step.pass_.name == "quantize"}
    return [Candidate(f"mcompress {name}", "ours", artifact) for name, artifact in made.items() if artifact is not None]


def given(words: Sequence[str]) -> list[Candidate]:
    """Open artifacts named on the command line as ``LABEL=FOLDER``."""
    named = [word.partition("=") for word in words]
    return [Candidate(label, "ours", open_artifact(Path(folder))) for label, _, folder in named]


def make_peer(peer: str, variant: str, place: Place) -> Candidate:
    """Make one variant of a peer, or take it from an earlier run with the same inputs, script and requirements.

    A failure is remembered too, unless ``place`` says to try again.
    """
    name = f"{peer} {variant}"
    try:
        made = _made(peer, variant, place)
        record = json.loads((made / "peer.json").read_text(encoding="utf-8"))
        return Candidate(name, "peer", _wrap(made, f"{peer}-{variant}", place, record["options"]), record=record)
    except PeerError as error:
        return Candidate(name, "peer", reason=str(error))


def _made(peer: str, variant: str, place: Place) -> Path:
    """Return the folder with the peer's files and its ``peer.json``."""
    script, requirements = SCRIPTS / f"{peer}_int8.py", SCRIPTS / f"{peer}_int8.txt"
    out = place.root / "peers" / f"{peer}-{variant}"
    parts = [script, requirements, SCRIPTS / "request.py", place.calibration]
    key = hashlib.sha256("".join([place.fp32.digest, *(_sha256(path) for path in parts)]).encode()).hexdigest()
    if (out / KEY).is_file() and (out / KEY).read_text(encoding="utf-8") == key:
        if not (out / FAILED).is_file():
            return out
        if not place.retry:
            raise PeerError((out / FAILED).read_text(encoding="utf-8"))
    python = environment(requirements, place.venvs / peer)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [str(python), str(script), "--variant", variant, "--model", str(place.model), "--out", str(out)]
    command += ["--calibration", str(place.calibration)]
    command += ["--reduce-range"] if reduced_range_for(None)[0] else []
    try:
        with _copied(place.fp32, place.root) as copy:
            _run([*command, "--onnx", str(copy)], out.with_suffix(".log"), place.seconds)
    except PeerError as error:
        (out / FAILED).write_text(str(error), encoding="utf-8")
        (out / KEY).write_text(key, encoding="utf-8")
        raise
    (out / KEY).write_text(key, encoding="utf-8")
    return out


@contextmanager
def _copied(artifact: Artifact, root: Path) -> Iterator[Path]:
    """Give a copy of an ONNX file while the block runs: ModelOpt writes into the file that it is given."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(shutil.copy(artifact.file(), folder))


def environment(requirements: Path, folder: Path) -> Path:
    """Return the interpreter of a virtual environment with exactly these requirements; made if there is none.

    Raises:
        PeerError: the packages could not be installed.
    """
    python, installed = folder / "bin" / "python", folder / "requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if installed.is_file() and installed.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    _run([sys.executable, "-m", "venv", str(folder)], log, 300)
    _run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)], log, 3600)
    installed.write_text(wanted, encoding="utf-8")
    return python


def _run(command: Sequence[str], log: Path, seconds: float) -> None:
    """Run a command without our own packages in sight, and without the network's model hub."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    kept |= {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=kept, cwd=log.parent, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"not done after {seconds:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise PeerError(_reason(log, process.returncode))


def _reason(log: Path, code: int) -> str:
    """Return the last line of a log that names an error, and where it arose, without this machine's folders."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    telling = [line for line in lines if any(word in line for word in _SAYS_WHY)] or lines[-1:] or [""]
    frames = [line for line in lines if line.lstrip().startswith("File ")]
    where = f" ({frames[-1].strip()})" if frames else ""
    return without_folders(f"exit code {code}: {' '.join(telling[-1].split())[:400]}{where}")


def _wrap(made: Path, name: str, place: Place, options: dict[str, Any]) -> Artifact:
    """Copy a peer's files, byte for byte, into an artifact that our runtimes open."""
    out = place.root / "artifacts" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in sorted(made.glob("model.*")):
        shutil.copyfile(file, out / file.name)
    if not any((out / f"model.{suffix}").is_file() for suffix in ("onnx", "xml")):
        raise PeerError("it wrote neither model.onnx nor model.xml")
    return _record(out, place, name, options)


def _record(out: Path, place: Place, made_by: str, notes: dict[str, Any]) -> Artifact:
    from compress.export.companions import copy_companions
    from compress.export.signature import read_graph

    copy_companions(place.fp32.path, out)
    if (out / "model.xml").is_file():
        base = place.fp32.manifest.graphs["model"]
        kind, graph = "openvino", Graph(file="model.xml", inputs=base.inputs, outputs=base.outputs)
    else:
        kind, graph = "onnx", read_graph(out / "model.onnx")
    return create_artifact(
        out,
        kind=kind,
        task=place.fp32.manifest.task,
        traits=("int8",),
        graphs={"model": graph},
        parents={"model": place.fp32.digest},
        made_by=PassRecord(name=made_by, version=1, config={}),
        notes=notes,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(message: str, done: int | None = None, total: int | None = None) -> None:
    if done is None:
        print(f"  {message}", flush=True)
