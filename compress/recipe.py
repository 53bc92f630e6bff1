"""The recipe: one YAML file, readable top to bottom, in which an unknown key is an error."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from compress.bench.settings import MeasureSettings
from compress.data.config import DataConfig
from compress.errors import RecipeError, did_you_mean
from compress.reading import LARGEST_YAML, Unreadable, local_path, parse_yaml, read_text

_STEP_KEYS = {"id", "from", "gates", "optional"}
MOST_THREADS = 4096
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""
LONGEST_INPUT = 2**20
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A name that can be a folder's, and never leads out of the one it stands in."""
_NO_NAMES = {"true", "yes", "on", "1", "false", "no", "off", "0"}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class RunConfig(_Strict):
    """How steps are computed (not how results are measured)."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="where training and importance run")
    threads: int | None = Field(None, ge=1, le=MOST_THREADS, description="CPU threads; null = every core")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of every random choice")
    track: tuple[str, ...] = Field(
        (), description="experiment trackers: tensorboard[:DIR], mlflow[:URI], wandb[:PROJECT]; none unless named"
    )


class GateRule(_Strict):
    """A bound on one metric of a deliverable, read on validation."""

    max_drop_points: float | None = Field(None, ge=0, description="absolute loss allowed, in points of a 0-100 scale")
    max_increase: float | None = Field(None, ge=0, description="for an error metric: increase allowed, in its unit")
    min: float | None = Field(None, description="lowest value allowed (accuracy as a fraction)")
    max: float | None = Field(None, description="highest value allowed, for an error metric")
    strict: bool = Field(False, description="demand it of the interval's bound, not of the estimate")

    @model_validator(mode="after")
    def _bounds_something(self) -> GateRule:
        if self.max_drop_points is self.max_increase is self.min is self.max is None:
            raise ValueError("give `max_drop_points`, `max_increase`, `min` or `max`")
        return self


class Step(_Strict):
    """One step: a pass with its config, and where it continues from."""

    id: str = Field(pattern=_NAME, description="names the step, and the folder of its deliverable")
    uses: str = Field(description="name of the pass")
    config: dict[str, Any] = Field(default_factory=dict)
    from_: str | None = Field(None, alias="from", description="step to continue from; null = the one above")
    gates: dict[str, GateRule] | None = Field(None, description="bounds by metric; null = the recipe's")
    optional: bool = Field(False, description="a missing capability or a failed gate does not fail the run")


class Recipe(_Strict):
    """A whole run. See ``docs/recipes.md``."""

    recipe: Literal[1]
    name: str = Field("recipe", pattern=_NAME, description="names the run in reports")
    description: str = ""
    task: str = "text-classification"
    problem: Literal["single_label", "multi_label", "regression"] | None = Field(
        None, description="null = what the model's config says, else single_label"
    )
    model: str | None = Field(None, description="folder, hub id or .onnx file; null when the first step makes one")
    trust_remote_code: str | None = Field(
        None, description="the model again, word for word: its author's Python files may run; null = never"
    )
    labels: dict[str, str] | None = Field(None, description="the model's label names -> the data's")
    max_length: int | None = Field(
        None, ge=4, le=LONGEST_INPUT, description="longest input in tokens; null = the model's, at most 128"
    )
    data: DataConfig
    run: RunConfig = RunConfig()
    gates: dict[str, GateRule] | None = Field(
        None, description="bounds of every deliverable; null = at most 1.0 point below the model on its main metric"
    )
    steps: tuple[Step, ...] = Field(min_length=1)
    measure: MeasureSettings = MeasureSettings()

    _variables: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_steps(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("steps"), list):
            return {**value, "steps": _parse_steps(value["steps"])}
        return value

    @field_validator("trust_remote_code", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() not in _NO_NAMES | {""}):
            return value
        raise RecipeError(
            "`trust_remote_code` takes the name of the model whose code may run, not a yes.",
            value=f"trust_remote_code: {json.dumps(value, default=str)[:200]}",
            fix="If you trust its author, write the model there as `model:` names it; otherwise leave the key out.",
        )

    @property
    def names_code(self) -> bool:
        """Whether the recipe names its own model as one whose author's code may run.

        The name is taken as it is written, so that no variable and no environment decides whose code it is.

        Raises:
            RecipeError: it names something else.
        """
        if self.trust_remote_code is None:
            return False
        model = "" if self.model is None else self.expand(self.model)
        if PurePath(self.trust_remote_code) == PurePath(model):
            return True
        raise RecipeError(
            "`trust_remote_code` names another model than the recipe does.",
            value=f"trust_remote_code: {self.trust_remote_code}; model: {model or 'none'}",
            fix="If you trust the author of the model, give its folder or hub id, without ${...}; "
            "otherwise leave the key out.",
        )

    def expand(self, text: str) -> str:
        """Replace each ``${NAME}`` by ``--var NAME=...`` or the environment variable.

        Raises:
            RecipeError: the variable is not set.
        """

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            found = self._variables.get(name, os.environ.get(name))
            if found is None:
                raise RecipeError(
                    f"The variable {name} of the recipe is not set.",
                    value=text,
                    fix=f"Run with `--var {name}=...`, or export {name}.",
                )
            return found

        return _VARIABLE.sub(value, text)

    def to_yaml(self) -> str:
        """Return the resolved recipe: every default spelled out, variables unexpanded."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"steps"})
        plain["steps"] = [_plain_step(step) for step in self.steps]
        plain["measure"] = plain.pop("measure")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def load_recipe(source: str | Path, overrides: Sequence[str] = (), variables: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a YAML file, or the name of a built-in one.

    Args:
        source: path or built-in name.
        overrides: ``a.b=c`` each; ``a`` is a key of the recipe or the id of a step, ``c`` is YAML.
        variables: ``NAME=value`` each, for ``${NAME}``.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not describe a recipe.
    """
    return parse_recipe(read_recipe(source), overrides, variables, origin=str(source))


def read_recipe(source: str | Path) -> str:
    """Return the text of a recipe file or of a built-in recipe."""
    try:
        path = local_path(str(source))
        if path.suffix in {".yaml", ".yml"} and path.exists() and not path.is_dir():
            return read_text(path, LARGEST_YAML)
    except Unreadable as error:
        raise RecipeError(
            "The recipe cannot be read.",
            value=f"{source}: {error}",
            fix="Give a YAML file, saved as UTF-8, or see `mcompress ls`.",
        ) from error
    known = builtin_recipes()
    if str(source) in known:
        return known[str(source)]
    if path.is_dir() or path.suffix == ".onnx":
        raise RecipeError(
            "This is a model, not a recipe.",
            value=path,
            fix="Run `mcompress run MODEL --data DIR --out DIR`, or name the model in a recipe's `model:`.",
        )
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise RecipeError("The recipe does not exist.", value=path, fix="Give a YAML file, or see `mcompress ls`.")
    raise RecipeError(f"Unknown recipe {str(source)!r}.", fix=did_you_mean(str(source), known))


def builtin_recipes() -> dict[str, str]:
    """Return the text of each recipe that ships with the package, by name."""
    folder = resources.files("compress") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def parse_recipe(
    text: str, overrides: Sequence[str] = (), variables: Sequence[str] = (), *, origin: str = "recipe"
) -> Recipe:
    """Parse recipe text; see ``load_recipe``."""
    try:
        raw = parse_yaml(text)
    except Unreadable as error:
        raise RecipeError("The recipe is not YAML.", value=f"{origin}: {error}", fix="Correct the line.") from error
    if not isinstance(raw, dict):
        raise RecipeError("The recipe is not a mapping.", value=origin, fix="Begin it with `recipe: 1`.")
    for override in overrides:
        _override(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise explain(error, Recipe, origin) from error
    recipe._variables.update(_split(variable, "--var") for variable in variables)
    return recipe


def explain(error: ValidationError, model: type[BaseModel], where: str) -> RecipeError:
    """Turn pydantic's first complaint, a misspelt key before a missing one, into an error with a suggestion."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = _fields_at(model, first["loc"][:-1])
        return RecipeError(f"Unknown key {key!r}.", value=f"{where}: {place}", fix=did_you_mean(key, known))
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return RecipeError(f"{message}.", value=where, fix="See `docs/passes.md` for what goes together.")
    shown = first.get("input")
    value = f"{where}: {place} = {shown!r}" if isinstance(shown, str | int | float | bool) else f"{where}: {place}"
    return RecipeError(f"{place}: {message}.", value=value, fix="See `docs/recipes.md` for the keys and their types.")


def _fields_at(model: type[BaseModel], place: Iterable[str | int]) -> list[str]:
    fields = model.model_fields
    for part in place:
        field = fields.get(str(part))
        if inner := _model_in(field.annotation) if field else None:
            fields = inner.model_fields
    return [field.alias or name for name, field in fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model inside a type: itself, of a union, or what a list or dict holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _parse_steps(raw: Sequence[Any]) -> list[dict[str, Any]]:
    from compress.passes.base import passes

    out: list[dict[str, Any]] = []
    for number, item in enumerate(raw, 1):
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, Mapping):
            raise RecipeError(f"Step {number} is not a mapping.", value=item, fix="Write `- prune: {macs: 0.5}`.")
        names = [str(key) for key in item if key not in _STEP_KEYS]
        unknown = [name for name in names if name not in passes]
        if (unknown and len(names) > 1) or not names:
            names = names or ["(nothing)"]
            extra = unknown or names
            raise RecipeError(
                f"Step {number} has an unknown key {extra[0]!r}.",
                value=f"keys: {', '.join(map(str, item))}",
                fix=did_you_mean(extra[0], [*_STEP_KEYS, *passes]),
            )
        if unknown:
            raise RecipeError(
                f"Step {number} names an unknown pass {names[0]!r}.", fix=did_you_mean(names[0], list(passes))
            )
        if len(names) > 1:
            raise RecipeError(
                f"Step {number} names two passes.", value=", ".join(names), fix="Give each pass a step of its own."
            )
        config = item[names[0]]
        if config is not None and not isinstance(config, Mapping):
            raise RecipeError(
                f"The config of step {number} {names[0]!r} is not a mapping.", value=config, fix="Write `{key: value}`."
            )
        siblings = {key: value for key, value in item.items() if key in _STEP_KEYS}
        out.append({"uses": names[0], "config": dict(config or {}), **siblings})
    _name_steps(out)
    return out


def _name_steps(steps: Sequence[dict[str, Any]]) -> None:
    """Give steps without an id the name of their pass, numbered from the second on; ids must be unique."""
    taken = {str(step["id"]) for step in steps if "id" in step}
    if len(taken) < sum("id" in step for step in steps) or "model" in taken:
        raise RecipeError(
            "Two steps have the same id, or one is called 'model'.", value=", ".join(sorted(taken)), fix="Rename it."
        )
    for step in steps:
        if "id" not in step:
            names = [step["uses"], *(f"{step['uses']}-{n}" for n in range(2, len(steps) + 2))]
            step["id"] = next(name for name in names if name not in taken)
            taken.add(step["id"])


def _plain_step(step: Step) -> dict[str, Any]:
    plain: dict[str, Any] = {step.uses: dict(step.config), "id": step.id}
    if step.from_ is not None:
        plain["from"] = step.from_
    if step.gates is not None:
        plain["gates"] = {name: rule.model_dump(exclude_none=True) for name, rule in step.gates.items()}
    if step.optional:
        plain["optional"] = True
    return plain


def _override(raw: dict[str, Any], text: str) -> None:
    path, value = _split(text, "--set")
    keys = path.split(".")
    try:
        parsed = parse_yaml(value)
    except Unreadable as error:
        raise RecipeError("The value of --set is not YAML.", value=f"{text}: {error}", fix="Quote it.") from error
    place: Any = raw
    if keys[0] not in Recipe.model_fields:
        place, keys = _step_config(raw, keys)
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise RecipeError("--set goes through a key that holds a plain value.", value=text, fix="Shorten the path.")
    place[keys[-1]] = parsed


def _step_config(raw: dict[str, Any], keys: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Find the raw config (or a sibling such as ``gates``) of the step that ``keys[0]`` names."""
    steps = raw.get("steps")
    items = [
        dict(it) if isinstance(it, Mapping) else {str(it): {}} for it in (steps if isinstance(steps, list) else [])
    ]
    parsed = _parse_steps(items)
    ids = [step["id"] for step in parsed]
    if keys[0] not in ids or len(keys) < 2:
        raise RecipeError(
            f"--set names {keys[0]!r}, which is neither a key of the recipe nor a step with an option.",
            value=".".join(keys),
            fix=did_you_mean(keys[0], [*Recipe.model_fields, *ids]),
        )
    index = ids.index(keys[0])
    item = items[index]
    raw["steps"] = items
    if keys[1] in _STEP_KEYS:
        return item, keys[1:]
    uses = parsed[index]["uses"]
    item[uses] = dict(item[uses] or {})
    return item[uses], keys[1:]


def _split(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise RecipeError(f"{option} takes NAME=VALUE.", value=text, fix=f"Write `{option} name=value`.")
    return name, value
