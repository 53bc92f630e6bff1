"""Sections that show what was done and with what: gates, parity, steps, data, environment, reproduction, limits."""

from __future__ import annotations

from compress.report import numbers
from compress.report.blocks import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Facts,
    Fold,
    Heading,
    Paragraph,
    Section,
    Table,
    TableRow,
    Tone,
)
from compress.report.model import Environment, Gate, Report, Step, Unit
from compress.report.notes import label, note_pairs

_TONES: dict[str | None, Tone] = {"pass": "good", "fail": "bad", "unresolved": "warn"}
_WORDS: dict[str | None, str] = {"pass": "pass", "fail": "fail", "unresolved": "not resolvable", None: "not demanded"}
_STEP = Column("step", "step", numeric=False)


def gates(report: Report) -> Section:
    """Accuracy gates and parity, both decided without the test split."""
    blocks: list[Block] = [Heading("Gates", "decided on validation, against the recipe's model")]
    lines = tuple(_gate_row(step, gate) for step in report.steps for gate in step.gates)
    texts = tuple(f"{step.id}: {gate.text}" for step in report.steps for gate in step.gates if gate.text)
    blocks.append(Table(_GATES, lines, texts) if lines else Paragraph("No step declares a gate.", "muted"))
    blocks.append(Heading("Parity", "outputs of a step and of its parent on the same real inputs"))
    parity = tuple(_parity_row(step) for step in report.steps if step.parity)
    blocks.append(Table(_PARITY, parity) if parity else Paragraph("No step was compared with its parent.", "muted"))
    return Section("gates", "Gates and parity", tuple(blocks))


_GATES = (
    _STEP,
    Column("limit", "gate", numeric=False),
    Column("baseline", "model", meaning="value of the recipe's model; percent, unless the metric is no share"),
    Column("value", "step", meaning="value of this step"),
    Column("points", "Δ", meaning="step minus model, with the paired interval; percentage points"),
    Column("n", "n", "", "validation examples"),
    Column("verdict", "verdict", "", "not resolvable: the interval holds the limit at this n", numeric=False),
    Column("delivered", "delivered", numeric=False),
)

_PARITY = (
    _STEP,
    Column("reference", "compared with", numeric=False),
    Column("samples", "samples"),
    Column("max", "largest", "", "largest absolute difference of an output"),
    Column("mean", "mean", "", "mean absolute difference of the outputs"),
    Column("cosine", "cosine", "", "cosine similarity of the outputs"),
    Column("agreement", "agreement", "", "share of equal predictions"),
    Column("tolerance", "tolerance", numeric=False),
    Column("verdict", "verdict", numeric=False),
)


def _gate_row(step: Step, gate: Gate) -> TableRow:
    return TableRow(
        (
            Cell(step.id),
            Cell(f"{gate.metric}: {gate.limit}"),
            Cell(numbers.metric(gate.baseline, gate.unit)),
            Cell(numbers.metric(gate.value, gate.unit)),
            Cell(numbers.points(gate.points, gate.unit), numbers.points_interval(gate.low, gate.high, gate.unit)),
            Cell(numbers.count(gate.n)),
            Cell(_WORDS[gate.verdict], tone=_TONES[gate.verdict]),
            Cell("yes" if gate.delivered else "no", tone="plain" if gate.delivered else "bad"),
        )
    )


def _parity_row(step: Step) -> TableRow:
    parity = step.parity
    if parity is None:
        return TableRow((Cell(step.id),))
    return TableRow(
        (
            Cell(step.id),
            Cell(parity.reference),
            Cell(numbers.count(parity.samples)),
            Cell(numbers.tiny(parity.max_abs)),
            Cell(numbers.tiny(parity.mean_abs)),
            Cell(numbers.fixed(parity.cosine, 6)),
            Cell(numbers.share(parity.agreement)),
            Cell(parity.tolerance or "none", tone="plain" if parity.tolerance else "muted"),
            Cell(_WORDS[parity.verdict], tone=_TONES.get(parity.verdict, "muted")),
        )
    )


_STEPS = (
    _STEP,
    Column("pass", "pass", numeric=False),
    Column("from", "from", numeric=False),
    Column("kind", "kind", numeric=False),
    Column("size", "size", "MB"),
    Column("parameters", "weights", "million"),
    Column("macs", "MACs", "million", "multiply-accumulates of one 128-token input"),
    Column(
        "seconds",
        "time",
        "",
        "wall time of the work when it was done",
    ),
    Column("digest", "digest", "", "first 12 characters of the sha256 of the payload", numeric=False),
)


def steps(report: Report) -> Section:
    """What each step did: one table, then its resolved configuration and what it put on record."""
    blocks: list[Block] = [Table(_STEPS, tuple(_step_row(step) for step in report.steps))]
    unit: Unit = next((row.accuracy.unit for row in report.rows if row.accuracy), "percent")
    for step in report.steps:
        config = [(label(key), numbers.value_text(value)) for key, value in step.config.items()]
        pairs = (*config, *note_pairs(step, unit))
        if pairs:
            blocks.append(Fold(f"{step.id}: {step.name}", (Facts(pairs),)))
    return Section("steps", "What each step did", tuple(blocks))


