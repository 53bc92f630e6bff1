"""What of a request may stand in a report: everything but machine paths."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

import yaml

from compress.bench.launch import without_folders
from compress.recipe import Recipe

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SPLITS = ("train", "validation", "test", "transfer")
_PLACES = ("model", "trust_remote_code", "data", "measure")
"""Keys of a recipe under which a value can name a file."""


def public_path(text: str) -> str:
    """Return a path as written, but an absolute one only by its last part."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute() or text.startswith("~"):
            return kind(text).name
    return text


def public_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe with its absolute paths cut to their last part."""
    plain = yaml.safe_load(recipe.to_yaml())
    if plain["model"] is not None:
        plain["model"] = public_path(plain["model"])
    if plain["trust_remote_code"] is not None:
        plain["trust_remote_code"] = public_path(plain["trust_remote_code"])
    for split in _SPLITS:
        source = plain["data"].get(split)
        if source and source["path"] is not None:
            source["path"] = public_path(source["path"])
    plain["run"]["track"] = [name.partition(":")[0] for name in plain["run"]["track"]]
    plain["measure"]["targets"] = [public_path(name) for name in plain["measure"]["targets"]]
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def command_line(
    recipe: Recipe,
    what: str,
    out: str,
    sets: Sequence[str],
    variables: Sequence[str],
    data: str | None = None,
    flags: Sequence[str] = (),
) -> str:
    """Return the command that repeats a run; the paths in it are for the reader to fill in.

    Args:
        recipe: as it was run; a variable that came from the environment is named as ``--var NAME=...``.
        what: recipe or model.
        out: the run's folder.
        sets, variables: as ``--set`` and ``--var`` take them.
        data: the folder that ``--data`` named, with a model.
        flags: options that take no value.
    """
    words = ["mcompress", "run", public_path(what), "--out", public_path(out)]
    if data is not None:
        words += ["--data", public_path(data)]
    for override in sets:
        words += ["--set", _public_override(override)]
    for variable in variables:
        name, _, value = variable.partition("=")
        words += ["--var", f"{name}={public_path(value)}"]
    given = {variable.partition("=")[0] for variable in variables}
    for name in sorted({*_VARIABLE.findall(recipe.to_yaml())} - given):
        words += ["--var", f"{name}=..."]
    return shlex.join([*words, *flags])


def _public_override(text: str) -> str:
    key, sign, value = text.partition("=")
    return f"{key}{sign}{without_folders(value)}" if key.split(".")[0] in _PLACES else text
