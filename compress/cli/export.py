"""``mcompress export``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from compress.cli.console import JsonOption, guarded, print_json

if TYPE_CHECKING:
    from compress.shipping.writing import Shipped


@guarded
def export(
    source: str = typer.Argument(..., metavar="SOURCE", help="RUN, RUN:STEP, or an artifact folder."),
    out: Path = typer.Argument(..., metavar="DIR", help="New folder."),
    layout: str = typer.Option("artifact", "--layout", help="For which loader or server; `mcompress ls layouts`."),
    json_: bool = JsonOption,
) -> None:
    """Write what a run made into a folder to ship: the artifact that the report says to ship, or that of STEP.

    Beside it lie its model card, report and recipe, checksums, and `verify.py`, which checks it on any machine.
    """
    from dataclasses import asdict

    from compress.report.visible import visible
    from compress.shipping.layouts import layouts
    from compress.shipping.shipment import open_shipment
    from compress.shipping.writing import ship
    from compress.store import Store

    how = layouts.get(layout)()
    shipped = ship(open_shipment(source, Store.default()), how, out)
    if json_:
        variants = [variant._asdict() for variant in shipped.variants]
        print_json(asdict(shipped) | {"path": str(shipped.path), "variants": variants})
        return
    for line in _lines(shipped):
        print(visible(line))


def _lines(shipped: Shipped) -> list[str]:
    megabytes = f"{shipped.size_bytes / 1e6:.1f} MB"
    found = [f"{shipped.path}: layout {shipped.layout}, {shipped.files} files, {megabytes}"]
    for variant in shipped.variants:
        step = f", step {variant.step}" if variant.step else ""
        traits = "".join(f" {trait}" for trait in variant.traits)
        found.append(f"  {variant.file}: {variant.size_bytes / 1e6:.1f} MB{step}{',' if traits else ''}{traits}")
    for sentence in shipped.left_out:
        found += textwrap.wrap(f"left out: {sentence}", 78, initial_indent="  ", subsequent_indent="    ")
    return [*found, f"Check it anywhere: python {shipped.path / 'verify.py'}"]
