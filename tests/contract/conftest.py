"""What the contract suites share: one tiny task, its data, and one artifact of each kind, made once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.data.splits import Split, TaskData
from compress.passes.base import Context, ModelInfo, passes
from compress.store import Store
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
PATTERNS = ("the film was {} and i was fine", "a {} train , not slow", "she was {} but my card works .")
WORDS = {"bad": ("bad", "dull"), "fine": ("fine", "slow"), "good": ("good", "great")}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentences() -> list[dict[str, Any]]:
    """18 sentences of the tiny vocabulary, 5 to 10 tokens long, six of each label."""
    return [
        {"text": pattern.format(word), "text_pair": None, "label": label}
        for pattern, (label, words) in itertools.product(PATTERNS, WORDS.items())
        for word in words
    ]


@pytest.fixture(scope="session")
def data() -> TaskData:
    """Four splits; each digest is its own, so that a manifest shows which ones were read."""
    rows = sentences()
    parts = {"train": rows, "validation": rows[::2], "calibration": rows[:6], "test": rows[1::3]}
    splits = {name: Split(name, part, f"{name:0<64}", "built in") for name, part in parts.items()}
    return TaskData(splits, TASK.labels)


@dataclass
class Bench:
    """Applies passes, each time in fresh folders and with a store of its own."""

    root: Path
    data: TaskData
    kinds: dict[str, Artifact] = field(default_factory=dict)

    def apply(self, name: str, inputs: Mapping[str, Artifact], config: Mapping[str, Any], seed: int = 3) -> Artifact:
        base = self.root / str(len(list(self.root.iterdir())))
        folders = {part: base / part for part in ("out", "scratch", "checkpoint")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        context = Context(**folders, task=TASK, data=self.data, store=Store(base / "store"), seed=seed)
        pass_ = passes.get(name)()
        return pass_.apply(inputs, pass_.Config.model_validate(config), context)


def info(artifact: Artifact) -> ModelInfo:
    """Return what a plan would know of an artifact."""
    return ModelInfo(artifact.kind, artifact.traits)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, data: TaskData) -> Bench:
    return Bench(tmp_path_factory.mktemp("contract"), data)


@pytest.fixture(scope="session")
def artifact_of(
    bench: Bench, tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact | None]:
    """Return ``make(kind)``: the tiny classifier as an artifact of that kind; None where it cannot be made here."""

    def make(kind: str) -> Artifact | None:
        if kind not in bench.kinds:
            made = _make(kind, make, bench, tiny_classifier, tmp_path_factory)
            if made is None:
                return None
            bench.kinds[kind] = made
        return bench.kinds[kind]

    return make


def _make(
    kind: str,
    make: Callable[[str], Artifact | None],
    bench: Bench,
    tiny_classifier: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact | None:
    if kind == "torch":
        return _torch_artifact(tiny_classifier("bert"), tmp_path_factory.mktemp("torch") / "model")
    maker = {"onnx": ("export", "torch"), "tensorrt": ("build", "onnx")}.get(kind)
    if maker is None:
        return None
    name, before = maker
    source = make(before)
    if source is None:
        return None
    pass_ = passes.get(name)()
    return (
        None
        if pass_.plan({"model": info(source)}, pass_.Config()).missing
        else bench.apply(name, {"model": source}, {})
    )


def _torch_artifact(source: Path, folder: Path) -> Artifact:
    from compress.models.golden import golden_torch
    from compress.models.signature import torch_graph

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("artifact.json"))
    return create_artifact(
        folder,
        kind="torch",
        task=TASK.dump(),
        graphs={"model": torch_graph(folder, TASK)},
        golden=golden_torch(folder, TASK),
        made_by=PassRecord(name="test", version=1, config={}),
    )
