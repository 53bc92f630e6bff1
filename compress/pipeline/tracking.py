"""Experiment trackers through accelerate: off unless named, fed with training metrics and the rows of the report.

Nothing here is imported, opened or sent while no tracker is named.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import MissingCapabilityError, UsageError, did_you_mean
from compress.passes.base import Progress
from compress.progress import Observed, StepStarted

if TYPE_CHECKING:
    from compress.report.model import Report, Row

KINDS = ("tensorboard", "mlflow", "wandb")
"""Trackers, by the name of accelerate's, of the package and of the extra that brings it."""
_PLAIN = re.compile(r"[^\w\-./ ]+")


class Tracking:
    """A progress sink that also feeds trackers; one that fails is dropped with a line and never stops a run.

    Args:
        names: ``tensorboard[:DIR]``, ``mlflow[:URI]``, ``wandb[:PROJECT]`` each.
        run: name of the recipe.
        out: folder of the run; TensorBoard writes into it unless it is told where.
        emit: the sink for people.
        settings: what is known before the run starts, name -> value.

    Raises:
        UsageError: there is no such tracker.
        MissingCapabilityError: its package is not installed.
    """

    def __init__(
        self, names: Sequence[str], run: str, out: Path, emit: Progress, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._emit = emit
        self._step = "run"
        self._settings = {key: value for key, value in (settings or {}).items() if value is not None}
        self._waiting = [_opener(name, run, out) for name in dict.fromkeys(names)]
        self._open: list[Any] = []

    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        self._emit(message, done, total)
        if isinstance(message, StepStarted):
            self._step = message.label.rpartition("] ")[2]
        if isinstance(message, Observed) and message.values:
            self._log({f"{self._step}/{name}": value for name, value in message.values.items()}, done)

    def finish(self, report: Report | None) -> None:
        """Log the rows of the report, if there is one, and close every tracker."""
        if report is not None and (self._waiting or self._open):
            values: dict[str, float] = {}
            for row in report.rows:
                values |= row_values(row)
            self._log(values, 0)
        for tracker in self._open:
            self._try(tracker, tracker.finish)
        self._open = []

    def _log(self, values: Mapping[str, float], step: int | None) -> None:
        self._start()
        plain = {_PLAIN.sub("_", name): float(value) for name, value in values.items()}
        for tracker in list(self._open):
            self._try(tracker, partial(tracker.log, plain, step=step))

    def _start(self) -> None:
        """Open what was named: when the first number comes, so that the run's folder is there."""
        waiting, self._waiting = self._waiting, []
        for opener in waiting:
            try:
                tracker = opener()
                tracker.store_init_configuration(self._settings)
            except Exception as error:  # a tracker's own errors are of no common type
                self._emit(f"      tracker not used: {type(error).__name__}: {_first_line(error)}")
            else:
                self._open.append(tracker)

    def _try(self, tracker: Any, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # the same
            self._emit(f"      tracker {tracker.name} dropped: {type(error).__name__}: {_first_line(error)}")
            self._open = [other for other in self._open if other is not tracker]


def row_values(row: Row) -> dict[str, float]:
    """Return the figures of a row by name: ``results/STEP/TARGET/accuracy``."""
    if row.status != "ok":
        return {}
    latency, accuracy, change = row.latency, row.accuracy, row.difference
    second = row.end_to_end.latency.p50_ms if row.end_to_end else None
    found = {
        accuracy.metric if accuracy else "accuracy": accuracy.value if accuracy else None,
        "difference": change.points if change else None,
        "p50_ms": latency.p50_ms if latency else None,
        "end_to_end_p50_ms": second,
        "throughput_per_s": row.throughput_per_s,
        "size_bytes": row.size_bytes,
        "peak_rss_bytes": row.peak_rss_bytes,
        **{f"speedup over {name}": speedup.ratio for name, speedup in row.speedups.items()},
    }
    return {f"results/{row.step}/{row.target}/{name}": float(v) for name, v in found.items() if v is not None}


def _opener(text: str, run: str, out: Path) -> Callable[[], Any]:
    """Return what opens a tracker; complain now, before any work, if it cannot."""
    kind, _, place = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"There is no tracker {kind!r}.", value=text, fix=did_you_mean(kind, KINDS))
    if importlib.util.find_spec(kind) is None:
        raise MissingCapabilityError(
            f"The tracker {kind!r} needs a package that is not installed.",
            value=kind,
            fix=f'Install it: pip install "mcompress[{kind}]".',
        )

    def begin() -> Any:
        from accelerate import tracking

        if kind == "tensorboard":
            tracker = tracking.TensorBoardTracker(run, Path(place).expanduser() if place else out / "tensorboard")
        elif kind == "mlflow":
            if place:
                import mlflow

                mlflow.set_tracking_uri(place)
            tracker = tracking.MLflowTracker(experiment_name="mcompress", run_name=run)
        else:
            tracker = tracking.WandBTracker(place or "mcompress", name=run)
        tracker.start()
        return tracker

    return begin


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
