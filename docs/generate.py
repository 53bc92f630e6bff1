"""Write docs/passes.md from what the registered passes declare, and the published schema of ``report.json``.

``python docs/generate.py``; ``tests/docs/test_docs.py`` fails when a file is not what this writes.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compress.passes.base import Pass, passes
from compress.report.model import SCHEMA
from compress.report.schema import schema_text

TARGET = Path(__file__).with_name("passes.md")
SCHEMA_TARGET = Path(__file__).parent / "schema" / f"report-{SCHEMA}.json"
HEAD = """# Passes

A pass takes a model and gives another one. It is written as a step of a recipe: `- prune: {macs: 0.5}`.
Every key below may be left out unless its default reads *required*. `--set STEP.KEY=VALUE` overrides one key.

| pass | takes | gives | adds | refuses | outputs | reads |
| --- | --- | --- | --- | --- | --- | --- |
"""
MEANING = """
*adds* and *refuses* are traits: what was done to a model so far. A step whose input has a refused trait, or is of
another kind, is an error of the recipe, found before any work.

*outputs* says what the parity check demands, compared with the step's input on validation: **exact** is no difference
above 0.001 of the largest logit; **close** is a cosine of at least 0.999 and the same decision on at least 98 %;
**task** demands nothing, the accuracy gate decides.

*reads* are the splits that the pass may read. No pass reads test.

This file is generated: `python docs/generate.py`.
"""


def render() -> str:
    """Return the text of passes.md."""
    classes = [passes.get(name) for name in passes]
    parts = [HEAD + "".join(_line(cls) for cls in classes) + MEANING]
    parts += [_section(cls) for cls in classes]
    return "\n".join(parts)


def _line(cls: type[Pass]) -> str:
    cells = (
        f"[`{cls.name}`](#{cls.name})",
        _words(cls.consumes),
        cls.produces,
        _words(cls.adds),
        _words(cls.forbids),
        cls.preserves,
        ", ".join(cls.uses) or "–",
    )
    return f"| {' | '.join(cells)} |\n"


def _section(cls: type[Pass]) -> str:
    rules = _first(cls.Config).partition(". ")[2]
    lines = [f"## {cls.name}\n", f"{_first(cls)} {rules}".rstrip() + "\n"]
    others = [role for role in cls.roles if role != "model"]
    if others:
        names = ", ".join(f"`{role}`" for role in others)
        lines.append(f"Takes a second model besides the one it continues from: {names} names the step that made it.\n")
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [_row(name, field) for name, field in _fields(cls.Config)]
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the fields of a config; those of a config inside it follow under a dotted name."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, f"{prefix}{name}.")


def _row(name: str, field: FieldInfo) -> str:
    default = "*required*" if field.is_required() else f"`{_default(field)}`"
    limits = _limits(field)
    kind = _type(field.annotation) + (f", {limits}" if limits else "")
    return f"| `{name}` | {kind} | {default} | {_escape(field.description or '')} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.model_dump().items()) + "}"
    return _yaml(value)


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) and value < 0.001 else str(value)


def _type(kind: Any) -> str:
    """Return a type as a person reads it: ``number``, ``one of a, b``, ``list of strings``, ``... or null``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}s"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mapping"
    return {int: "integer", float: "number", str: "string", bool: "true or false", type(None): "null"}[kind]


def _limits(field: FieldInfo) -> str:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = [(sign, getattr(rule, sign, None)) for rule in field.metadata for sign in signs]
    return ", ".join(f"{signs[sign]} {value:g}" for sign, value in found if value is not None)


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "–"


def _first(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    SCHEMA_TARGET.parent.mkdir(exist_ok=True)
    SCHEMA_TARGET.write_text(schema_text(), encoding="utf-8")
