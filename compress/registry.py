"""One registry class for passes, runtimes, tasks: lazy targets, entry points, did-you-mean."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from compress.errors import CompressError, UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Named factories of one kind of thing, imported when first asked for.

    Args:
        kind: what is registered, as it reads in an error ("pass", "runtime").
        base: every target must be a subclass of this class.
        group: entry-point group through which other distributions add targets; loaded on first use.
    """

    def __init__(self, kind: str, base: type[T], group: str | None = None) -> None:
        self.kind = kind
        self._base = base
        self._group = group
        self._targets: dict[str, str | type[T]] = {}

    def register(self, name: str, target: str | type[T]) -> None:
        """Add a class, or a ``"package.module:Class"`` string that is imported on first use.

        Raises:
            CompressError: the name is taken by another target.
        """
        if self._targets.get(name, target) != target:
            raise CompressError(
                f"Two {self.kind} classes are registered as {name!r}.",
                value=f"{self._targets[name]} and {target}",
                fix="Rename one of them, or uninstall the plugin that you do not need.",
            )
        self._targets[name] = target

    def names(self) -> list[str]:
        self._load_entry_points()
        return sorted(self._targets)

    def get(self, name: str) -> type[T]:
        """Return the class registered under ``name``.

        Raises:
            UsageError: nothing has that name; the message suggests the closest ones.
            CompressError: the target is not a subclass of the registry's base.
        """
        self._load_entry_points()
        if name not in self._targets:
            raise UsageError(f"Unknown {self.kind} {name!r}.", fix=did_you_mean(name, self._targets))
        target = self._targets[name]
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
        return target

    def origin(self, name: str) -> str:
        """Return ``module:Class`` of a registered target without importing it."""
        self._load_entry_points()
        target = self._targets[name]
        return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load_entry_points()
        return name in self._targets

    def _load_entry_points(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            for point in entry_points(group=group):
                self.register(point.name, point.value)
