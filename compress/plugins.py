"""Plug-ins: classes that other distributions offer through entry points; nothing of theirs is imported unasked.

A plug-in that cannot be used is left out and reported once, in one line, through the logger ``compress.plugins``:
on standard error, unless the application configures logging.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from compress.errors import MissingCapabilityError

PREFIX = "mcompress."
"""Of the entry-point groups: ``mcompress.passes``, ``mcompress.runtimes``, ``mcompress.tasks``, ..."""
QUIET = "MCOMPRESS_PLUGINS_QUIET"
"""Set in child processes, whose parent has reported already."""
_LONGEST = 300
"""Characters of what a plug-in's own exception says."""
_said: set[str] = set()


@dataclass(frozen=True)
class Offer:
    """One class that a distribution offers under a name.

    Attributes:
        point: the entry point.
        distribution, version: who offers it; the name of its folder where it has no metadata.
        remove: the command that uninstalls it.
        fault: why it cannot be used, as far as that shows without importing it.
    """

    point: EntryPoint
    distribution: str
    version: str
    remove: str
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.point.value})".replace("  ", " ")


@dataclass(frozen=True)
class Fault:
    """Why plug-ins cannot be used, in the three parts of an error."""

    what: str
    value: str
    fix: str

    def error(self) -> MissingCapabilityError:
        return MissingCapabilityError(self.what, value=self.value, fix=self.fix)

    def report(self) -> None:
        """Say so, once in this process and its children."""
        line = f"warning: {self.what} value: {self.value}; fix: {self.fix}"
        if line in _said or os.environ.get(QUIET):
            return
        _said.add(line)
        import logging

        logging.getLogger(__name__).warning("%s", "".join(c if c.isprintable() else "?" for c in line))


@cache
def offers(group: str) -> tuple[Offer, ...]:
    """Return what every installed distribution offers in a group, in the order of ``sys.path``."""
    return tuple(offer for offer in _all_offers() if offer.point.group == group)


def installed() -> dict[str, str]:
    """Return distribution -> version of every plug-in."""
    return {offer.distribution: offer.version for offer in _all_offers() if not offer.fault}


def load(offer: Offer, base: type[Any]) -> type[Any] | str:
    """Import what is offered; return the class, or why it cannot be used as a subclass of ``base``.

    Whatever the module raises is its own affair, an attempt to end the process included, and so is what it prints:
    standard output is kept for results.
    """
    if offer.fault:
        return offer.fault
    try:
        with redirect_stdout(sys.stderr):
            found = offer.point.load()
            return _why_no_subclass(found, base, offer.point.name) or found
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever the code of a stranger raises
        return _in_words(error)


def _why_no_subclass(found: Any, base: type[Any], name: str) -> str:
    if not (isinstance(found, type) and issubclass(found, base)):
        return f"it is no subclass of {base.__module__}.{base.__name__}"
    declared = [key for key, kind in inspect.get_annotations(base).items() if str(kind).startswith("ClassVar")]
    missing = [key for key in declared if not hasattr(found, key)]
    if lacking := sorted({*missing, *getattr(found, "__abstractmethods__", ())}):
        return f"it lacks what a {base.__name__} has: {', '.join(lacking)}"
    own = getattr(found, "name", name)
    return "" if own == name else f"it is offered as {name!r}, but its `name` is {own!r}"


def _in_words(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception that cannot even say what it is
        text = ""
    return f"{type(error).__name__}: {text[:_LONGEST]}".rstrip(": ")


@cache
def _all_offers() -> tuple[Offer, ...]:
    found: list[Offer] = []
    seen: set[str] = set()
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group.startswith(PREFIX)]
        except Exception:  # a damaged entry_points.txt must not hide those of other distributions
            continue
        if not points:
            continue
        identity = _identity(distribution)
        if identity["distribution"] not in seen:  # of two on sys.path the first is the one that is imported
            seen.add(identity["distribution"])
            found += [Offer(point, **identity | _fault_of(point, identity)) for point in points]
    return tuple(found)


def _identity(distribution: Distribution) -> dict[str, str]:
    """Return who offers something: ``distribution``, ``version`` and ``remove``; an empty version without metadata."""
    try:
        name, version = distribution.metadata["Name"] or "", distribution.metadata["Version"] or ""
    except Exception:  # what stands for missing metadata differs from one Python to the next
        name = version = ""
    if name and version:
        name = re.sub(r"[-_.]+", "-", name).lower()
        return {"distribution": name, "version": version, "remove": f"`pip uninstall {name}`"}
    folder = getattr(distribution, "_path", None)
    where = getattr(folder, "name", "a distribution")
    return {"distribution": where, "version": "", "remove": f"delete {folder or where}"}


def _fault_of(point: EntryPoint, identity: Mapping[str, str]) -> dict[str, str]:
    if not identity["version"]:
        return {"fault": "its METADATA with name and version is missing"}
    if not (match := point.pattern.match(point.value)) or not match["attr"]:
        return {"fault": "its entry point is not of the form module:Class"}
    return {}
