"""A model card: ``README.md`` of an artifact folder, as the Hugging Face hub reads it and as a person does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from compress.report import numbers
from compress.report.markdown import fence, text
from compress.report.model import Accuracy, Report, Row, Step

CARD_NAME = "README.md"
_LIBRARIES = {"torch": "transformers"}
_VARIABLE = re.compile(r"^\$\{\w+\}/")
_REDUCED = {"int8", "int4", "fp16", "bf16"}
_CHANGED = {"pruned", "distilled", "finetuned", "factorized", "trimmed", "sparse24"}
_AUTO = {
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
}
_WORDS = {
    "custom-code": "opened with Python code of the model's author, which runs with your rights and in no sandbox",
    "int8": "8-bit integer products",
    "int4": "4-bit weights",
    "fp16": "float16 weights",
    "bf16": "bfloat16 weights",
    "pruned": "heads, neurons or layers removed",
    "distilled": "trained to answer as a teacher does",
    "finetuned": "fine-tuned",
    "factorized": "factored matrices",
    "sparse24": "two of every four weights of the linear layers zero (2:4)",
    "trimmed": "a smaller vocabulary",
}


class Load(NamedTuple):
    """A snippet that opens what is in the folder, which it calls FOLDER."""

    language: str
    code: str


class Variant(NamedTuple):
    """One of the models in a folder.

    Attributes:
        file: its place in the folder.
        step: id of the step that made it; may be empty.
        traits: what was done to it.
        size_bytes: graph and weights.
    """

    file: str
    step: str
    traits: tuple[str, ...]
    size_bytes: int


class Folder(NamedTuple):
    """A folder that a card is about.

    Attributes:
        kind: of the artifact in it.
        graph: the file that holds the model.
        files: of the artifact.
        loads: how it is opened, where the layout is not the artifact's own.
        variants: the models in the folder.
        record: report and recipe that lie in it.
    """

    kind: str
    graph: str
    files: Sequence[str] = ()
    loads: Sequence[Load] = ()
    variants: Sequence[Variant] = ()
    record: Sequence[str] = ()


def render_card(report: Report, step: str, folder: Folder) -> str:
    """Return the card of the artifact that a step made.

    Args:
        report: of the run.
        step: its id.
        folder: in which it lies.
    """
    made = next(candidate for candidate in report.steps if candidate.id == step)
    rows = [row for row in report.rows if row.step == step]
    head = yaml.safe_dump(front_matter(report, made, rows, folder.kind), sort_keys=False, allow_unicode=True, width=100)
    loads = folder.loads or _usual_loads(folder.kind, report.subject.task, made.traits, folder.files, folder.graph)
    opening = list(map(_snippet, loads))
    if len(folder.variants) > 1:
        opening += ["## Files", _files(report, folder.variants)]
    if folder.record:
        opening += ["## On record", "\n".join(f"- [{name}]({name})" for name in folder.record)]
    return f"---\n{head}---\n\n" + "\n\n".join(_body(report, made, rows, folder.kind, opening)) + "\n"


def render_plain_card(name: str, task: str, traits: Sequence[str], folder: Folder) -> str:
    """Return the card of an artifact of which no report tells."""
    tag = {"pipeline_tag": task} if task in _AUTO else {}
    head = yaml.safe_dump({**tag, "tags": ["mcompress", folder.kind]}, sort_keys=False)
    done = "; ".join(_WORDS.get(trait, trait) for trait in traits)
    parts = [
        f"# {text(name)}",
        f"A model for {text(task)} as {text(folder.kind)}, made by mcompress{': ' + text(done) if done else ''}. "
        "No report came with it, so nothing is said here of its accuracy and speed.",
        "## Load it",
        *map(_snippet, folder.loads or _usual_loads(folder.kind, task, traits, folder.files, folder.graph)),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def front_matter(report: Report, step: Step, rows: list[Row], kind: str) -> dict[str, Any]:
    """Return the metadata: what it was made from, for what, with which result on which split."""
    found: dict[str, Any] = {}
    if report.subject.hub:
        found["base_model"] = report.subject.hub
        relation = _relation(step)
        if relation:
            found["base_model_relation"] = relation
    found["library_name"] = _LIBRARIES.get(kind, kind)
    if report.subject.task in _AUTO:  # the hub has no tag for the task of a plug-in
        found["pipeline_tag"] = report.subject.task
    hubs = list(dict.fromkeys(split.hub for split in report.data.splits if split.hub))
    if hubs:
        found["datasets"] = hubs
    metrics = list(dict.fromkeys(row.accuracy.metric for row in rows if row.accuracy))
    if metrics:
        found["metrics"] = metrics
    found["tags"] = list(dict.fromkeys(["mcompress", kind, *step.traits]))
    results = [_result(report, step, row, row.accuracy) for row in rows if row.accuracy]
    if results:
        found["model-index"] = [{"name": step.id, "results": results}]
    return found


def _relation(step: Step) -> str | None:
    traits = set(step.traits)
    if traits & _REDUCED:
        return "quantized"
    return "finetune" if traits & _CHANGED else None


def _result(report: Report, step: Step, row: Row, score: Accuracy) -> dict[str, Any]:
    split = next((s for s in report.data.splits if s.name == report.data.evaluated), None)
    source = _VARIABLE.sub("", split.source) if split else report.data.evaluated
    return {
        "task": {"type": report.subject.task},
        "dataset": {
            "name": source,
            "type": (split.hub if split else None) or "local",
            "split": report.data.evaluated,
        },
        "metrics": [{"type": score.metric, "value": round(score.value, 6), "name": f"{score.metric} on {row.target}"}],
        "source": {"name": f"mcompress {report.version}", "url": f"urn:sha256:{step.digest or report.subject.digest}"},
    }


def _body(report: Report, step: Step, rows: list[Row], kind: str, opening: list[str]) -> Iterator[str]:
    yield f"# {text(step.id)}"
    yield _what(report, step, kind)
    if kind != step.kind:
        yield f"Its figures below are those of the {text(step.kind or '')} artifact that it was converted from."
    if report.data.synthetic:
        yield "> **The data was generated: these accuracies say nothing about yours.**"
    yield "## Load it"
    yield from opening
    yield f"## Accuracy on {text(report.data.evaluated)}"
    yield _accuracy(rows)
    yield "## Speed, memory and size"
    yield _speed(report, rows)
    yield "## Limits"
    yield "\n".join(f"- {text(line)}" for line in _limits(report, step))
    yield "## How it was made"
    yield _made(report, step)
    yield "<details>\n<summary>Reproduce</summary>"
    yield fence("\n".join(report.reproduce.commands), "sh")
    yield fence(report.reproduce.recipe.rstrip("\n"), "yaml")
    yield "</details>"


def _snippet(load: Load) -> str:
    return fence(load.code, load.language)


def _files(report: Report, variants: Sequence[Variant]) -> str:
    lines = ["| file | step | changed | MB | gates |", "| --- | --- | --- | ---: | --- |"]
    known = {step.id: step for step in report.steps}
    for variant in variants:
        gates = known[variant.step].gates if variant.step in known else ()
        verdicts = ", ".join(f"{gate.metric}: {gate.verdict}" for gate in gates) or "none"
        done = ", ".join(variant.traits) or "nothing"
        lines.append(_line((variant.file, variant.step, done, numbers.megabytes(variant.size_bytes), verdicts)))
    return "\n".join(lines)


def _what(report: Report, step: Step, kind: str) -> str:
    subject = report.subject
    origin = f"[{text(subject.hub)}](https://huggingface.co/{subject.hub})" if subject.hub else text(subject.model)
    traits = "; ".join(_WORDS.get(trait, trait) for trait in step.traits) or "nothing but its format was changed"
    labels = f", {subject.labels} labels" if subject.labels else ""
    what = f"{text(report.title)}: {origin} ({text(subject.task)}{labels}) as {text(kind)}"
    return f"{what}, made by mcompress {text(report.version)}: {text(traits)}."


def _usual_loads(kind: str, task: str, traits: Sequence[str], files: Sequence[str], graph: str) -> Iterator[Load]:
    """Yield how an artifact of a kind is opened in its own layout; ``graph`` is the file that holds the model."""
    trust = ", trust_remote_code=True" if "custom-code" in traits else ""
    ours = f'import compress\npredictor = compress.load("FOLDER"{trust})  # any kind; checks every file'
    yield Load("python", ours)
    if kind == "torch" and "structure.json" in files:
        what = "layers of different widths: Transformers alone cannot"
        yield Load("python", f'model = compress.load_model("FOLDER")  # {what}')
    elif kind == "torch" and task in _AUTO:
        model, processor = _AUTO[task]
        yield Load(
            "python",
            f"from transformers import {model}, {processor}\n"
            f'model, processor = {model}.from_pretrained("FOLDER"{trust}), {processor}.from_pretrained("FOLDER")',
        )
    elif kind == "onnx":
        yield Load("python", f'import onnxruntime\nsession = onnxruntime.InferenceSession("FOLDER/{graph}")')
    elif kind == "openvino":
        yield Load("python", f'import openvino\nmodel = openvino.Core().compile_model("FOLDER/{graph}", "CPU")')
    elif kind == "tensorrt":
        yield Load("sh", f"trtexec --loadEngine=FOLDER/{graph}")


def _accuracy(rows: list[Row]) -> str:
    scored = [(row, row.accuracy) for row in rows if row.accuracy]
    if not scored:
        return "Not measured."
    head = ("target", "metric", "value", "95 % interval", "n", "Δ, paired", "reading")
    lines = [_line(head), "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    lines += [_line(_accuracy_cells(row, score)) for row, score in scored]
    return "\n".join(lines)


def _accuracy_cells(row: Row, score: Accuracy) -> tuple[str, ...]:
    change, unit = row.difference, " %" if score.unit == "percent" else ""
    delta, reading = numbers.MISSING, ""
    if change:
        interval = numbers.points_interval(change.low, change.high, change.unit)
        delta = f"{numbers.points(change.points, change.unit)} {interval}".strip()
        reading = f"{change.text} (from {change.baseline})"
    return (
        row.target,
        score.metric,
        f"{numbers.metric(score.value, score.unit)}{unit}",
        numbers.metric_interval(score.low, score.high, score.unit) or numbers.MISSING,
        numbers.count(score.n),
        delta,
        reading,
    )


def _speed(report: Report, rows: list[Row]) -> str:
    names = list(report.baselines)
    head = ("target", "evidence", "p50, ms", *(f"vs {name}" for name in names), "peak RSS, MB", "size, MB")
    lines = [_line(head), _line(("---", "---", *["---:"] * (len(head) - 2)), escape=False)]
    for row in rows:
        if row.status != "ok":
            lines.append(_line((row.target, row.evidence, f"{row.status}: {row.reason}", *[""] * (len(head) - 3))))
            continue
        ratios = (row.speedups.get(name) for name in names)
        cells = (
            row.target,
            row.evidence,
            numbers.milliseconds(row.latency.p50_ms if row.latency else None),
            *(
                f"{numbers.ratio(s.ratio)} {numbers.interval(s.low, s.high)}".strip() if s else numbers.MISSING
                for s in ratios
            ),
            numbers.megabytes(row.peak_rss_bytes),
            numbers.megabytes(row.size_bytes),
        )
        lines.append(_line(cells))
    note = (
        f"Measured on {text(report.environment.cpu)}, batch 1, one input in flight. "
        "Ratios carry over to like machines, milliseconds do not."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _limits(report: Report, step: Step) -> Iterator[str]:
    yield from report.limits
    for gate in step.gates:
        if gate.verdict != "pass":
            yield f"Gate on validation, {gate.limit}: {gate.verdict}. {gate.text}".strip()
    yield "How the base model was trained, and what it must not be used for, stands in its own card."


def _made(report: Report, step: Step) -> str:
    known = {candidate.id: candidate for candidate in report.steps}
    chain: list[Step] = []
    here: Step | None = step
    while here is not None and here not in chain:
        chain.append(here)
        here = known.get(here.parents.get("model", ""))
    lines = []
    for link in reversed(chain):
        others = [f"{role}: {parent}" for role, parent in link.parents.items() if role != "model"]
        facts = [f"sha256 {numbers.short_digest(link.digest)}", *others]
        lines.append(f"1. **{text(link.id)}**: {text(link.name)} ({text(', '.join(facts))})")
    return "\n".join(lines)


def _line(cells: tuple[str, ...], *, escape: bool = True) -> str:
    return f"| {' | '.join(text(cell) if escape else cell for cell in cells)} |"
