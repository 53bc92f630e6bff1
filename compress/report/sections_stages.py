"""The section that goes from the model to the artifact to ship, stage by stage."""

from __future__ import annotations

from compress.report import numbers
from compress.report.blocks import Block, Cell, Column, Fall, Fold, Heading, Section, Table, TableRow, Tag, Waterfall
from compress.report.model import Report, Stage
from compress.report.sections_results import difference_cell_of, metric_title

_INTRO = (
    "What every pass on the way to the artifact changed. Times are means of one input on the same target; "
    "a gain compares with the stage before."
)


def stages(report: Report) -> Section | None:
    """One waterfall per target: the target of the verdict open, the others folded."""
    if not report.stages:
        return None
    first, *others = targets(report)
    blocks: list[Block] = [Heading(first), waterfall(report, first)]
    blocks += [Fold(f"The same on {name}", (waterfall(report, name),)) for name in others]
    return Section("stages", "Stage by stage", tuple(blocks), _INTRO)


def targets(report: Report) -> list[str]:
    """Return the targets that have stages, that of the verdict first."""
    names = dict.fromkeys(stage.target for stage in report.stages)
    return sorted(names, key=lambda name: name != report.verdict.target)


def waterfall(report: Report, target: str) -> Waterfall:
    """Return the stages of one target as a figure and as a table."""
    chain = [stage for stage in report.stages if stage.target == target]
    name, unit = metric_title(report)
    return Waterfall(
        title=f"Time of one input on {target} after each stage",
        x_title="mean time of one input, ms",
        accuracy_title=f"{name}, {unit}" if unit else name,
        falls=tuple(_fall(report, stage) for stage in chain),
        summary=_sentence(chain, target),
        table=_table(report, chain),
    )


def _fall(report: Report, stage: Stage) -> Fall:
    return Fall(
        step=stage.step,
        what=stage.what,
        value=stage.latency_ms,
        time=f"{numbers.milliseconds(stage.latency_ms)} ms" if stage.latency_ms is not None else "",
        gain=f"({numbers.ratio(stage.gain)})" if stage.gain is not None else "",
        accuracy=numbers.metric(stage.accuracy, stage.unit) if stage.accuracy is not None else "",
        change=numbers.points(stage.points, stage.unit) if stage.points is not None else "",
        size=numbers.megabytes(stage.size_bytes),
        reason=stage.reason,
        ships=_ships(report, stage),
    )


def _ships(report: Report, stage: Stage) -> bool:
    return stage.step == report.verdict.step and report.verdict.target in (stage.target, None)


def _sentence(chain: list[Stage], target: str) -> str:
    last = chain[-1]
    told = [f"{len(chain)} stage{'s' if len(chain) > 1 else ''} to {last.step} on {target}"]
    if last.speedup is not None:
        told.append(f"{numbers.ratio(last.speedup)} as fast as the first")
    if last.size_ratio is not None:
        told.append(f"{numbers.share(last.size_ratio, 1)} of its size")
    drops = [stage for stage in chain if stage.points is not None and stage.points < 0]
    text = f"{told[0]}: {', '.join(told[1:])}." if len(told) > 1 else f"{told[0]}."
    if drops:
        worst = min(drops, key=lambda stage: stage.points or 0.0)
        unit = " points" if worst.unit == "percent" else ""
        text += f" Most accuracy went with {worst.what}: {numbers.points(worst.points, worst.unit)}{unit}."
    return text


def _table(report: Report, chain: list[Stage]) -> Table:
    name, unit = metric_title(report)
    columns = (
        Column("step", "stage", numeric=False),
        Column("what", "what", numeric=False),
        Column("mean", "mean", "ms", "mean time of one input"),
        Column("gain", "gain", "", "over the stage before"),
        Column("speedup", "speed-up", "", "over the first stage"),
        Column("accuracy", name, unit),
        Column("points", "Δ", "points" if unit else "", "from the stage before"),
        Column("size", "size", "MB"),
        Column("ratio", "of the first", "%", "size over that of the first stage"),
    )
    return Table(columns, tuple(_row(report, stage) for stage in chain))


def _row(report: Report, stage: Stage) -> TableRow:
    ships = _ships(report, stage)
    return TableRow(
        (
            Cell(stage.step, tags=(Tag("ship", "good"),) if ships else ()),
            Cell(stage.what),
            Cell(numbers.milliseconds(stage.latency_ms), f"no time: {stage.reason}" if stage.reason else ""),
            Cell(numbers.ratio(stage.gain)),
            Cell(numbers.ratio(stage.speedup)),
            Cell(numbers.metric(stage.accuracy, stage.unit)),
            difference_cell_of(stage.points, stage.unit),
            Cell(numbers.megabytes(stage.size_bytes)),
            Cell(numbers.MISSING if stage.size_ratio is None else numbers.fixed(100 * stage.size_ratio, 1)),
        ),
        strong=ships,
    )
