"""What both kinds of bundles do: fill in templates, copy programs, record the model where it lies."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from string import Template

from compress.artifact import Artifact
from compress.shipping.plain import derive
from compress.shipping.shipment import Shipment

PROGRAMS = "compress.shipping.serving.server"
"""The package whose modules go into bundles: it knows NumPy, tokenizers and the server, and nothing of mcompress."""


def template(file: str, **values: object) -> str:
    """Return a template of this package with its ``$names`` filled in."""
    folder = resources.files("compress.shipping.serving") / "templates"
    return Template((folder / file).read_text(encoding="utf-8")).substitute(values)


def program(module: str, package: str, *, folder: str = PROGRAMS) -> str:
    """Return the text of a module as it stands in a bundle.

    Args:
        module: its name.
        package: where the modules of ``server/`` are found there; empty = in the same folder.
        folder: the package that the module is in here.
    """
    text = (resources.files(folder) / f"{module}.py").read_text(encoding="utf-8")
    return text.replace(f"{PROGRAMS}.", f"{package}." if package else "")


def program_names() -> list[str]:
    """Return the modules of ``server/``."""
    files = (file.name for file in resources.files(PROGRAMS).iterdir())
    return sorted(name.removesuffix(".py") for name in files if name.endswith(".py"))


def place_model(shipment: Shipment, out: Path, places: dict[str, str], *, layout: str, graph: str) -> Artifact:
    """Copy files of the artifact to their places and write ``artifact.json`` over them.

    Args:
        shipment: whose artifact it is.
        out: the bundle.
        places: file of the artifact -> where it goes, relative to the bundle.
        layout: name of the layout.
        graph: the place of the file that holds the graph.
    """
    source = shipment.artifact
    for name, place in places.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / name, out / place)
    return derive(source, out, tuple(places.values()), layout=layout, graph=graph)
