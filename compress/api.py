"""``compress.run``: a recipe in, a finished run folder with artifacts and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import UsageError
from compress.recipe import Recipe, load_recipe
from compress.resources import space_explained
from compress.store import Store

if TYPE_CHECKING:
    from compress.passes.base import Progress
    from compress.pipeline.measuring import Measured
    from compress.pipeline.planning import RunPlan
    from compress.pipeline.running import RunState
    from compress.report.model import Report


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: what was written: deliverables, report.json, report.md, report.html.
        report: the record.
        failed_gates: deliverables that a gate held back and that are not optional.
    """

    folder: Path
    report: Report
    failed_gates: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return 1 if self.failed_gates else 0


def run(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    overrides: Sequence[str] = (),
    variables: Sequence[str] = (),
    store: Store | None = None,
    emit: Progress | None = None,
    command: str | None = None,
    examples: bool = False,
    track: Sequence[str] = (),
) -> RunResult:
    """Run a recipe: apply its steps, check and measure them, write deliverables and the report.

    Args:
        recipe: a recipe, a YAML file, or the name of a built-in one.
        out: folder of the run; the same folder again resumes it.
        overrides: ``step.option=value`` or ``key.option=value`` each.
        variables: ``NAME=value`` each, for ``${NAME}`` in the recipe.
        store: where finished steps are kept; None = ``MCOMPRESS_HOME``, else ``~/.cache/mcompress``.
        emit: progress sink, ``emit(message, done, total)``.
        command: the command line to print in the report; None = made from the arguments.
        examples: whether the report may quote examples whose answer changed; else it holds no dataset text.
        track: experiment trackers besides those of the recipe: ``tensorboard[:DIR]``, ``mlflow[:URI]``,
            ``wandb[:PROJECT]``.

    Raises:
        CompressError: see ``compress.errors``; a failed gate is not an error but a result.
    """
    from compress.pipeline import folder
    from compress.pipeline.cards import write_cards
    from compress.pipeline.outcomes import write_outcomes
    from compress.pipeline.planning import make_plan
    from compress.pipeline.public import command_line, public_path
    from compress.pipeline.source import trusting_source
    from compress.pipeline.summary import summarise, write_samples
    from compress.pipeline.tracking import Tracking
    from compress.report.files import read_report, write_report

    if isinstance(recipe, Recipe) and (overrides or variables):
        raise UsageError(
            "Overrides and variables belong to a recipe that is still to be read.",
            value=", ".join([*overrides, *variables]),
            fix="Pass them to `load_recipe`, or give `run` the file or the name.",
        )
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides, variables)
    place, kept = Path(out), store or Store.default()
    sink = Tracking(
        [*loaded.run.track, *track],
        loaded.name,
        place,
        emit or _silent,
        {"recipe": loaded.name, "model": public_path(loaded.model or ""), "seed": loaded.run.seed},
    )
    plan, summary = make_plan(loaded), None
    folder.check_place(place, loaded.name)
    with (
        space_explained(kept.root, place),
        folder.occupied(place),
        kept.serving(place, sink),
        trusting_source(loaded, sink),
        kept.temporary_files() as work,
    ):
        try:
            state, measured = _work(plan, place, kept, work, sink)
            name = loaded.name if isinstance(recipe, Recipe) else str(recipe)
            flags = ("--examples",) if examples else ()
            line = command or command_line(loaded, name, "DIR", overrides, variables, flags=flags)
            summary = summarise(state, measured, line, examples=examples)
        finally:
            sink.finish(summary)
        write_samples(measured, place / "measurements.json")
        write_outcomes(state, measured, place)
        write_report(summary, place)
        if (place / "ingested").is_dir():
            from compress.kit.ingesting import reapply

            for sentence in reapply(place):
                sink(sentence)
            summary = read_report(place)
        write_cards(summary, place)
        folder.finish(place)
    return RunResult(place, summary, tuple(state.failed_gates))


def _work(plan: RunPlan, place: Path, store: Store, work: Path, sink: Progress) -> tuple[RunState, Measured]:
    from compress.pipeline.measuring import measure_run
    from compress.pipeline.running import run_steps
    from compress.progress import StepStarted

    state = run_steps(plan, place, store, sink)
    sink(StepStarted("measure", "accuracy, latency and memory of every stage, each in a fresh process"))
    return state, measure_run(state, work, sink)


def _silent(message: str, done: int | None = None, total: int | None = None) -> None:
    pass
