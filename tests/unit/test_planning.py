from __future__ import annotations

import json

import pytest

from compress.errors import MissingCapabilityError, ModelError, RecipeError
from compress.passes.base import ModelInfo, Pass, PassConfig, Plan, passes
from compress.pipeline.planning import BASELINE_ONNX, make_plan, onnx_baseline
from compress.recipe import parse_recipe


class Fake(Pass):
    """A pass without work: what matters is what it declares."""

    version, libraries = 1, ()
    consumes, produces, preserves = frozenset({"torch"}), "torch", "task"

    class Config(PassConfig):
        teacher: str = "model"
        missing: str = ""
        init: dict | None = None

    def plan(self, inputs, config):
        before = inputs.get("model", ModelInfo("torch"))
        kind = self.produces
        traits = (before.traits | self.adds) - self.removes
        return Plan(self.name, ModelInfo(kind, traits), (config.missing,) if config.missing else ())

    def apply(self, inputs, config, context):
        raise NotImplementedError


class Tune(Fake):
    name, adds = "finetune", frozenset({"finetuned"})


class Thin(Fake):
    name, adds = "prune", frozenset({"pruned"})


class Teach(Fake):
    name, roles = "distill", ("model", "teacher")


class Export(Fake):
    name, produces = "export", "onnx"


class Quantize(Fake):
    name, consumes, produces = "quantize", frozenset({"onnx"}), "onnx"
    adds, forbids = frozenset({"int8"}), frozenset({"int8"})


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    known = {cls.name: cls for cls in (Tune, Thin, Teach, Export, Quantize)}
    monkeypatch.setattr(passes, "get", known.__getitem__)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "bert"}))

    def build(steps, model="m", **extra):
        raw = {"recipe": 1, "data": {"train": "a.csv"}, "steps": steps, **extra}
        if model is not None:
            raw["model"] = str(tmp_path / model)
        return make_plan(parse_recipe(json.dumps(raw)))

    return build


def test_steps_follow_one_another_unless_from_says_otherwise(plan):
    made = plan([{"prune": {}}, {"distill": {}}, {"export": {}}, {"quantize": {}, "from": "export"}])
    parents = {step.id: dict(step.parents) for step in made.steps}
    assert parents["distill"] == {"model": "prune", "teacher": "model"}
    assert parents["quantize"] == {"model": "export"}
    assert made.leaves == ["quantize"]
    assert made.by_id["quantize"].plan.result.traits == {"pruned", "int8"}


def test_baseline_export_is_added_once(plan):
    made = plan([{"prune": {}}, {"export": {}}])
    assert made.by_id[BASELINE_ONNX].parents == {"model": "model"}
    assert made.leaves == ["export"]
    own = plan([{"export": {}, "id": "dense"}, {"quantize": {}}])
    assert BASELINE_ONNX not in own.by_id
    assert onnx_baseline(own) == "dense"
    none = plan([{"export": {}, "id": "dense"}], measure={"baselines": ["torch"]})
    assert onnx_baseline(none) == "dense"


def test_reference_is_the_model_or_the_first_tuning(plan):
    assert plan([{"prune": {}}]).reference == "model"
    assert plan([{"finetune": {}}, {"prune": {}}]).reference == "finetune"
    fresh = plan([{"finetune": {"init": {"layers": 2}}, "id": "teacher"}, {"prune": {}}], model=None)
    assert fresh.reference == "teacher"


def test_impossible_order_names_both_steps_and_the_rule(plan):
    with pytest.raises(RecipeError, match="'quantize' needs a onnx model, but 'prune'") as caught:
        plan([{"prune": {}}, {"quantize": {}}])
    assert "`export` step" in caught.value.fix
    with pytest.raises(RecipeError, match="already int8"):
        plan([{"export": {}}, {"quantize": {}}, {"quantize": {}}])


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ([{"distill": {"teacher": "nobody"}}], "teacher from 'nobody'"),
        ([{"prune": {}, "from": "later"}, {"export": {}, "id": "later"}], "model from 'later'"),
        ([{"prune": {"macs": 0.5}}], "Unknown key 'macs'"),
    ],
)
def test_inputs_and_configs_are_checked(plan, steps, what):
    with pytest.raises(RecipeError, match=what):
        plan(steps)


def test_no_model_needs_a_fresh_start(plan):
    with pytest.raises(RecipeError, match="no model to work on"):
        plan([{"prune": {}}], model=None)


def test_missing_capability_stops_a_required_step_and_skips_an_optional_branch(plan):
    lost = {"prune": {"missing": "no wheel"}}
    with pytest.raises(MissingCapabilityError) as caught:
        plan([lost])
    assert (caught.value.value, caught.value.exit_code) == ("no wheel", 3)
    made = plan([{**lost, "optional": True}, {"export": {}, "optional": True}])
    assert made.by_id["prune"].reason == "no wheel"
    assert "'prune' is skipped" in made.by_id["export"].reason
    with pytest.raises(MissingCapabilityError, match="'export'"):
        plan([{**lost, "optional": True}, {"export": {}}])


@pytest.mark.parametrize(("model", "what"), [("none/x/y", "does not exist"), ("x.onnx", "file does not exist")])
def test_missing_model(plan, model, what):
    with pytest.raises(ModelError, match=what):
        plan([{"prune": {}}], model=model)
