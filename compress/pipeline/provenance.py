"""With what a run can be done again: command, recipe, seed, the code's commit, the installed packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from compress.pipeline.public import public_recipe
from compress.pipeline.running import RunState
from compress.report import model as report

_SAME = (
    "The same artifacts on the same kind of CPU with the same packages answer the same; in 19 of 20 repetitions a "
    "speed-up lies within 1.4 times the arm of its interval."
)
_ANEW = (
    " Steps that train, or that choose by timing, may give another model: expect accuracies within their intervals, "
    "not equal digests."
)


def reproduce(state: RunState, command: str) -> report.Reproduce:
    """Say what repeats a run; ``command`` has no machine paths."""
    commit, dirty = checkout(Path(__file__).parents[1])
    chosen = any(step.pass_.trains or step.pass_.name in ("prune", "quantize") for step in state.plan.steps)
    return report.Reproduce(
        commands=(command,),
        recipe=public_recipe(state.recipe),
        seed=state.recipe.run.seed,
        tolerance=_SAME + (_ANEW if chosen else ""),
        commit=commit,
        dirty=dirty,
        installed=digest_of(distributions()),
    )


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit that a package folder is at, and whether tracked files of it differ.

    (None, None) where git does not track the folder: an installed package inside another project's checkout is not
    of that commit.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, env=quiet).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no", "."))
    except (OSError, subprocess.SubprocessError):
        return None, None


def digest_of(packages: Iterable[Distribution]) -> str:
    """Return the sha256 of ``name==version`` lines, lower-case, sorted, without duplicates."""
    lines = set()
    for package in packages:
        try:
            lines.add(f"{package.metadata['Name'].lower()}=={package.version}\n")
        except (AttributeError, KeyError, TypeError):
            continue  # what a broken installation left behind has no name
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
