"""Students: a cut that keeps everything is the teacher, a narrower one computes the cut by hand, a foreign one fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.artifact import Artifact, PassRecord, create_artifact
from compress.distillation.internals import predict
from compress.distillation.material import Material
from compress.distillation.narrowing import measure_usage, narrow
from compress.distillation.students import Form, make_student
from compress.distillation.trainer import Learner
from compress.errors import ModelError, UsageError
from compress.models.families import encoder_layers
from compress.models.loading import load_torch
from compress.models.narrow import narrow_sizes
from compress.models.signature import torch_graph
from compress.passes.base import ModelInfo
from compress.passes.distill import Distill, DistillConfig
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("the film was great .", "good"),
        ("she works it ; a bad order", "bad"),
        ("not good but fine", "fine"),
        ("never the same", "bad"),
    )
]
MATERIAL = Material(ROWS, (), TASK)


@pytest.fixture
def artifact(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``build(family)``: the tiny classifier as an artifact with the names of its labels."""

    def build(family: str = "bert", pruned: bool = False) -> Artifact:
        folder = tmp_path / f"{family}-{pruned}"
        shutil.copytree(tiny_classifier(family, pruned), folder)
        record = PassRecord(name="test", version=1, config={})
        graphs = {"model": torch_graph(folder, TASK)}
        return create_artifact(folder, kind="torch", task=TASK.dump(), graphs=graphs, made_by=record)

    return build


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_student_that_keeps_every_feature_is_the_teacher(family: str, artifact: Callable[..., Artifact]) -> None:
    source = artifact(family)
    teacher, encoded = load_torch(source.path, TASK), TASK.encode(source.path, ROWS)
    student, features = narrow(teacher, (0, 1), 32, measure_usage(teacher, encoded))
    assert features == tuple(range(32))
    assert student.config.to_dict() == teacher.config.to_dict()
    np.testing.assert_allclose(predict(student, encoded), predict(teacher, encoded), atol=1e-6)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_features_that_nobody_uses_are_cut_without_a_trace(family: str, artifact: Callable[..., Artifact]) -> None:
    """Where the same features are zero in every module, the student that leaves them out equals the teacher."""
    source = artifact(family)
    teacher, encoded = load_torch(source.path, TASK), TASK.encode(source.path, ROWS)
    dead = torch.tensor([0, 3, 5, 8, 13, 21, 30, 31])
    _silence(teacher, dead)
    usage = measure_usage(teacher, encoded)
    assert np.flatnonzero(usage.features == 0).tolist() == dead.tolist()
    student, features = narrow(teacher, (0, 1), 24, usage)
    assert set(features).isdisjoint(dead.tolist())
    sizes = narrow_sizes(teacher.config.to_dict(), 24)
    assert [(layer.heads, layer.neurons) for layer in encoder_layers(student)] == [(3, 48)] * 2
    assert set(sizes.values()) >= {24, 3, 48}
    state = student.state_dict()
    for name, weight in teacher.state_dict().items():
        if name.endswith(("LayerNorm.weight", "LayerNorm.bias", "layer_norm.weight")):
            assert torch.equal(state[name], weight[list(features)])
        if name.endswith("word_embeddings.weight"):
            assert torch.equal(state[name], weight[:, list(features)])


def _silence(model: torch.nn.Module, dead: torch.Tensor) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight[dead] = 0
                module.bias[dead] = 0


def test_usage_is_measured_on_real_tokens_only(artifact: Callable[..., Artifact]) -> None:
    source = artifact()
    teacher, encoded = load_torch(source.path, TASK), TASK.encode(source.path, ROWS)
    together, alone = measure_usage(teacher, encoded, 4), measure_usage(teacher, encoded, 1)
    for first, second in zip(vars(together).values(), vars(alone).values(), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)
    assert together.heads.shape == (2, 4)
    assert together.neurons.shape == (2, 64)


def test_a_map_begins_by_handing_kept_features_through() -> None:
    learner = Learner(torch.nn.Identity(), ((2, 4), (4, 4)), seed=0, features=(1, 3))
    states = torch.tensor([[5.0, 7.0]])
    assert learner.maps[0](states)[0, [1, 3]].tolist() == [5.0, 7.0]
    assert isinstance(learner.maps[1], torch.nn.Identity)


