"""finetune, prune and distill on tiny models: through the passes, as a recipe runs them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from compress.artifact import Artifact
from compress.data.splits import Split, TaskData
from compress.distillation.internals import predict
from compress.errors import RecipeError, RunError, UsageError
from compress.models.counting import count_macs, count_parameters, planned_counts
from compress.models.loading import load_torch
from compress.passes.base import Context, ModelInfo
from compress.passes.distill import Distill
from compress.passes.finetune import Finetune
from compress.passes.prune import Prune
from compress.store import Store
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

ANIMALS, VERBS = ("dog", "cat", "horse", "bird", "fish"), ("runs", "sleeps", "eats", "plays")
TASK = TextClassification(("no", "yes"), max_length=16)
INIT = {"vocab_size": 120, "layers": 2, "hidden": 32, "heads": 4, "intermediate": 64}
FRESH = {"init": INIT, "epochs": 4, "learning_rate": 3e-3, "batch_size": 8}


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Short sentences; the label says whether one is negated."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        negated = bool(rng.integers(2))
        words = ["the", *(["old"] * int(rng.integers(4))), str(rng.choice(ANIMALS)), *(["never"] if negated else [])]
        rows.append({"text": " ".join([*words, str(rng.choice(VERBS))]), "label": "no" if negated else "yes"})
    return rows


DATA = TaskData(
    {
        "train": Split("train", sentences(320, 1), "d1", "test"),
        "validation": Split("validation", sentences(40, 2), "d2", "test"),
        "transfer": Split("transfer", [{**row, "label": None} for row in sentences(40, 3)], "d3", "test"),
    },
    TASK.labels,
)


class Bench:
    """Runs passes in fresh folders with one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "store")
        self._numbers = itertools.count()

    def context(self, **fields: Any) -> Context:
        base = self.root / str(next(self._numbers))
        for name in ("out", "scratch", "checkpoint"):
            (base / name).mkdir(parents=True)
        given = {"checkpoint": base / "checkpoint", "task": TASK, "data": DATA, "store": self.store} | fields
        return Context(out=base / "out", scratch=base / "scratch", **given)

    def run(self, pass_: Any, inputs: dict[str, Artifact], config: dict[str, Any], **fields: Any) -> Artifact:
        return pass_.apply(inputs, pass_.Config.model_validate(config), self.context(**fields))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def teacher(bench: Bench) -> Artifact:
    return bench.run(Finetune(), {}, FRESH)


@pytest.fixture(scope="module")
def pruned(bench: Bench, teacher: Artifact) -> Artifact:
    return bench.run(Prune(), {"model": teacher}, {"macs": 0.5, "samples": 32, "round_to": 8, "min_neurons": 8})


