"""``mcompress store ls|gc|verify``."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from compress.cli.console import JsonOption, guarded, print_json, print_wrapped
from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.store.upkeep import Listed

store = typer.Typer(
    name="store",
    help="Look after the store of finished steps (MCOMPRESS_HOME): list it, collect what nobody needs, verify it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_LABEL = 34


@store.command("ls")
@guarded
def list_(
    key: str | None = typer.Argument(None, help="First digits of a key: show what it refers to, and what to it."),
    json_: bool = JsonOption,
) -> None:
    """List what the store holds, how large it is and who needs it."""
    from compress.resources import in_units
    from compress.store import Store
    from compress.store.upkeep import list_store

    kept = Store.default()
    listed = list_store(kept)
    if key is not None:
        chosen = [it for it in listed if it.key.startswith(key.lower())]
        if not chosen:
            raise UsageError("The store has no such key.", value=key, fix="`mcompress store ls` lists them.")
        if not json_:
            for it in chosen:
                _show(it, listed)
            return
        listed = chosen
    if json_:
        print_json({"root": str(kept.root), "bytes": sum(it.bytes for it in listed), "entries": _plain(listed)})
        return
    if listed:
        print(f"{'KEY':10}  {'SIZE':>9}  {'USED':>7}  {'NEEDED BY':11}  WHAT")
    for it in listed:
        what = it.label or "record unreadable"
        what = what if len(what) <= _LABEL else what[: _LABEL - 3] + "..."
        print(f"{it.key[:10]}  {in_units(it.bytes):>9}  {_ago(it.age_s):>7}  {_needed(it):11}  {what}")
    print_wrapped(f"{len(listed)} entries, {in_units(sum(it.bytes for it in listed))} in {kept.root}")


@store.command("gc")
@guarded
def collect_(
    older_than: str = typer.Option(
        "30d", "--older-than", metavar="AGE", help="Keep what was used since: 12h, 30d, 4w; 0d keeps nothing for it."
    ),
    keep_runs: bool = typer.Option(
        True, "--keep-runs/--no-keep-runs", help="Keep what a run used for as long as its folder exists."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be removed."),
    json_: bool = JsonOption,
) -> None:
    """Remove what nobody needs. What is in use is never touched."""
    from compress.resources import in_units
    from compress.store import Store
    from compress.store.upkeep import collect

    kept = Store.default()
    found = collect(kept, older_than_s=_seconds(older_than), keep_runs=keep_runs, dry_run=dry_run)
    if json_:
        print_json(
            {
                "root": str(kept.root),
                "dry_run": dry_run,
                "bytes": found.bytes,
                "removed": _plain(found.removed),
                "kept": found.kept,
            }
        )
        return
    for it in found.removed:
        print_wrapped(f"{it.key[:10]}  {in_units(it.bytes):>9}  {it.label or 'record unreadable'}", hanging=23)
    did = "would be removed" if dry_run else "removed"
    print(f"{did}: {len(found.removed)}, {in_units(found.bytes)}")
    for reason, count in sorted(found.kept.items()):
        print(f"kept, {reason}: {count}")


@store.command("verify")
@guarded
def verify_(json_: bool = JsonOption) -> None:
    """Hash every stored file. Exit code 1 if something is damaged; a run that needs it makes it again."""
    from compress.cli.progress import ProgressPrinter
    from compress.store import Store
    from compress.store.upkeep import verify_store

    kept, progress = Store.default(), ProgressPrinter()
    try:
        checked = verify_store(kept, lambda done, total: progress("verifying", done, total))
    finally:
        progress.close()
    damaged = [(it, wrong) for it, wrong in checked if wrong is not None]
    if json_:
        bad = [{"key": it.key, "label": it.label, "damage": wrong} for it, wrong in damaged]
        print_json({"root": str(kept.root), "checked": len(checked), "damaged": bad})
    else:
        for it, wrong in damaged:
            print_wrapped(f"{it.key[:10]}  {it.label or 'record unreadable'}: {wrong}", hanging=12)
        print(f"{len(checked)} entries checked, {len(damaged)} damaged")
        if damaged:
            print("Nothing needs to be done: a run that needs one of them makes it again.")
    raise typer.Exit(1 if damaged else 0)


def _show(it: Listed, listed: list[Listed]) -> None:
    """Print everything about one entry."""
    from compress.resources import in_units

    labels = {other.key: other.label for other in listed}
    print(it.key)
    print_wrapped(f"{it.label or 'record unreadable'}, {in_units(it.bytes)}, used {_ago(it.age_s)} ago", 2, 2)
    lists = {
        "made from": [f"{key[:10]}  {labels.get(key, 'no longer there')}" for key in it.made_from],
        "used to make": [f"{other.key[:10]}  {other.label}" for other in listed if it.key in other.made_from],
        "in use by": list(it.in_use),
        "needed by": list(it.runs),
    }
    for title, lines in lists.items():
        for number, line in enumerate(lines):
            print_wrapped(f"{title + ':' if not number else '':14}{line}", 2, 28)


def _needed(it: Listed) -> str:
    if it.in_use:
        return "in use now"
    return f"{len(it.runs)} run{'s' * (len(it.runs) > 1)}" if it.runs else "-"


def _plain(listed: list[Listed]) -> list[dict[str, object]]:
    return [asdict(it) | {"age_s": round(it.age_s)} for it in listed]


def _ago(seconds: float) -> str:
    for unit, length, limit in (("s", 1, 120.0), ("min", 60, 7200.0), ("h", 3600, 172800.0)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _seconds(age: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", age.strip().lower())
    if found is None:
        raise UsageError("This is no age.", value=age, fix="Write a number and a unit: 30m, 12h, 30d or 4w.")
    return float(found[1]) * _UNITS[found[2]]
