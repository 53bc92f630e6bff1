"""What both kinds of bundles are made with: templates and programs."""

from __future__ import annotations

from importlib import resources
from string import Template

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
