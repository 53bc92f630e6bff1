from __future__ import annotations

import pytest

from compress.errors import CompressError, MissingCapabilityError, RecipeError, UsageError, did_you_mean
from compress.registry import Registry


class Base:
    pass


class Good(Base):
    pass


class Bad:
    pass


def test_error_has_three_parts():
    error = RecipeError("Unknown key 'epoch'.", value="step 2", fix="Did you mean 'epochs'?")
    assert str(error) == "Unknown key 'epoch'.\n  value: step 2\n  fix:   Did you mean 'epochs'?"


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (RecipeError, 2), (MissingCapabilityError, 3)])
def test_exit_codes(kind, code):
    assert kind("x", fix="y").exit_code == code


def test_did_you_mean_names_the_closest():
    assert did_you_mean("epoch", ["epochs", "rate"]).startswith("Did you mean 'epochs'?")
    assert did_you_mean("zzz", ["a"]) == "Known: a."


def test_registry_loads_strings_lazily():
    registry = Registry("thing", Base)
    registry.register("lazy", f"{__name__}:Nothing")
    registry.register("good", Good)
    assert registry.names() == ["good", "lazy"]
    assert registry.get("good") is Good
    assert registry.origin("good").endswith(":Good")
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        registry.get("lazy")


def test_registry_refuses_two_of_a_name_and_suggests():
    registry = Registry("thing", Base)
    registry.register("prune", Good)
    registry.register("prune", Good)
    with pytest.raises(CompressError, match="registered as 'prune'"):
        registry.register("prune", Base)
    with pytest.raises(UsageError) as caught:
        registry.get("prun")
    assert "Did you mean 'prune'" in caught.value.fix


def test_registry_checks_the_base():
    registry = Registry("thing", Base)
    registry.register("ordered", "collections:OrderedDict")
    with pytest.raises(CompressError, match="is not a Base"):
        registry.get("ordered")
