"""Join the two halves of the device's program into the one file that a kit carries."""

from __future__ import annotations

import ast
from importlib import resources


def runner_text() -> str:
    """Return ``run.py``: it imports the standard library and numpy, and a runtime where it finds one."""
    folder = resources.files("compress.kit")
    first, second = ((folder / name).read_text(encoding="utf-8") for name in ("run_child.py", "run_parent.py"))
    return f"{first.rstrip()}\n\n\n{_without_own_imports(second)}"


def _without_own_imports(text: str) -> str:
    """Cut a module's docstring and its imports from ``__future__`` and of ours: the first half brings them."""
    lines = text.splitlines(keepends=True)
    body = ast.parse(text).body
    dropped = [body[0], *(n for n in body if isinstance(n, ast.ImportFrom) and _is_own(n.module or ""))]
    for node in dropped:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "".join(lines).lstrip()


def _is_own(module: str) -> bool:
    return module == "__future__" or module.split(".")[0] == "compress"
