"""``mcompress env``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.cli.console import JsonOption, guarded, print_json, print_wrapped

_WIDTH = 24


@guarded
def env(json_: bool = JsonOption) -> None:
    """Show this machine, the versions that matter, and which targets can run here."""
    from compress import __version__, plugins
    from compress.bench.environment import environment
    from compress.bench.gpu_software import gpu_software
    from compress.runtimes.base import runtimes
    from compress.runtimes.target import builtin_targets

    found = {"mcompress": __version__, **environment(), "gpu_software": gpu_software()}
    found["packages"] |= plugins.installed()
    targets = {name: runtimes.get(t.runtime)().available(t) for name, t in builtin_targets().items()}
    if json_:
        print_json({**found, "targets": {name: {"ok": a.ok, "reason": a.reason} for name, a in targets.items()}})
        return
    _show({name: value for name, value in found.items() if name != "gpu_software"}, 0)
    _show({"gpu software": _with_none(found["gpu_software"])}, 0)
    print("targets that run here:")
    print_wrapped(", ".join(name for name, it in targets.items() if it.ok) or "none", 2, 2)
    print("targets that do not:")
    for reason, names in _by_reason({name: it.reason for name, it in targets.items() if not it.ok}).items():
        print_wrapped(f"{', '.join(names)}:", 2, 4)
        print_wrapped(reason, 4, 4)


def _with_none(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Say "none" of software that is not there."""
    return {
        name: _with_none(it) if isinstance(it, dict) else "none" if it is None else it for name, it in facts.items()
    }


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each reason once, with the targets that it holds for."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


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
