from __future__ import annotations

import pytest
import yaml

from compress.errors import RecipeError
from compress.recipe import builtin_recipes, load_recipe, parse_recipe

TEXT = """
recipe: 1
name: test
model: ${MODELS}/m
data: {train: a.csv, validation: b.csv}
steps:
  - prune: {macs: 0.5}
  - distill: {teacher: model, epochs: 2}
  - export:
  - quantize: {scheme: int8}
    gates: {accuracy: {max_drop_points: 0.5}}
  - quantize: {method: static}
    from: export
    optional: true
"""


def test_steps_get_ids_and_siblings():
    recipe = parse_recipe(TEXT)
    assert [step.id for step in recipe.steps] == ["prune", "distill", "export", "quantize", "quantize-2"]
    assert recipe.steps[3].gates["accuracy"].max_drop_points == 0.5
    assert (recipe.steps[4].from_, recipe.steps[4].optional) == ("export", True)
    assert recipe.steps[2].config == {}


def test_resolved_recipe_parses_to_itself():
    recipe = parse_recipe(TEXT)
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert "${MODELS}/m" in recipe.to_yaml()


def test_overrides_reach_recipe_keys_steps_and_siblings():
    sets = ["run.seed=3", "distill.epochs=1", "distill.weights.hidden=2.5", "quantize-2.optional=false", "name=other"]
    recipe = parse_recipe(TEXT, sets)
    assert (recipe.run.seed, recipe.name) == (3, "other")
    assert recipe.steps[1].config == {"teacher": "model", "epochs": 1, "weights": {"hidden": 2.5}}
    assert recipe.steps[4].optional is False


def test_variables_come_from_var_then_environment(monkeypatch):
    recipe = parse_recipe(TEXT, (), ["MODELS=/somewhere"])
    assert recipe.expand(recipe.model) == "/somewhere/m"
    monkeypatch.setenv("MODELS", "/elsewhere")
    assert parse_recipe(TEXT).expand("${MODELS}") == "/elsewhere"
    monkeypatch.delenv("MODELS")
    with pytest.raises(RecipeError, match="MODELS of the recipe is not set") as caught:
        parse_recipe(TEXT).expand("${MODELS}")
    assert "--var MODELS" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"modle": "x"}, "Unknown key 'modle'", "Did you mean 'model'"),
        ({"run": {"thread": 1}}, "Unknown key 'thread'", "Did you mean 'threads'"),
        ({"steps": [{"prun": {}}]}, "unknown pass 'prun'", "Did you mean 'prune'"),
        ({"steps": [{"prune": {}, "gate": {}}]}, "unknown key 'gate'", "Did you mean 'gates'"),
        ({"steps": [{"prune": {}, "export": {}}]}, "two passes", "a step of its own"),
        ({"steps": [{"id": "x"}]}, "Step 1 has an unknown key", "Known"),
        ({"steps": [{"prune": 3}]}, "is not a mapping", "key: value"),
        ({"steps": [{"export": {}, "id": "a"}, {"export": {}, "id": "a"}]}, "same id", "Rename"),
        ({"steps": [{"export": {}, "id": "model"}]}, "called 'model'", "Rename"),
        ({"steps": [{"export": {}, "id": "../../x"}]}, r"steps\.0\.id: .*pattern", "docs/recipes.md"),
        ({"steps": [{"export": {}, "id": ".."}]}, r"steps\.0\.id: .*pattern", "docs/recipes.md"),
        ({"gates": {"accuracy": {}}}, r"gates\.accuracy: give `max_drop_points`", "docs/recipes.md"),
        ({"gates": {"accuracy": {"strict": True}}}, r"gates\.accuracy: give", "docs/recipes.md"),
        ({"steps": [{"export": {}, "gates": {"mae": {}}}]}, r"steps\.0\.gates\.mae: give", "docs/recipes.md"),
        ({"steps": []}, "steps", "docs/recipes.md"),
        ({"recipe": 2}, "recipe", "docs/recipes.md"),
        ({"data": {"train": "a.csv", "on_overlap": "ignore"}}, "data.on_overlap", "docs/recipes.md"),
    ],
)
def test_mistakes_are_named_with_a_fix(change, what, fix):
    raw = yaml.safe_load(TEXT) | change
    with pytest.raises(RecipeError, match=what) as caught:
        parse_recipe(yaml.safe_dump(raw))
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object:os.system {}", "", "just text"])
def test_text_that_is_no_recipe(text):
    with pytest.raises(RecipeError):
        parse_recipe(text)


@pytest.mark.parametrize(
    "override", ["nothing", "=1", "prun.macs=1", "prune=1", "run.seed.x=1", "prune.macs=[", "x.y=1"]
)
def test_bad_overrides(override):
    with pytest.raises(RecipeError):
        parse_recipe(TEXT, [override])


def test_missing_and_unknown_recipes(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Unknown recipe 'dem'") as caught:
        load_recipe("dem")
    assert "Did you mean 'demo'" in caught.value.fix
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_builtin_recipes_parse_and_say_what_they_are(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert builtin_recipes()[name].startswith("# ")