def _step_row(step: Step) -> TableRow:
    parents = ", ".join(p if role == "model" else f"{role}: {p}" for role, p in step.parents.items())
    head = (Cell(step.id), Cell(step.name), Cell(parents or numbers.MISSING, tone="muted"))
    if step.status != "done":
        tone: Tone = "bad" if step.status == "failed" else "muted"
        return TableRow((*head, Cell(f"{step.status}: {step.reason or 'no reason recorded'}", tone=tone, span=6)))
    return TableRow(
        (
            *head,
            Cell(step.kind or numbers.MISSING, ", ".join(step.traits)),
            Cell(numbers.megabytes(step.size_bytes)),
            Cell(numbers.millions(step.parameters)),
            Cell(numbers.fixed(step.macs / 1e6 if step.macs is not None else None, 1)),
            Cell(numbers.duration(step.seconds), "from the store" if step.cached else ""),
            Cell(numbers.short_digest(step.digest), tone="muted"),
        )
    )


def subject(report: Report) -> Section:
    """The model that went in."""
    it = report.subject
    pairs = (
        ("model", it.model),
        *((("Hugging Face hub", it.hub),) if it.hub and it.hub != it.model else ()),
        ("task", f"{it.task}, {it.problem.replace('_', ' ')}"),
        ("labels", numbers.count(it.labels) if it.labels else "none (regression)"),
        ("weights", f"{numbers.millions(it.parameters)} million" if it.parameters is not None else "not counted"),
        ("size", f"{numbers.megabytes(it.size_bytes)} MB" if it.size_bytes is not None else "not measured"),
        ("digest", it.digest),
    )
    notes = (Bullets(it.notes),) if it.notes else ()
    return Section("model", "Model", (Facts(pairs), *notes))


def data(report: Report) -> Section:
    """Splits with counts and digests, overlaps, calibration."""
    it = report.data
    columns = (
        Column("split", "split", numeric=False),
        Column("rows", "rows"),
        Column("source", "source", numeric=False),
        Column("digest", "digest", "", "first 12 characters of the sha256 of the normalised rows", numeric=False),
    )
    lines = tuple(
        TableRow(
            (
                Cell(split.name),
                Cell(numbers.count(split.rows)),
                Cell(split.source, f"hub: {split.hub}" if split.hub else ""),
                Cell(numbers.short_digest(split.digest), tone="muted"),
            )
        )
        for split in it.splits
    )
    blocks: list[Block] = [Table(columns, lines)]
    overlaps = tuple(
        f"{o.first} and {o.second}: {numbers.count(o.count)} rows in both, {o.action}"
        if o.count
        else f"{o.first} and {o.second}: no row in both"
        for o in it.overlaps
    )
    blocks.append(Bullets(overlaps) if overlaps else Paragraph("Overlap between splits: not measured.", "muted"))
    if it.calibration is not None:
        asked, used = numbers.count(it.calibration.asked), numbers.count(it.calibration.used)
        blocks.append(Paragraph(f"Calibration: {used} samples used of {asked} asked for."))
    if it.preprocessing:
        blocks.append(Paragraph(f"Preprocessing: {it.preprocessing}."))
    if it.notes:
        blocks.append(Bullets(it.notes))
    intro = "Every decision about accuracy (gates, search, checkpoints) reads validation. "
    if it.evaluated == "test":
        intro += "Test is read once, for this report."
    else:
        intro += f"The accuracies of this report are on {it.evaluated}: there is no test split."
    return Section("data", "Data", tuple(blocks), intro)


def environment(report: Report) -> Section:
    """This machine, then every other one that results came from."""
    blocks = _machine(report.environment, (("mcompress", report.version),))
    for target in report.targets:
        if target.environment:
            blocks.append(Heading(target.name, f"{target.evidence} on another machine"))
            blocks += _machine(target.environment, ())
    return Section("environment", "Environment", tuple(blocks))


def _machine(it: Environment, more: tuple[tuple[str, str], ...]) -> list[Block]:
    pairs = [
        ("CPU", it.cpu),
        ("instruction sets", ", ".join(it.flags) or "not recorded"),
        ("cores", numbers.count(it.cores) if it.cores is not None else "not recorded"),
        ("memory", f"{numbers.gigabytes(it.memory_bytes)} GB" if it.memory_bytes is not None else "not recorded"),
        ("GPU", it.gpu or "none found"),
        ("system", it.os),
        ("Python", it.python),
        *more,
        *it.notes.items(),
    ]
    blocks: list[Block] = [Facts(tuple(pairs))]
    if it.packages:
        blocks.append(Fold(f"{len(it.packages)} packages", (Facts(tuple(sorted(it.packages.items()))),)))
    return blocks


def reproduce(report: Report) -> Section:
    it = report.reproduce
    changed = " with changes that are not committed" if it.dirty else ""
    code = [("mcompress", f"{report.version}, commit {it.commit}{changed}")] if it.commit else []
    installed = [("installed packages, sha256", it.installed)] if it.installed else []
    blocks: tuple[Block, ...] = (
        Code("\n".join(it.commands), "sh"),
        *([Facts((*code, *installed))] if code or installed else []),
        *([Paragraph(it.tolerance)] if it.tolerance else []),
        Paragraph(f"Seed {it.seed}. The resolved recipe, variables unexpanded:"),
        Code(it.recipe.rstrip("\n"), "yaml"),
        Paragraph("The raw samples of a run are in measurements.json, beside report.json.", "muted"),
    )
    return Section("reproduce", "Reproduce", blocks)


def limits(report: Report) -> Section:
    blocks = (Bullets(report.limits),) if report.limits else (Paragraph("None recorded.", "muted"),)
    return Section("limits", "Limits", blocks, "What these numbers do not say.")
