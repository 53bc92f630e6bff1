"""``mcompress ls``, ``cp`` and ``cat``: find, copy and read recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from compress.cli.console import JsonOption, guarded, print_json
from compress.errors import UsageError, did_you_mean
from compress.registry import Registry

_THINGS = ("recipes", "passes", "targets", "runtimes", "tasks", "layouts")


@guarded
def ls(
    what: str | None = typer.Argument(None, help=f"One of: {', '.join(_THINGS)}. Everything if left out."),
    json_: bool = JsonOption,
) -> None:
    """List recipes, passes, targets, runtimes, tasks and layouts of exports; of a plug-in's, where it comes from."""
    if what is not None and what not in _THINGS:
        raise UsageError(f"There is no list of {what!r}.", fix=did_you_mean(what, _THINGS))
    lists = {thing: _list(thing) for thing in _THINGS if what in (None, thing)}
    if json_:
        print_json(lists)
        return
    for thing, entries in lists.items():
        print(thing)
        width = max((len(name) for name in entries), default=0)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}".rstrip())


@guarded
def cat(recipe: str = typer.Argument(..., help="A recipe: file or built-in name.")) -> None:
    """Print a recipe."""
    from compress.recipe import read_recipe

    print(read_recipe(recipe), end="")


@guarded
def cp(
    recipe: str = typer.Argument(..., help="A built-in recipe."),
    to: Path = typer.Argument(..., help="The new file; an existing one is not overwritten."),
) -> None:
    """Copy a built-in recipe to a file of yours."""
    from compress.recipe import read_recipe

    text = read_recipe(recipe)
    if to.exists():
        raise UsageError("The file exists already.", value=to, fix="Choose another name.")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    print(f"{to}: edit it, then `mcompress validate {to}`.")


def _list(thing: str) -> dict[str, str]:
    if thing == "recipes":
        from compress.recipe import builtin_recipes

        return {name: _first_comment(text) for name, text in builtin_recipes().items()}
    if thing == "targets":
        from compress.runtimes.target import builtin_targets

        return {name: target.description for name, target in builtin_targets().items()}
    if thing == "layouts":
        from compress.shipping.layouts import layouts

        return {name: layouts.get(name).what for name in layouts}
    from compress.passes.base import passes
    from compress.runtimes.base import runtimes
    from compress.tasks.base import tasks

    registries: dict[str, Registry[Any]] = {"passes": passes, "runtimes": runtimes, "tasks": tasks}
    return {name: registries[thing].origin(name) for name in registries[thing].usable()}


def _first_comment(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line.removeprefix("#").strip() if line.startswith("#") else ""