@pytest.mark.parametrize("hidden", [12, 40, 0])
def test_a_width_that_does_not_fit_is_refused(hidden: int, artifact: Callable[..., Artifact]) -> None:
    teacher = load_torch(artifact().path, TASK)
    with pytest.raises(UsageError, match="cannot be this wide"):
        narrow_sizes(teacher.config.to_dict(), hidden)


def test_a_pruned_teacher_is_not_cut_narrower(artifact: Callable[..., Artifact]) -> None:
    source = artifact(pruned=True)
    teacher = load_torch(source.path, TASK)
    usage = measure_usage(load_torch(artifact().path, TASK), TASK.encode(source.path, ROWS))
    with pytest.raises(UsageError, match="this one is pruned"):
        narrow(teacher, (0, 1), 16, usage)


def test_a_narrow_plan_predicts_what_is_made(artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    from compress.models.counting import count_macs, count_parameters

    source = artifact()
    info = ModelInfo("torch", config=json.loads((source.path / "config.json").read_text()))
    config = DistillConfig.model_validate({"teacher": "model", "student": {"layers": 1, "hidden": 16}})
    planned = Distill().plan({"model": info, "teacher": info}, config).result
    teacher = load_torch(source.path, TASK)
    student = make_student(Form(1, 16), source, source, teacher, MATERIAL, TASK, tmp_path, seed=0)
    assert (planned.parameters, planned.macs) == (count_parameters(student.model), count_macs(student.model))
    assert len(student.features) == 16
    assert student.new


@pytest.fixture
def foreign(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return ``build(labels)``: a DistilBERT folder with these label names."""

    def build(labels: tuple[str, ...] = ("good", "bad", "fine")) -> Path:
        folder = tmp_path / "small"
        shutil.copytree(tiny_classifier("distilbert"), folder)
        config = json.loads((folder / "config.json").read_text())
        names = {str(i): label for i, label in enumerate(labels)}
        config |= {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return build


def test_labels_of_a_foreign_student_are_matched_by_name(
    foreign: Callable[..., Path], artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    source, folder = artifact(), foreign(("good", "bad", "fine"))
    own = TextClassification(("good", "bad", "fine"), max_length=32)
    before = predict(load_torch(folder, own), TASK.encode(folder, ROWS))
    teacher = load_torch(source.path, TASK)
    (tmp_path / "scratch").mkdir()
    student = make_student(Form(folder=folder), source, source, teacher, MATERIAL, TASK, tmp_path / "scratch", seed=0)
    after = predict(student.model, TASK.encode(student.home, ROWS))
    np.testing.assert_allclose(after, before[:, [1, 2, 0]], atol=1e-6)
    assert student.model.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert student.notes == {"student": "small", "student_head": "its own"}


def test_a_foreign_student_with_other_labels_gets_a_fresh_head(
    foreign: Callable[..., Path], artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = artifact()
    teacher = load_torch(source.path, TASK)
    (tmp_path / "scratch").mkdir()
    folder = foreign(("up", "down", "level"))
    student = make_student(Form(folder=folder), source, source, teacher, MATERIAL, TASK, tmp_path / "scratch", seed=0)
    assert student.notes["student_head"] == "fresh"
    assert student.model.config.id2label == {0: "bad", 1: "fine", 2: "good"}


def test_paths_are_expanded_once_and_never_recorded(foreign: Callable[..., Path]) -> None:
    folder = foreign()
    written = DistillConfig.model_validate({"teacher": "model", "student": {"model": "${MODELS}/small"}})
    config = Distill().expand(written, lambda text: text.replace("${MODELS}", str(folder.parent)))
    assert config.student is not None
    assert config.student.folder == folder
    assert config.model_dump(mode="json")["student"]["model"] == "small"
    assert str(folder.parent) not in config.model_dump_json()
    before = Distill().settle(config)
    assert before == Distill().settle(config)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Distill().settle(config) != before
    assert Distill().settle(DistillConfig(teacher="model")) == {}


def test_a_student_that_is_not_there_is_refused_at_plan_time() -> None:
    info = ModelInfo("torch")
    config = DistillConfig.model_validate({"teacher": "model", "student": {"model": "/nowhere/small"}})
    with pytest.raises(ModelError, match="not there"):
        Distill().plan({"model": info, "teacher": info}, config)


@pytest.mark.parametrize("student", [{}, {"layers": 1, "model": "x"}, {"hidden": 16, "model": "x"}])
def test_a_student_has_one_form(student: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="or else `model`"):
        DistillConfig.model_validate({"teacher": "model", "student": student})
