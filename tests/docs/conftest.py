"""Pages and their fenced blocks, and a desk at which their commands are run.

A block says by its language how it is tested; a comment right above it, ``<!-- ... -->``, says what else is needed:

- ``not run: REASON``: it is not executed; options of commands are checked all the same
- ``exit code N``: what each command of the block ends with
- ``at the desk``: Python that runs behind the commands above it, in the same folder
- ``needs: artifact``, ``needs: torch artifact``: there is one in ``shipped`` (Python)
- ``target``, ``parsed only``: YAML that is a target, or something of another program
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMANDS = ("console", "sh")
DATA = ("json", "toml", "js")
TRANSLATION = "README.zh-CN.md"


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and the comment right above it."""

    page: Path
    line: int
    kind: str
    marker: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def not_run(self) -> bool:
        return self.marker.startswith("not run: ")

    def lines(self) -> list[str]:
        """Its commands: continued lines, and lines inside one pair of quotes, are one."""
        found, begun = [], ""
        for line in self.text.replace("\\\n", " ").splitlines():
            begun = f"{begun}\n{line}" if begun else line.strip()
            try:
                words = shlex.split(begun, comments=True)
            except ValueError:  # the quotes go on
                continue
            found += [begun] if words else []
            begun = ""
        return [*found, begun] if begun else found


@dataclass(frozen=True)
class Page:
    """A page with its blocks in order; ``links`` are those of its prose."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        return FENCE.sub("", self.text)

    @property
    def headings(self) -> list[tuple[int, str]]:
        found = re.findall(r"^(#+) (.+)$", self.prose, re.MULTILINE)
        return [(len(marks), title) for marks, title in found]

    @property
    def links(self) -> list[str]:
        """Targets of links and of images."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def blocks(self) -> list[Block]:
        text = self.text
        return [
            Block(
                self.path, text.count("\n", 0, found.start("text")), found["kind"], found["marker"] or "", found["text"]
            )
            for found in FENCE.finditer(text)
        ]


def listed_pages() -> list[Page]:
    listed = ("README.md", TRANSLATION, "CONTRIBUTING.md", "reports/README.md", "benchmarks/README.md")
    examples = sorted((ROOT / "examples").rglob("*.md"))
    return [Page(path) for path in (*(ROOT / it for it in listed), *sorted((ROOT / "docs").rglob("*.md")), *examples)]


