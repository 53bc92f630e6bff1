"""A laboratory for whole runs: a tiny BERT with named labels, data that it labels itself, recipes, a private store."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.data.splits import Split, TaskData
from compress.tasks.text_classification import TextClassification

LABELS = ("bad", "fine", "good")
TASK = TextClassification(LABELS, max_length=32)
SPLITS = {"train": 48, "validation": 24, "test": 24}
MEASURE = {
    "inputs": 4,
    "launches": 1,
    "rounds": 3,
    "warmup_seconds": 0.01,
    "throughput_seconds": 0.05,
    "targets": ["ort-cpu-1t"],
}
DRIVER = Path(__file__).with_name("fault_driver.py")
_OF_ONNX_RUNTIME = ".ses"
"""What importing it leaves in the folder for temporary files."""
LOOSE = {"accuracy": {"max_drop_points": 100}}
"""A gate that nothing fails: what a random model loses means nothing."""


@dataclass(frozen=True)
class Lab:
    """Folders of the laboratory, and how to write a recipe and run the command in it."""

    root: Path
    model: Path
    data: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    def recipe(self, name: str, steps: Sequence[Any], **changes: Any) -> Path:
        """Write ``<name>.yaml``; keys in ``changes`` replace the usual ones, None leaves a key out."""
        splits = {split: f"${{DATA}}/{split}.csv" for split in SPLITS}
        plain = {
            "recipe": 1,
            "name": name,
            "model": "${MODEL}",
            "data": {**splits, "calibration": {"samples": 16}},
            "run": {"threads": 1, "seed": 3},
            "gates": LOOSE,
            "steps": list(steps),
            "measure": self.measure,
        } | changes
        path = self.root / f"{name}.yaml"
        path.write_text(json.dumps({key: value for key, value in plain.items() if value is not None}), encoding="utf-8")
        return path

    def exported(self, source: Artifact) -> dict[str, Any]:
        """Return the keys of a recipe that begins with an ONNX file, whose labels have no names."""
        return {"model": str(source.file()), "labels": {f"LABEL_{i}": label for i, label in enumerate(LABELS)}}

    @property
    def measure(self) -> dict[str, Any]:
        """The least that can be measured."""
        return {**MEASURE, "baselines": []}

    def stored(self) -> list[Path]:
        """Payloads of the store that are artifacts."""
        return sorted(path.parent for path in (self.home / "entries").glob("*/payload/artifact.json"))

    def taken_in(self) -> Path:
        """The artifact of the laboratory's model, among those of other models that a test took in."""
        manifests = {path: json.loads((path / "artifact.json").read_text(encoding="utf-8")) for path in self.stored()}
        return next(
            path
            for path, manifest in manifests.items()
            if manifest["made_by"]["name"] == "model"
            and manifest["kind"] == "torch"
            and manifest["task"]["labels"] == list(LABELS)
        )

    @property
    def environment(self) -> dict[str, str]:
        own = {"MCOMPRESS_HOME": str(self.home), "MODEL": str(self.model), "DATA": str(self.data), "COLUMNS": "80"}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

    def start(self, *words: Any, **environment: str) -> subprocess.Popen[str]:
        """Start the public command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "compress", *map(str, words)],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )

    def command(self, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the public command to its end."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _hear_interrupts() -> None:
    """Undo what a shell does to its background jobs: they are started deaf to SIGINT, and so are their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lab(tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab").resolve()
    made = Lab(root, root / "model", root / "data")
    shutil.copytree(tiny_classifier("bert"), made.model)
    name_labels(made.model, LABELS)
    made.data.mkdir()
    rows = _labelled_sentences(made.model, sum(SPLITS.values()))
    for split, count in SPLITS.items():
        write_rows(made.data / f"{split}.csv", rows[:count])
        rows = rows[count:]
    return made


@pytest.fixture(scope="session")
def ran(lab: Lab) -> Path:
    """The folder of a run that made one model in FP32, INT8 and FP16; a test that changes it takes a copy."""
    steps = [{"export": {}}, {"quantize": {}, "id": "int8"}, {"cast": {}, "id": "fp16", "from": "export"}]
    recipe = lab.recipe("verbs", steps, measure={**lab.measure, "baselines": ["onnx"]})
    done = lab.command("run", recipe, "--out", lab.root / "verbs-out")
    assert done.returncode == 0, done.stderr
    assert "report: " in done.stdout
    assert all(len(line) <= 80 or "/" in line for line in done.stdout.splitlines())
    return lab.root / "verbs-out"


OWN_CODE = Path(__file__).parents[1] / "data" / "own_code"
"""Python files of models whose classes Transformers does not have."""


@pytest.fixture(scope="session")
def own_code(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return ``build(name)``: the folder of a model with code of its own: "bag" of words, or "bert" with other answers.

    Both have the tokenizer and the labels of the laboratory's model.
    """
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("own") / name
            shutil.copytree(lab.model, made[name])
            (_make_bag if name == "bag" else _make_own_bert)(made[name])
        return made[name]

    return build


def _make_bag(folder: Path) -> None:
    from safetensors.numpy import save_file

    for name in ("configuration_bag.py", "modeling_bag.py", "pooling.py"):
        shutil.copy(OWN_CODE / name, folder)
    labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words = len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    config = {
        "model_type": "bag-of-words",
        "architectures": ["BagForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "configuration_bag.BagConfig",
            "AutoModelForSequenceClassification": "modeling_bag.BagForSequenceClassification",
        },
        "vocab_size": words,
        "width": 16,
        **{key: labels[key] for key in ("id2label", "label2id")},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = np.random.default_rng(0)
    shapes = {
        "bag.words.weight": (words, 16),
        "hidden.weight": (16, 16),
        "hidden.bias": (16,),
        "classifier.weight": (3, 16),
        "classifier.bias": (3,),
    }
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _make_own_bert(folder: Path) -> None:
    shutil.copy(OWN_CODE / "modeling_own_bert.py", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_own_bert.OwnBert"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@dataclass
class Driver:
    """Makes runs in forked processes, some of which meet a fault: see ``fault_driver.py``."""

    recipe: Path
    process: subprocess.Popen[str]

    def run(self, home: Path, out: Path, at: int = 0, how: str = "kill") -> dict[str, Any]:
        """Run to the end, or to the fault; give back exit code, number of operations and what was said."""
        self.begin(home, out, at, how)
        return self.end()

    def begin(self, home: Path, out: Path, at: int = 0, how: str = "kill", recipe: Path | None = None) -> None:
        assert self.process.stdin is not None
        job = {"home": str(home), "out": str(out), "at": at, "how": how, "recipe": str(recipe or self.recipe)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def drive(lab: Lab) -> Callable[[Path], AbstractContextManager[Driver]]:
    """Return ``drive(recipe)``: a Driver for as long as a block lasts."""

    @contextmanager
    def begin(recipe: Path, name: str = "0") -> Iterator[Driver]:
        temporary, log_file = recipe.with_suffix(f".{name}.tmp"), recipe.with_suffix(f".{name}.log")
        temporary.mkdir()
        with (
            log_file.open("w") as log,
            subprocess.Popen(
                [sys.executable, str(DRIVER)],
                cwd=temporary,
                env=lab.environment | {"TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as process,
        ):
            yield Driver(recipe, process)
        assert process.returncode == 0, log_file.read_text()
        assert [path.name for path in temporary.iterdir() if path.name != _OF_ONNX_RUNTIME] == []

    return begin


def name_labels(folder: Path, names: Sequence[str]) -> None:
    """Write label names into a model's config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _labelled_sentences(model: Path, count: int) -> list[dict[str, Any]]:
    """Different sentences, labelled by the model itself as evenly as it can, so that it is right on all of them."""
    import torch

    from compress.distillation.internals import predict
    from compress.models.loading import load_torch
    from compress.tasks.text_classification import TextClassification

    torch.set_num_threads(1)
    words = [
        "the",
        "a",
        "film",
        "was",
        "is",
        "and",
        "not",
        "but",
        "never",
        "good",
        "bad",
        "dull",
        "fine",
        "great",
        "slow",
        "order",
        "card",
        "train",
        "she",
        "he",
        "it",
        "works",
    ]
    rng = np.random.default_rng(5)
    texts = sorted({" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(8 * count)})
    task = TextClassification(LABELS, max_length=64)
    logits = predict(load_torch(model, task), task.encode(model, [{"text": text} for text in texts]))
    by_label = [[text for text, best in zip(texts, logits.argmax(1), strict=True) if best == i] for i in range(3)]
    rows = [
        {"text": text, "label": label}
        for label, members in zip(LABELS, by_label, strict=True)
        for text in members[: count // len(LABELS) + 1]
    ]
    return [rows[i] for i in rng.permutation(len(rows))[:count]]


def torch_artifact(folder: Path) -> Artifact:
    from compress.models.signature import torch_graph

    record = PassRecord(name="test", version=1, config={})
    return create_artifact(
        folder, kind="torch", task=TASK.dump(), graphs={"model": torch_graph(folder, TASK)}, made_by=record
    )


@pytest.fixture(scope="session")
def labeller(tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from compress.models.loading import load_torch, save_torch

    folder = tmp_path_factory.mktemp("source")
    save_torch(load_torch(tiny_classifier(), TASK), folder, tokenizer_from=tiny_classifier())
    return torch_artifact(folder)


@pytest.fixture(scope="session")
def labelled(labeller: Artifact) -> TaskData:
    """480 and 120 texts of random words, labelled by the model itself, so that in float it is always right."""
    from compress.distillation.internals import predict
    from compress.models.loading import load_torch

    known = json.loads((labeller.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = sorted(word for word in known if word.isalpha())
    model = load_torch(labeller.path, TASK)

    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        texts = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(count)]
        bare = [{"text": text, "text_pair": None, "label": None} for text in texts]
        answers = predict(model, TASK.encode(labeller.path, bare)).argmax(axis=1)
        return [{**row, "label": TASK.labels[i]} for row, i in zip(bare, answers, strict=True)]

    train = rows(480, 1)
    parts = {"train": train, "validation": rows(120, 2), "calibration": train[:64]}
    return TaskData({name: Split(name, part, f"{name:0<64}", "test") for name, part in parts.items()}, TASK.labels)


@pytest.fixture(scope="session")
def planted(
    labeller: Artifact, plant_outliers: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    from compress.models.loading import load_torch, save_torch

    model, folder = load_torch(labeller.path, TASK), tmp_path_factory.mktemp("planted")
    plant_outliers(model)
    save_torch(model, folder, tokenizer_from=labeller.path)
    return torch_artifact(folder)


@pytest.fixture
def labelled_run(
    labelled: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Return ``run(model, steps, **changes)``: run a recipe on ``labelled``; give back report.json and report.md."""

    def run(model: Artifact, steps: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], str]:
        import compress

        monkeypatch.setenv("MCOMPRESS_HOME", str(tmp_path / "home"))
        for name in ("train", "validation"):
            with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(labelled[name].rows)
        recipe = {
            "recipe": 1,
            "model": str(model.path),
            "labels": {f"LABEL_{i}": label for i, label in enumerate(LABELS)},
            "data": {
                **{name: str(tmp_path / f"{name}.csv") for name in ("train", "validation")},
                "calibration": {"samples": 64},
                "on_overlap": "allow",
            },
            "run": {"threads": 1},
            "steps": steps,
            "measure": {**MEASURE, "baselines": ["onnx"]},
        } | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        compress.run(compress.load_recipe(path), tmp_path / "run")
        record = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
        return record, (tmp_path / "run" / "report.md").read_text(encoding="utf-8")

    return run


@dataclass
class Refusals:
    """Commands that must refuse: the right exit code, three parts, nothing written; and how many there were."""

    lab: Lab
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def out(self) -> Path:
        return self.lab.root / "refused"

    def of(self, kind: str, phrase: str, *verbs: Sequence[Any], code: int = 2) -> None:
        """Demand that each command refuses with ``phrase``."""
        from typer.testing import CliRunner

        from compress.cli.app import app

        before = self._stored()
        for words in verbs:
            result = CliRunner().invoke(app, [str(word) for word in words])
            assert result.exit_code == code, (words, result.output, result.exception)
            for part in ("error: ", "\n  fix:   ", phrase):
                assert part in result.stderr, (words, result.stderr)
            assert "Traceback" not in result.output
            assert result.stdout == ""
            assert not self.out.exists()
            assert self._stored() == before
            assert not list((self.lab.home / "work").iterdir())
            self.counts[f"{kind}: exit {code}"] += 1

    def of_recipe(self, kind: str, phrase: str, recipe: Path) -> None:
        """Demand that ``validate`` and ``run`` refuse a recipe alike."""
        self.of(kind, phrase, ("validate", recipe), ("run", recipe, "--out", self.out))

    def or_answer(self, kind: str, words: Sequence[Any], codes: Sequence[int]) -> None:
        """Demand that a command answers or refuses: one of these exit codes, no traceback, nothing written."""
        from typer.testing import CliRunner

        from compress.cli.app import app

        before = self._stored()
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code in codes, (words, result.output, result.exception)
        assert "Traceback" not in result.output
        assert self._stored() == before
        self.counts[f"{kind}: exit {result.exit_code}"] += 1

    def _stored(self) -> dict[str, str]:
        """Everything in the store but its lock files, with digests."""
        files = (path for path in self.lab.home.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def refusals(lab: Lab) -> Iterator[Refusals]:
    """The laboratory with its model in the store, so that whatever else appears there is a hostile input's."""
    from compress.pipeline.source import resolve_source
    from compress.recipe import load_recipe
    from compress.store import Store

    recipe = load_recipe(lab.recipe("warm", [{"export": {}}]), [], [f"MODEL={lab.model}"])
    resolve_source(recipe, Store(lab.home), lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MCOMPRESS_HOME": lab.home, "MODEL": lab.model, "DATA": lab.data, "COLUMNS": 80}.items():
            patch.setenv(name, str(value))
        patch.delenv("MCOMPRESS_DEBUG", raising=False)
        yield Refusals(lab)