def divergence(student: Artifact, teacher: Artifact) -> float:
    """Mean absolute difference of logits on the validation split."""
    first, second = (
        predict(load_torch(a.path, TASK), TASK.encode(a.path, DATA["validation"].rows)) for a in (student, teacher)
    )
    return float(np.abs(first - second).mean())


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_finetune_learns_from_nothing_and_is_deterministic(bench: Bench, teacher: Artifact) -> None:
    notes = teacher.manifest.notes
    assert notes["validation"] == max(notes["validation_by_epoch"]) > 0.9
    assert notes["validation_before"] < 0.75
    again = bench.run(Finetune(), {}, FRESH)
    assert again.digest == teacher.digest
    assert teacher.traits == {"finetuned"}
    assert {path.name for path in teacher.path.iterdir()} == {
        "artifact.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_finetuned_opens_with_stock_transformers(teacher: Artifact) -> None:
    code = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "folder = sys.argv[1]\n"
        "golden = json.load(open(folder + '/artifact.json'))['golden']\n"
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()\n"
        "with torch.no_grad():\n"
        "    seen = model(**{n: torch.tensor(v) for n, v in golden['inputs'].items()}).logits\n"
        "wanted = torch.tensor(golden['outputs']['logits'])\n"
        "assert torch.allclose(seen, wanted, atol=1e-5), (seen - wanted).abs().max()\n"
        "assert AutoTokenizer.from_pretrained(folder)('The dog runs.')['input_ids']\n"
        "assert 'compress' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(teacher.path)], check=True, timeout=120)


def test_a_killed_training_resumes_to_identical_weights(bench: Bench, teacher: Artifact) -> None:
    class Killed(BaseException):
        pass

    def kill_in_second_epoch(message: str, done: int | None = None, total: int | None = None) -> None:
        if message.startswith("training") and done is not None and total is not None and done > total / 3 + 1:
            raise Killed

    config = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 16}
    whole = bench.run(Finetune(), {"model": teacher}, config)
    place = bench.root / "killed"
    place.mkdir()
    with pytest.raises(Killed):
        bench.run(Finetune(), {"model": teacher}, config, checkpoint=place, emit=kill_in_second_epoch)
    saved = sorted(place.glob("checkpoint-*"))
    assert len(saved) == 1
    broken = place / "checkpoint-999"
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{")
    seen: list[int] = []

    def watch(message: str, done: int | None = None, total: int | None = None) -> None:
        if message == "training" and done is not None:
            seen.append(done)

    resumed = bench.run(Finetune(), {"model": teacher}, config, checkpoint=place, emit=watch)
    assert min(seen) > 20
    assert same(weights(resumed.path), weights(whole.path))
    assert resumed.digest == whole.digest
    assert resumed.manifest.notes == whole.manifest.notes


def test_finetune_gives_a_model_with_other_labels_a_new_head(bench: Bench, teacher: Artifact) -> None:
    task = TextClassification(("negated", "plain", "unsure"), max_length=16)
    names = {"no": "negated", "yes": "plain"}
    splits = {
        name: Split(name, [{**row, "label": names[row["label"]]} for row in DATA[name].rows], "x", "test")
        for name in ("train", "validation")
    }
    out = bench.run(Finetune(), {"model": teacher}, {"epochs": 1}, task=task, data=TaskData(splits, task.labels))
    config = json.loads((out.path / "config.json").read_text())
    assert config["id2label"] == {"0": "negated", "1": "plain", "2": "unsure"}
    assert weights(out.path)["classifier.weight"].shape == (3, 32)


def test_finetune_with_patience_stops_and_keeps_the_best(bench: Bench, teacher: Artifact) -> None:
    config = {"epochs": 6, "learning_rate": 1e-6, "patience": 1}
    out = bench.run(Finetune(), {"model": teacher}, config)
    assert len(out.manifest.notes["validation_by_epoch"]) == 2
    assert len(out.manifest.notes["loss_by_epoch"]) == 2


def test_finetune_reports_divergence(bench: Bench, teacher: Artifact) -> None:
    with pytest.raises(RunError, match="not finite"):
        bench.run(Finetune(), {"model": teacher}, {"epochs": 2, "learning_rate": 1e30, "warmup": 0})


def test_prune_removes_weights_and_reloads_in_a_new_process(bench: Bench, teacher: Artifact, pruned: Artifact) -> None:
    notes = pruned.manifest.notes
    assert 0.4 < notes["search"]["kept"] <= 0.5
    assert pruned.manifest.parameters < teacher.manifest.parameters
    assert pruned.size_bytes < teacher.size_bytes
    model = load_torch(pruned.path, TASK)
    assert count_parameters(model) == pruned.manifest.parameters
    assert count_macs(model) == pruned.manifest.macs == notes["macs_after"]
    assert [layer["neurons"] for layer in json.loads((pruned.path / "structure.json").read_text())["layers"]] == notes[
        "neurons"
    ]
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from compress.artifact import open_artifact\n"
        "from compress.models.loading import load_torch\n"
        "from compress.tasks.base import task_from\n"
        "artifact = open_artifact(Path(sys.argv[1]))\n"
        "golden = artifact.manifest.golden\n"
        "model = load_torch(artifact.path, task_from(artifact.manifest.task))\n"
        "with torch.inference_mode():\n"
        "    seen = model(**{n: torch.tensor(v) for n, v in golden.inputs.items()}).logits\n"
        "assert torch.allclose(seen, torch.tensor(golden.outputs['logits']), atol=1e-5)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(pruned.path)], check=True, timeout=120)
    again = bench.run(Prune(), {"model": teacher}, {"macs": 0.5, "samples": 32, "round_to": 8, "min_neurons": 8})
    assert again.digest == pruned.digest


def test_prune_layers_opens_plainly_and_composes_with_widths(bench: Bench, teacher: Artifact) -> None:
    shallow = bench.run(Prune(), {"model": teacher}, {"layers": [1], "samples": 16})
    assert not (shallow.path / "structure.json").exists()
    assert json.loads((shallow.path / "config.json").read_text())["num_hidden_layers"] == 1
    plain = TASK.load_model(shallow.path).eval()
    golden = shallow.manifest.golden
    with torch.inference_mode():
        seen = plain(**{name: torch.tensor(ids) for name, ids in golden.inputs.items()}).logits.numpy()
    np.testing.assert_allclose(seen, golden.outputs["logits"], atol=1e-5)
    config = {"layers": 1, "layers_by": "importance", "macs": 0.3, "samples": 16, "round_to": 8, "min_neurons": 8}
    both = bench.run(Prune(), {"model": teacher}, config)
    assert 0.2 < both.manifest.notes["search"]["kept"] <= 0.3


def test_prune_twice_remembers_the_heads_of_the_dense_model(bench: Bench, pruned: Artifact) -> None:
    config = {"macs": 0.6, "samples": 16, "round_to": 4, "min_neurons": 4, "importance": "magnitude"}
    twice = bench.run(Prune(), {"model": pruned}, config)
    before, after = pruned.manifest.notes["kept_heads"], twice.manifest.notes["kept_heads"]
    assert all(set(later) <= set(earlier) for earlier, later in zip(before, after, strict=True))
    assert twice.manifest.macs < pruned.manifest.macs


def test_prune_plan_predicts_what_apply_makes(teacher: Artifact, pruned: Artifact) -> None:
    info = ModelInfo("torch", config=json.loads((teacher.path / "config.json").read_text()))
    plan = Prune().plan({"model": info}, Prune.Config(macs=0.5))
    assert plan.result.traits == {"pruned"}
    shallow = Prune().plan({"model": info}, Prune.Config(layers=1)).result
    assert (shallow.parameters, shallow.macs) == planned_counts({**info.config, "num_hidden_layers": 1})
    assert plan.result.macs == pytest.approx(pruned.manifest.macs, rel=0.05)
    assert plan.result.parameters == pytest.approx(pruned.manifest.parameters, rel=0.1)


def test_prune_takes_all_rows_where_there_are_fewer_than_samples(bench: Bench, teacher: Artifact) -> None:
    made = bench.run(Prune(), {"model": teacher}, {"macs": 0.5, "samples": 10_000})
    assert made.manifest.notes["samples"] == len(DATA["train"].rows)


DISTIL = {"teacher": "model", "epochs": 2, "learning_rate": 2e-3, "batch_size": 16}


def test_distillation_recovers_a_pruned_model(bench: Bench, teacher: Artifact, pruned: Artifact) -> None:
    inputs = {"model": pruned, "teacher": teacher}
    out = bench.run(Distill(), inputs, DISTIL | {"weights": {"relations": 1.0}})
    notes = out.manifest.notes
    assert out.traits == {"finetuned", "pruned", "distilled"}
    assert notes["layer_pairs"] == [[0, 0], [1, 1]]
    assert notes["teacher_outputs"] == "stored"
    assert notes["validation"] >= notes["teacher_validation"]
    assert divergence(out, teacher) < 0.1
    assert json.loads((out.path / "structure.json").read_text()) == json.loads(
        (pruned.path / "structure.json").read_text()
    )
    assert out.manifest.parents == {"model": pruned.digest, "teacher": teacher.digest}


def test_stored_and_live_teacher_outputs_train_alike(
    bench: Bench, teacher: Artifact, pruned: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": pruned, "teacher": teacher}
    config = DISTIL | {"epochs": 1, "weights": {"relations": 1.0}}
    stored = bench.run(Distill(), inputs, config)
    monkeypatch.setattr("compress.distillation.distilling.CACHE_BYTES", 0)
    live = bench.run(Distill(), inputs, config)
    assert live.manifest.notes["teacher_outputs"] == "computed in every step"
    for name, weight in weights(stored.path).items():
        if not name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding, which Adam scales up
            np.testing.assert_allclose(weight, weights(live.path)[name], atol=2e-3, err_msg=name)
    assert divergence(stored, live) < 5e-3


def test_the_teacher_runs_once_for_many_distillations(bench: Bench, teacher: Artifact, pruned: Artifact) -> None:
    inputs, config = {"model": pruned, "teacher": teacher}, DISTIL | {"epochs": 1, "weights": {"hidden": 0}}
    bench.run(Distill(), inputs, config)
    messages: list[str] = []
    bench.run(
        Distill(),
        inputs,
        config | {"temperature": 4.0},
        emit=lambda message, done=None, total=None: messages.append(message),
    )
    assert messages
    assert "teacher outputs" not in messages


def test_student_from_layers_of_the_teacher(bench: Bench, teacher: Artifact, pruned: Artifact) -> None:
    config = DISTIL | {"student": {"layers": 1}}
    out = bench.run(Distill(), {"model": pruned, "teacher": teacher}, config)
    assert out.traits == {"finetuned", "distilled"}
    assert out.manifest.notes["layer_pairs"] == [[0, 1]]
    assert TASK.load_model(out.path).config.num_hidden_layers == 1
    infos = {
        role: ModelInfo(
            "torch", a.traits, json.loads((a.path / "config.json").read_text()), a.manifest.parameters, a.manifest.macs
        )
        for role, a in (("model", pruned), ("teacher", teacher))
    }
    plan = Distill().plan(infos, Distill.Config.model_validate(config))
    assert (plan.result.parameters, plan.result.macs) == (out.manifest.parameters, out.manifest.macs)
    assert plan.result.traits == out.traits


def test_narrow_student_with_another_tokenizer_learns_from_logits_alone(bench: Bench, teacher: Artifact) -> None:
    small = INIT | {"vocab_size": 40, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}
    student = bench.run(Finetune(), {}, {"init": small, "epochs": 1})
    inputs = {"model": student, "teacher": teacher}
    with pytest.raises(UsageError, match="different tokens"):
        bench.run(Distill(), inputs, DISTIL | {"weights": {"hidden": 10}})
    out = bench.run(Distill(), inputs, DISTIL | {"transfer": True})
    assert out.manifest.notes["unlabelled"] == 40
    assert out.manifest.notes["hidden_weight"] == 0
    assert out.manifest.notes["layer_pairs"] == []
    assert out.manifest.parameters == student.manifest.parameters


def test_width_maps_are_not_saved(bench: Bench, teacher: Artifact) -> None:
    narrow = INIT | {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}
    student = bench.run(Finetune(), {}, {"init": narrow, "epochs": 1})
    config = DISTIL | {"epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "weights": {"hidden": 1.0}}
    out = bench.run(Distill(), {"model": student, "teacher": teacher}, config)
    assert weights(out.path).keys() == weights(student.path).keys()
    assert divergence(out, teacher) < 0.5 * divergence(student, teacher)
    assert out.manifest.notes["layer_pairs"] == [[0, 1]]


def test_distill_refuses(bench: Bench, teacher: Artifact, pruned: Artifact) -> None:
    inputs = {"model": pruned, "teacher": teacher}
    with pytest.raises(RunError, match="too weak"):
        bench.run(Distill(), inputs, DISTIL | {"min_teacher": 1.01})
    with pytest.raises(UsageError, match="same order"):
        bench.run(Distill(), inputs, DISTIL, task=TextClassification(("yes", "no"), max_length=16))
    without = TaskData({name: DATA[name] for name in ("train", "validation")}, TASK.labels)
    with pytest.raises(RecipeError, match="no transfer data"):
        bench.run(Distill(), inputs, DISTIL | {"transfer": True}, data=without)
    with pytest.raises(RecipeError, match="must be a torch model"):
        Distill().plan({"model": ModelInfo("torch"), "teacher": ModelInfo("onnx")}, Distill.Config(teacher="export"))


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_other_problems_run_the_whole_chain(bench: Bench, problem: str) -> None:
    labels: tuple[str, ...] = ("no", "yes") if problem == "multi_label" else ()
    convert: Callable[[str], Any] = (lambda x: [x]) if labels else (lambda x: float(x == "yes"))
    task = TextClassification(labels, problem, 16)  # type: ignore[arg-type]
    splits = {
        name: Split(name, [{**row, "label": convert(row["label"])} for row in DATA[name].rows], "x", "test")
        for name in ("train", "validation")
    }
    fields = {"task": task, "data": TaskData(splits, labels)}
    start = {"init": INIT, "epochs": 1, "learning_rate": 5e-3}
    with pytest.raises(UsageError, match="exactly one label"):
        bench.run(Finetune(), {}, start | {"label_smoothing": 0.1}, **fields)
    dense = bench.run(Finetune(), {}, start, **fields)
    config = {"macs": 0.5, "samples": 16, "round_to": 8, "min_neurons": 8}
    small = bench.run(Prune(), {"model": dense}, config, **fields)
    out = bench.run(Distill(), {"model": small, "teacher": dense}, DISTIL, **fields)
    assert out.manifest.notes["metric"] == ("exact_match" if labels else "mae")
    scores = out.manifest.notes["validation_by_epoch"]
    assert out.manifest.notes["validation"] == (max(scores) if labels else min(scores))


def test_inputs_stay_untouched(teacher: Artifact, pruned: Artifact) -> None:
    teacher.verify()
    pruned.verify()
