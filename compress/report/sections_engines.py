"""What TensorRT engines run: types, conversions, attention, memory."""

from __future__ import annotations

from compress.report import numbers
from compress.report.blocks import Block, Bullets, Cell, Column, Facts, Fold, Section, Table, TableRow
from compress.report.engine_model import Engine, EngineLayers
from compress.report.model import Report

_COLUMNS = (
    Column("engine", "engine", "", "dynamic, or the one shape that it takes", numeric=False),
    Column("library", "built by", numeric=False),
    Column(
        "precision",
        "precision",
        "",
        "of the ONNX file; fp32-strict is without TF32. Second line: of the layers that are not quantized",
        numeric=False,
    ),
    Column("size", "size", "MB"),
    Column("layers", "layers", "", "of the engine; the other columns count among them"),
    Column("types", "types", "", "layers that compute, by the narrowest type that they read", numeric=False),
    Column("conversions", "conversions", "", "layers that only change layout, only a type, only quantize"),
    Column("attention", "attention", "", "blocks that one kernel computes, of all", numeric=False),
    Column("weights", "weights", "MB", "on the device"),
    Column("activations", "activations", "MB", "and scratch of one execution context, largest shape"),
)


def engines(report: Report) -> Section | None:
    """One row for each engine; the rest of its record folded."""
    if not report.engines:
        return None
    blocks: list[Block] = [Table(_COLUMNS, tuple(_row(engine) for engine in report.engines))]
    sentences = [f"{name(engine)}: {finding}" for engine in report.engines for finding in engine.findings]
    if sentences:
        blocks.append(Bullets(tuple(sentences)))
    blocks += [Fold(f"{name(engine)}: record", (Facts(_facts(engine)),)) for engine in report.engines]
    intro = (
        "As TensorRT's inspector tells of the loaded engine; as built means that there was no GPU to load it on, and "
        "that the builder's own list is shown. Weights and activations are not all of a process: CUDA comes on top."
    )
    return Section("engines", "What the engine runs", tuple(blocks), intro)


def name(engine: Engine) -> str:
    """Return the step, and of an engine for a single shape that shape."""
    return f"{engine.step} ({_shape(engine.shape)})" if engine.shape else engine.step


def _row(engine: Engine) -> TableRow:
    precision = engine.float_precision if engine.float_precision != engine.precision else ""
    head = (
        Cell(engine.step, _shape(engine.shape) if engine.shape else "dynamic"),
        Cell(f"{engine.library} {engine.version}", engine.device),
        Cell(engine.precision, f"rest {precision}" if precision else ""),
        Cell(numbers.megabytes(engine.size_bytes)),
    )
    if engine.inspected is None:
        return TableRow((*head, Cell(f"not inspected: {engine.not_inspected}", tone="muted", span=6)))
    return TableRow((*head, *_layers(engine.inspected)))


def _layers(it: EngineLayers) -> tuple[Cell, ...]:
    computing = sum(it.precisions.values())
    types = ", ".join(
        f"{name} {numbers.count(count)} ({numbers.share(count / computing, 0)})"
        for name, count in it.precisions.items()
    )
    attention = f"{min(it.fused_attention, it.attention)} of {it.attention} fused" if it.attention else "none"
    return (
        Cell(numbers.count(it.layers), "as built" if it.source == "builder" else ""),
        Cell(types or numbers.MISSING),
        Cell(f"{it.reformats} layout, {it.casts} type, {it.quantizers} Q/DQ"),
        Cell(attention, tone="warn" if it.fused_attention < it.attention else "plain"),
        Cell(numbers.megabytes(it.weights_bytes)),
        Cell(numbers.megabytes(it.activation_bytes)),
    )


def _facts(engine: Engine) -> tuple[tuple[str, str], ...]:
    it = engine.inspected
    more = it.profile_activation_bytes if it and len(it.profile_activation_bytes) > 1 else ()
    pairs = (
        ("shapes (min, opt, max)", ", ".join(_shape(shape) for shape in engine.profile.values())),
        ("compute capability", engine.compute_capability or "none"),
        ("CUDA of the driver", engine.driver or "none"),
        ("options", ", ".join(engine.options) or "none"),
        ("timing cache", engine.timing_cache),
        ("build", numbers.duration(engine.seconds)),
        ("streamable weights", f"{numbers.megabytes(it.streamable_bytes)} MB" if it and it.streamable_bytes else ""),
        ("activations by profile", ", ".join(f"{numbers.megabytes(value)} MB" for value in more)),
    )
    return tuple((label, text) for label, text in pairs if text)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)