def blocks() -> list[Block]:
    return [block for page in listed_pages() for block in page.blocks()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test every page, block or command, by the name of the argument that asks for it."""
    wanted: dict[str, Callable[[], list[tuple[str, Any]]]] = {
        "each_page": lambda: [(page.name, page) for page in listed_pages()],
        "python_block": lambda: [(it.name, it) for it in blocks() if it.kind == "python"],
        "yaml_block": lambda: [(it.name, it) for it in blocks() if it.kind == "yaml"],
        "data_block": lambda: [(it.name, it) for it in blocks() if it.kind in DATA],
        "command": lambda: [
            (f"{it.name}+{number}", line)
            for it in blocks()
            if it.kind in COMMANDS
            for number, line in enumerate(it.lines())
        ],
        "command_page": lambda: [
            (page.name, page)
            for page in listed_pages()
            if page.path.name != TRANSLATION
            and any(block.kind in COMMANDS and not block.not_run for block in page.blocks())
        ],
    }
    for argument in wanted.keys() & set(metafunc.fixturenames):
        found = wanted[argument]()
        metafunc.parametrize(argument, [pytest.param(value, id=name) for name, value in found])


@pytest.fixture
def pages() -> dict[str, Page]:
    return {page.name: page for page in listed_pages()}


@pytest.fixture
def every_block() -> list[Block]:
    return blocks()


QUICK = (
    "measure.inputs=4",
    "measure.launches=1",
    "measure.rounds=3",
    "measure.warmup_seconds=0.01",
    "measure.end_to_end=false",
    "measure.throughput_seconds=0.02",
    "measure.throughput_batches=[16]",
    "measure.targets=[ort-cpu-1t]",
    "measure.baselines=[onnx]",
    "gates.accuracy.max_drop_points=100",
    "distill.epochs=1",
)
"""What every run is told besides: the least that can be measured, and a gate that a random model passes."""
CHEAPER = {
    "prune: {speedup: 3}": "prune: {layers: 1, samples: 48}",
    "quantize: {target: ort-cpu-1t}": "quantize:",
    "prune.speedup=4": "prune.layers=1",
    "distill.epochs=10": "distill.epochs=1",
}
"""Searches by measured times and long training take minutes; in their place stands what does not."""
PROGRAMS = ("cat", "cd", "ls", "python", "python3", "sha256sum")
"""What else than mcompress a page may run here; nothing that installs, serves or leaves this machine."""
FRESH = ("export", "kit", "cp")
"""Verbs that refuse an existing destination: whatever lies there from another page is removed first."""


@dataclass
class Desk:
    """A folder with what the pages name: a model, data, a recipe, runs, artifacts. Each command runs once."""

    root: Path
    environment: pytest.MonkeyPatch
    ran: dict[str, int] = field(default_factory=dict)

    def run(self, line: str, code: int = 0) -> None:
        """Run one line of a page here, unless an earlier page had the same; demand an exit code."""
        if line.startswith("export "):
            for word in shlex.split(line, comments=True)[1:]:
                name, _, value = word.partition("=")
                self.environment.setenv(name, os.path.expandvars(value))
            return
        plain = " ".join(shlex.split(line, comments=True))
        if plain not in self.ran:
            self.ran[plain] = self._command(line) if line.startswith("mcompress ") else self._shell(line)
        assert self.ran[plain] == code, plain

    def _command(self, line: str) -> int:
        """Run mcompress in this process."""
        from typer.testing import CliRunner

        from compress.cli.app import app

        words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)[1:]]
        words, _, file = (words[: words.index(">")], ">", words[-1]) if ">" in words else (words, "", "")
        if words[0] in FRESH:
            _remove(self.root / _destination(words))
        quick = [word for setting in QUICK for word in ("--set", setting)] if words[0] == "run" else []
        begun = time.monotonic()
        result = CliRunner().invoke(app, [words[0], *quick, *(CHEAPER.get(word, word) for word in words[1:])])
        if file:
            (self.root / file).write_text(result.stdout, encoding="utf-8")
        print(f"$ {line}  # {time.monotonic() - begun:.1f} s\n{result.output}")
        return int(result.exit_code)

    def _shell(self, line: str) -> int:
        assert line.split()[0] in PROGRAMS, f"mark the block <!-- not run: REASON -->: {line}"
        assert "pip" not in line.split(), f"nothing is installed here: {line}"
        bin_ = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env={**os.environ, "PATH": bin_, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        print(f"$ {line}\n{process.stdout}{process.stderr}")
        return process.returncode


@pytest.fixture(scope="module")
def desk(tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    root = tmp_path_factory.mktemp("desk").resolve()
    with pytest.MonkeyPatch.context() as patch:
        made = Desk(root, patch)
        _furnish(made, tiny_classifier("bert"))
        yield made


def _destination(words: Sequence[str]) -> str:
    import typer

    from compress.cli.app import app

    verb = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    found = verb.make_context(words[0], list(words[1:])).params
    return str(found["sources"][-1] if "sources" in found else found.get("out") or found["to"])


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _furnish(desk: Desk, model: Path) -> None:
    """Put everything on the desk that pages take for granted."""
    import compress.recipe
    from compress.pipeline import predictions

    patch, root = desk.environment, desk.root
    patch.chdir(root)
    settings = {"MCOMPRESS_HOME": str(root / "store"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "80"}
    for name, value in {**settings, "MODEL": "path/to/model", "DATA": "path/to/data"}.items():
        patch.setenv(name, value)
    known = {name: _cheaper(text) for name, text in compress.recipe.builtin_recipes().items()}
    patch.setattr(compress.recipe, "builtin_recipes", lambda: known)
    patch.setattr(predictions, "predict", _answered)
    _times_by_size(patch)
    (root / "path" / "to" / "data").mkdir(parents=True)
    shutil.copytree(model, root / "path" / "to" / "model")
    _write_data(root / "path" / "to")
    shutil.copyfile(root / "path/to/data/test.csv", root / "test.csv")
    desk.run("mcompress cp classifier-cpu mine.yaml")
    desk.run("mcompress run path/to/model --data path/to/data --out runs/mine")
    for name in ("before", "main", "branch"):
        shutil.copytree(root / "runs" / "mine", root / "runs" / name)
    desk.run("mcompress export runs/mine shipped")
    desk.run("mcompress export runs/mine:dense-int8 other")
    desk.run("mcompress export runs/mine:onnx-fp32 plain")
    shutil.copyfile(root / "plain" / "model.onnx", root / "model.onnx")
    desk.run("mcompress kit runs/mine kit")
    desk.run("python3 kit/run.py --launches 1 --seconds 0.2 --out result.json")


def _cheaper(text: str) -> str:
    for dear, cheap in CHEAPER.items():
        text = text.replace(dear, cheap)
    return text


def _answered(artifact: Any, target: Any, encoded: Any, *, work: Path) -> np.ndarray:
    """Run every example through an artifact in this process: to start one for PyTorch takes seconds."""
    from compress.runtimes.base import runtimes

    with runtimes.get(target.runtime)().open(artifact, target) as session:
        return np.concatenate([session.run(encoded.batch([i]))["logits"] for i in range(len(encoded))])


def _times_by_size(patch: pytest.MonkeyPatch) -> None:
    """Let a smaller file be the faster one, so that no verdict depends on how busy this machine is."""
    from compress.bench.settings import MeasureSettings
    from compress.pipeline import benching, measuring

    measure = measuring.measure

    def measured(subjects: Sequence[Any], **options: Any) -> list[Any]:
        rows = measure(subjects, **options)
        return [row.model_copy(update={"samples_ms": _by_size(row.samples_ms, row.size_bytes)}) for row in rows]

    def settings(**options: Any) -> MeasureSettings:
        small: dict[str, Any] = {
            "launches": 1,
            "rounds": 3,
            "inputs": 4,
            "warmup_seconds": 0.01,
            "throughput_seconds": 0.02,
        }
        small |= {"throughput_batches": [16], "scenario_seconds": 0.1}
        return MeasureSettings(**options | small)

    patch.setattr(measuring, "measure", measured)
    patch.setattr(benching, "MeasureSettings", settings)


def _by_size(samples: list[list[list[float]]], size: int) -> list[list[list[float]]]:
    return [
        [
            [size / 1e6 * (1 + 0.001 * ((i + number) % 3)) for i in range(len(inputs))]
            for number, inputs in enumerate(it)
        ]
        for it in samples
    ]


def _write_data(folder: Path) -> None:
    """Name the labels, and label sentences by the model itself, so that it is right on all of them."""
    from compress.distillation.internals import predict
    from compress.models.loading import load_torch
    from compress.tasks.text_classification import TextClassification

    labels = ("bad", "fine", "good")
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    path.write_text(json.dumps(config), encoding="utf-8")
    words = (
        "the",
        "film",
        "was",
        "is",
        "not",
        "but",
        "never",
        "good",
        "bad",
        "dull",
        "fine",
        "slow",
        "order",
        "it",
        "works",
    )
    rng = np.random.default_rng(5)
    texts = sorted({" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(200)})[:96]
    task = TextClassification(labels, max_length=64)
    found = predict(
        load_torch(folder / "model", task), task.encode(folder / "model", [{"text": text} for text in texts])
    )
    rows = [(text, labels[best]) for text, best in zip(texts, found.argmax(axis=1), strict=True)]
    for number, split in enumerate(("train", "validation", "test")):
        with (folder / "data" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *(rows[0:48], rows[48:72], rows[72:96])[number]])
