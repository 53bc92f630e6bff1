"""One registry class for passes, runtimes, tasks: lazy targets, plug-ins, did-you-mean."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from compress.errors import CompressError, UsageError, did_you_mean
from compress.plugins import Fault, Offer, load, offers

T = TypeVar("T")


class Registry(Generic[T]):
    """Named classes of one kind of thing, imported when first asked for.

    A name that is registered here is never a plug-in's, and of two plug-ins with one name neither is used.

    Args:
        kind: what is registered, as it reads in an error ("pass", "runtime").
        base: every target must be a subclass of this class.
        group: entry-point group through which other distributions add targets; looked at on first use.
    """

    def __init__(self, kind: str, base: type[T], group: str | None = None) -> None:
        self.kind = kind
        self._base = base
        self._group = group
        self._targets: dict[str, str | type[T]] = {}
        self._offers: dict[str, Offer] | None = None
        self._loaded: dict[str, type[T]] = {}
        self._faults: dict[str, Fault] = {}

    def register(self, name: str, target: str | type[T]) -> None:
        """Add a class, or a ``"package.module:Class"`` string that is imported on first use.

        Raises:
            CompressError: the name is taken by another target.
        """
        if self._targets.get(name, target) != target:
            raise CompressError(
                f"Two {self.kind} classes are registered as {name!r}.",
                value=f"{self._targets[name]} and {target}",
                fix="Rename one of them.",
            )
        self._targets[name] = target

    def names(self) -> list[str]:
        """Return every name, sorted; plug-ins are not imported for it, so one of them may yet turn out broken."""
        return sorted({*self._targets, *self._plugins()} - set(self._faults))

    def usable(self) -> list[str]:
        """Return the names whose class is there, sorted: imports every plug-in, and reports those that are broken."""
        for name in self._plugins():
            if name not in self._faults and (fault := self._load(name)):
                fault.report()
        return self.names()

    def get(self, name: str) -> type[T]:
        """Return the class registered under ``name``.

        Raises:
            UsageError: nothing has that name; the message suggests the closest ones.
            MissingCapabilityError: a plug-in has it, and is broken.
            CompressError: the target is not a subclass of the registry's base.
        """
        target = self._targets.get(name)
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            if not (isinstance(target, type) and issubclass(target, self._base)):
                raise CompressError(
                    f"The {self.kind} {name!r} is not a {self._base.__name__}.",
                    value=target,
                    fix=f"Let it inherit from {self._base.__module__}.{self._base.__name__}.",
                )
            self._targets[name] = target
        return self._get_plugin(name) if target is None else target

    def origin(self, name: str) -> str:
        """Return ``module:Class`` of a name without importing it; of a plug-in's, ``distribution version (...)``."""
        if name in self._targets:
            target = self._targets[name]
            return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
        return str(self._plugins()[name])

    def versions(self, name: str) -> dict[str, str]:
        """Return distribution -> version of the plug-in that a name comes from: part of the key of what it made."""
        offer = None if name in self._targets else self._plugins().get(name)
        return {} if offer is None else {offer.distribution: offer.version}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        """Say whether somebody registered that name; a plug-in's may be broken."""
        return name in self._targets or name in self._plugins() or name in self._faults

    def _plugins(self) -> dict[str, Offer]:
        """Return the plug-in of each name that is free and that only one has; the others are reported."""
        if self._offers is not None:
            return self._offers
        by_name: dict[str, list[Offer]] = {}
        for offer in offers(self._group) if self._group else ():
            by_name.setdefault(offer.point.name, []).append(offer)
        alone: dict[str, Offer] = {}
        for name, found in by_name.items():
            if name in self._targets:
                self._taken(name, found)
            elif len(found) > 1:
                self._break(name, self._ambiguous(name, found))
            elif found[0].fault:
                self._break(name, self._broken(name, found[0], found[0].fault))
            else:
                alone[name] = found[0]
        self._offers = alone
        return alone

    def _get_plugin(self, name: str) -> type[T]:
        if name not in self:
            also = " If a plug-in brings it, install that first." if self._group else ""
            raise UsageError(f"Unknown {self.kind} {name!r}.", fix=did_you_mean(name, self.names()) + also)
        fault = self._faults.get(name) or self._load(name)
        if fault is not None:
            raise fault.error()
        return self._loaded[name]

    def _load(self, name: str) -> Fault | None:
        """Import a plug-in's class unless that was done before; return what is wrong with it."""
        if name in self._loaded:
            return None
        offer = self._plugins()[name]
        found = load(offer, self._base)
        if isinstance(found, str):
            self._faults[name] = self._broken(name, offer, found)
            return self._faults[name]
        self._loaded[name] = found
        return None

    def _break(self, name: str, fault: Fault) -> None:
        self._faults[name] = fault
        fault.report()

    def _broken(self, name: str, offer: Offer, why: str) -> Fault:
        return Fault(
            f"The {self.kind} {name!r} of a plug-in cannot be used.",
            f"{offer}: {why}",
            f"Install a version of it that works, or remove it: {offer.remove}.",
        )

    def _ambiguous(self, name: str, found: Sequence[Offer]) -> Fault:
        return Fault(
            f"Several plug-ins bring a {self.kind} {name!r}, so none of them is used.",
            " and ".join(map(str, found)),
            f"Remove all but one: {' or '.join(dict.fromkeys(offer.remove for offer in found))}.",
        )

    def _taken(self, name: str, found: Sequence[Offer]) -> None:
        for offer in found:
            Fault(
                f"A plug-in brings a {self.kind} {name!r}, the name of a built-in one, which is used instead.",
                str(offer),
                f"Ask its author for another name, or remove it: {offer.remove}.",
            ).report()
