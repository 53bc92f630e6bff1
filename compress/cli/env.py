"""``mcompress env``."""

from __future__ import annotations

from typing import Any

from compress.cli.console import JsonOption, guarded, print_json, print_wrapped

_WIDTH = 24


@guarded
def env(json_: bool = JsonOption) -> None:
    """Show this machine, the versions that matter, and which targets can run here."""
    from compress import __version__
    from compress.bench.environment import environment
    from compress.runtimes.base import runtimes
    from compress.runtimes.target import builtin_targets

    found = {"mcompress": __version__, **environment()}
    targets = {name: runtimes.get(t.runtime)().available(t) for name, t in builtin_targets().items()}
    if json_:
        print_json({**found, "targets": {name: {"ok": a.ok, "reason": a.reason} for name, a in targets.items()}})
        return
    _show(found, 0)
    _show({"targets": {name: "yes" if a.ok else f"no: {a.reason}" for name, a in targets.items()}}, 0)


def _show(facts: dict[str, Any], indent: int) -> None:
    """Print ``name value`` lines, nested facts below their name."""
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}:")
            _show(value, indent + 2)
        else:
            start = _WIDTH + 2
            print_wrapped(f"{' ' * indent}{name:{start - indent}} {_words(value)}", 0, start + 1)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
