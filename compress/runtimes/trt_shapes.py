"""Several engines of one model: a dynamic one, and one for each shape that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compress.artifact import Graph
from compress.runtimes.base import Session


class ByShape(Session):
    """The dynamic engine, and those for single shapes, each opened when its shape is first asked for.

    Args:
        session: opens the engine of a graph.
        fixed: shapes of all inputs by name, sorted -> graph of the engine for them.
    """

    def __init__(self, session: Callable[[str], Session], fixed: Mapping[Shapes, str]) -> None:
        self._session, self._fixed = session, fixed
        self._open: dict[str, Session] = {"model": session("model")}

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        return self._for(batch, graph).run(batch)

    def device_ms(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> float | None:
        return self._for(batch, graph).device_ms(batch)

    def _for(self, batch: Mapping[str, np.ndarray], graph: str) -> Session:
        if graph == "model":
            graph = next((name for shapes, name in self._fixed.items() if _is_of(batch, shapes)), graph)
        if graph not in self._open:
            self._open[graph] = self._session(graph)
        return self._open[graph]

    def placement(self) -> dict[str, Any]:
        return self._open["model"].placement() | {"engines": sorted(self._open)}

    def memory(self) -> dict[str, int]:
        """Torch's allocator is one for the whole process: any session tells of all."""
        return self._open["model"].memory()

    def close(self) -> None:
        for session in self._open.values():
            session.close()


Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def fixed_shapes(graphs: Mapping[str, Graph]) -> dict[Shapes, str]:
    """Return the graphs that are engines for one shape of each input."""
    found = {}
    for name, graph in graphs.items():
        shapes = tuple((value.name, tuple(n for n in value.shape if isinstance(n, int))) for value in graph.inputs)
        whole = all(len(sizes) == len(value.shape) for (_, sizes), value in zip(shapes, graph.inputs, strict=True))
        if name != "model" and whole:
            found[shapes] = name
    return found


def _is_of(batch: Mapping[str, np.ndarray], shapes: Shapes) -> bool:
    return all(name in batch and batch[name].shape == sizes for name, sizes in shapes)
