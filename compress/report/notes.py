"""What the passes put on record, in words: one line per matter, named for a reader instead of for a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.report import numbers
from compress.report.model import Step, Unit

Pairs = list[tuple[str, str]]
Notes = dict[str, Any]
_ELSEWHERE = {"sensitivity", "sensitivity_examples", "sensitivity_together_db"}
"""Notes that a section of the report shows."""


def note_pairs(step: Step, unit: Unit = "percent") -> Pairs:
    """Return label and text of everything that a step put on record.

    Args:
        step: of a report.
        unit: of the task's metric, for scores on validation.

    Returns:
        First what is known to its pass, worded; then the rest as it is. A note whose form is not the expected
        one is shown as it is. What has a section of its own is left out.
    """
    notes: Notes = {key: value for key, value in step.notes.items() if key not in _ELSEWHERE}
    own = dict(notes)
    writer = _WRITERS.get(step.name)
    try:
        pairs = writer(notes, unit) if writer else []
    except (AttributeError, KeyError, TypeError, ValueError):
        notes, pairs = own, []
    return [*pairs, *((label(key), numbers.value_text(value)) for key, value in notes.items())]


def label(key: str) -> str:
    return key.replace("_", " ")


def _prune(notes: Notes, unit: Unit) -> Pairs:
    pairs: Pairs = []
    dense = notes.pop("dense", None)
    if dense is not None:
        kept, total = notes.pop("layers"), dense["layers"]
        which = "" if len(kept) == total else f" ({', '.join(str(i + 1) for i in kept)})"
        pairs.append(("layers kept", f"{len(kept)} of {total}{which}"))
        pairs.append(_totals("heads", notes.pop("heads"), total * dense["heads"]))
        pairs.append(_totals("neurons", notes.pop("neurons"), total * dense["neurons"]))
        notes.pop("kept_heads", None)
    if "macs_before" in notes:
        before, after = notes.pop("macs_before"), notes.pop("macs_after")
        notes.pop("kept_macs", None)
        pairs.append(("MACs", f"{_millions(before)} → {_millions(after)} million ({numbers.share(after / before, 1)})"))
    return pairs + _search(notes.pop("search", {}))


def _search(search: Notes) -> Pairs:
    pairs: Pairs = []
    if "kept" in search:
        ((what, asked),) = search["budget"].items()
        name = {"macs": "MACs", "params": "weights"}.get(what, what)
        pairs.append(
            (f"{name} of the encoder", f"{numbers.share(search['kept'], 1)} (asked: {numbers.share(asked, 1)})")
        )
    if "predicted_speedup" in search:
        tries, table = len(search["attempts"]), search.get("table", {})
        pairs.append(("searched on", f"{search['target']}, deployed in {search['deploy']}"))
        pairs.append(("timed by the search", f"{tries} model{'s' if tries > 1 else ''}"))
        if table:
            fit = numbers.share(table["worst_fit"], 1)
            pairs.append(("latency table", f"fitted to {table['variants']} timed models, off by at most {fit}"))
    return pairs


def _totals(name: str, kept: list[int], full: int) -> tuple[str, str]:
    return f"{name} kept", f"{numbers.count(sum(kept))} of {numbers.count(full)} ({numbers.share(sum(kept) / full, 1)})"


def _trim(notes: Notes, unit: Unit) -> Pairs:
    pairs: Pairs = []
    if "tokens" in notes:
        kept, total, used = notes.pop("tokens"), notes.pop("tokens_before"), notes.pop("tokens_used")
        share = numbers.share(kept / total, 1)
        pairs.append(("vocabulary kept", f"{numbers.count(kept)} of {numbers.count(total)} tokens ({share})"))
        pairs.append(("tokens in the texts", numbers.count(used)))
    if "positions" in notes:
        pairs.append(("longest input", f"{numbers.count(notes.pop('positions'))} tokens"))
    if "proved_on" in notes:
        pairs.append(("equal outputs on", f"{numbers.count(notes.pop('proved_on'))} training texts"))
    for split, rates in notes.pop("rates", {}).items():
        pairs.append((f"tokens of {split}", _rates(rates)))
    return pairs


def _rates(rates: Notes) -> str:
    unknown = f"{numbers.share(rates['unknown_before'])} → {numbers.share(rates['unknown_after'])}"
    lengths = f"{numbers.fixed(rates['tokens_before'], 1)} → {numbers.fixed(rates['tokens_after'], 1)}"
    return (
        f"unknown {unknown}; cut otherwise: {numbers.share(rates['words_changed'])} of words, "
        f"{numbers.share(rates['texts_changed'])} of {numbers.count(rates['texts'])} texts; length {lengths}"
    )


def _factorize(notes: Notes, unit: Unit) -> Pairs:
    pairs: Pairs = []
    if "times" in notes:
        where = f"{notes.pop('deploy')} on {notes.pop('target')}"
        times = notes.pop("times")
        pairs += [(f"speed of {name}", f"{_speed(timed)}, {where}") for name, timed in times.items()]
        pairs.append(("chosen", notes.pop("chosen")))
    for path, it in notes.pop("factored", {}).items():
        sizes = f"{numbers.millions(it['weights_before'])} → {numbers.millions(it['weights_after'])} million weights"
        pairs.append((path, f"rank {it['rank']}, {sizes}, {numbers.share(it['lost'])} lost"))
    return pairs + _left(notes.pop("left", {}))


def _sparsify(notes: Notes, unit: Unit) -> Pairs:
    kept = {path: it["energy_kept"] for path, it in notes.pop("sparse").items()}
    left, least = notes.pop("left"), min(kept, key=lambda path: kept[path])
    zeros = f"50 % of the weights of these layers, {numbers.share(notes.pop('zeros'), 1)} of the whole model"
    mean = sum(kept.values()) / len(kept)
    energy = f"{numbers.share(mean, 1)} on average, least {numbers.share(kept[least], 1)} in {least}"
    return [
        ("2:4 sparse", f"{numbers.count(len(kept))} linear layers, by {notes.pop('by')}"),
        ("zeros", zeros),
        ("squares of the weights kept", energy),
        *_left(left),
        ("speed", notes.pop("speed")),
    ]


def _left(left: Mapping[str, str]) -> Pairs:
    reasons: dict[str, int] = {}
    for reason in left.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    told = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
    return [("left as they were", told)] if told else []


def _speed(timed: Mapping[str, float]) -> str:
    return f"{numbers.ratio(timed['value'])} {numbers.interval(timed['low'], timed['high'])}"


def _quantize(notes: Notes, unit: Unit) -> Pairs:
    """What a search tried, what stays in float32 and whether products saturate have a section of their own."""
    for name in ("search", "placement", "saturation", "trail"):
        notes.pop(name, None)
    isa = notes.pop("isa", None)
    return [("instruction set", f"{isa['name']} ({', '.join(isa['flags']) or 'no known flags'})")] if isa else []


_ENGINE = (
    *("engines", "library", "version", "device", "compute_capability", "driver", "precision", "float_precision"),
    *("tf32", "profiles", "timing_cache", "refit", "strip_plan", "version_compatible", "exclude_lean_runtime"),
    *("hardware_compatibility", "optimization_level", "workspace_bytes"),
)
"""Notes that the section about engines shows, or the step's configuration."""


