"""``mcompress env``."""

from __future__ import annotations

from compress.cli.console import JsonOption, guarded, print_json


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
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, text in value.items():
                print(f"  {inner:24} {text}")
        else:
            print(f"{key:14} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    print("targets:")
    for name, available in targets.items():
        print(f"  {name:24} {'yes' if available.ok else 'no: ' + available.reason}")
