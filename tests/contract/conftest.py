"""What the contract suites share: one tiny task, its data, and one artifact of each kind, made once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import Artifact, PassRecord, create_artifact, hash_json
from compress.data.splits import Split, TaskData
from compress.passes.base import Context, ModelInfo, passes
from compress.store import Store
from compress.tasks.text_classification import TextClassification

SEED = 3
MAKERS = {"onnx": ("export", "torch"), "tensorrt": ("build", "onnx")}
"""Kind -> the pass that makes it with its defaults, and the kind that the pass starts from."""
TASK = TextClassification(("bad", "fine", "good"), max_length=32)
PATTERNS = ("the film was {} and i was fine", "a {} train , not slow", "she was {} but my card works .")
WORDS = {"bad": ("bad", "dull"), "fine": ("fine", "slow"), "good": ("good", "great")}


@pytest.fixture(autouse=True, scope="module")
def calm(one_thread: None) -> None:
    """Every contract runs on one thread."""


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
    """Applies passes, each time in fresh folders and with a store of its own; equal requests share one result."""

    root: Path
    data: TaskData
    made: dict[str, Artifact] = field(default_factory=dict)

    def apply(
        self, name: str, inputs: Mapping[str, Artifact], config: Mapping[str, Any], *, attempt: int = 1
    ) -> Artifact:
        """Apply a pass; another ``attempt`` does the same work again."""
        digests = {role: artifact.digest for role, artifact in inputs.items()}
        key = hash_json([name, digests, config, attempt])
        if key not in self.made:
            folders = {part: self.root / key / part for part in ("out", "scratch", "checkpoint")}
            for folder in folders.values():
                folder.mkdir(parents=True)
            store = Store(self.root / key / "store")
            context = Context(**folders, task=TASK, data=self.data, store=store, seed=SEED)
            pass_ = passes.get(name)()
            self.made[key] = pass_.apply(inputs, pass_.Config.model_validate(config), context)
        return self.made[key]


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
    torch_artifact = _torch_artifact(tiny_classifier("bert"), tmp_path_factory.mktemp("torch") / "model")

    def make(kind: str) -> Artifact | None:
        if kind == "torch":
            return torch_artifact
        if kind not in MAKERS:
            return None
        name, before = MAKERS[kind]
        source = make(before)
        pass_ = passes.get(name)()
        if source is None or pass_.plan({"model": info(source)}, pass_.Config()).missing:
            return None
        return bench.apply(name, {"model": source}, {})

    return make


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