def _build(notes: Notes, unit: Unit) -> Pairs:
    if "engines" in notes:
        for name in _ENGINE:
            notes.pop(name, None)
    messages = notes.pop("messages", [])
    pairs = [("TensorRT said", "; ".join(messages))] if messages else []
    for key, what in (("onnx_sha256", "ONNX file, sha256"), ("plan_sha256", "engine, sha256")):
        if key in notes:
            pairs.append((what, numbers.short_digest(notes.pop(key))))
    return pairs


def _distill(notes: Notes, unit: Unit) -> Pairs:
    pairs: Pairs = []
    if "teacher_layers" in notes:
        kept = notes.pop("teacher_layers")
        pairs.append(("layers of the teacher", ", ".join(str(i + 1) for i in kept)))
    if "validation" in notes:
        best, before = notes.pop("validation"), notes.pop("validation_before")
        epochs, kept_epoch = notes.pop("validation_by_epoch"), notes.pop("kept_epoch", None)
        of = f", epoch {kept_epoch} of {len(epochs)}" if kept_epoch else ""
        metric = f"{notes.pop('metric')} on validation"
        pairs.append((metric, f"{numbers.metric(before, unit)} → {numbers.metric(best, unit)}{of}"))
        pairs.append(("by epoch", ", ".join(numbers.metric(score, unit) for score in epochs)))
    if "teacher_validation" in notes:
        pairs.append(("of the teacher", numbers.metric(notes.pop("teacher_validation"), unit)))
    if "validation_by_seed" in notes:
        pairs += _seeds(notes, unit)
    for key, name in (("loss_by_epoch", "loss"), ("divergence_by_epoch", "divergence from teacher")):
        if key in notes:
            losses = notes.pop(key)
            pairs.append((name, f"{numbers.fixed(losses[0], 3)} → {numbers.fixed(losses[-1], 3)}"))
    if "examples" in notes:
        unlabelled = notes.pop("unlabelled", 0)
        extra = f", {numbers.count(unlabelled)} of them unlabelled" if unlabelled else ""
        pairs.append(("examples", f"{numbers.count(notes.pop('examples'))}{extra}"))
    if "sparse_layers" in notes:
        pairs.append(("2:4 sparse", f"still, in {numbers.count(notes.pop('sparse_layers'))} linear layers"))
    if "layer_pairs" in notes:
        matched = ", ".join(f"{a + 1}–{b + 1}" for a, b in notes.pop("layer_pairs"))
        pairs.append(("matched layers", f"{matched} (student–teacher)" if matched else "none"))
    return pairs


def _qat(notes: Notes, unit: Unit) -> Pairs:
    pairs = _distill(notes, unit)
    if "compared_with_training" in notes:
        it = notes.pop("compared_with_training")
        gaps = f"median {it['median']:g}, mean {it['mean']:g}, largest {it['largest']:g} standard deviations of a logit"
        pairs.append(("graph against training", f"{gaps}; same decision on {numbers.share(it['agreement'], 1)}"))
    if "range_growth" in notes:
        it = notes.pop("range_growth")
        least, most = (numbers.share(it[end], 1) for end in ("least", "most"))
        pairs.append(("ranges after training", f"{least} to {most} of the calibrated ones"))
    return pairs


def _seeds(notes: Notes, unit: Unit) -> Pairs:
    scores = notes.pop("validation_by_seed")
    mean, deviation = notes.pop("validation_mean"), notes.pop("validation_deviation")
    spread = f"mean {numbers.metric(mean, unit)}, standard deviation {numbers.metric(deviation, unit)}"
    each = ", ".join(f"{seed}: {numbers.metric(score, unit)}" for seed, score in scores.items())
    return [(f"{len(scores)} seeds", f"{spread} ({each})")]


def _millions(value: int) -> str:
    return numbers.fixed(value / 1e6, 1)


_WRITERS: dict[str, Callable[[dict[str, Any], Unit], Pairs]] = {
    "build": _build,
    "distill": _distill,
    "factorize": _factorize,
    "prune": _prune,
    "qat": _qat,
    "quantize": _quantize,
    "sparsify": _sparsify,
    "trim": _trim,
}
