"""Ways to prune at equal measured latency: our importances, uniform widths and Torch-Pruning, side by side.

Every method prunes the same model to the same speed-up, which its own candidates meet as measured. All of them are
then exported and measured together, interleaved with the dense model, on test. With --recover, each is also
distilled from the dense model with the same settings, at one speed-up.

    python benchmarks/pruning_methods.py --model MODELS/minilm-l6-sst2 --data DATA/sst2 --speedup 2 3 \
        --out reports/pruning-methods/sst2
    python benchmarks/pruning_methods.py ... --speedup 2 3 4 --recover 3      # and 3 epochs of recovery at 4
    python benchmarks/pruning_methods.py ... --methods obs fisher fisher-plain torch-pruning-refit

Writes table.md, table.json (with every raw sample and outcome) and recipe.yaml. Widths, checkpoints and speed-ups are
settled on train and validation; test is read once, for the table. Finished steps lie in the store: running again
resumes. Exits with 1 when a method is significantly better than the default at the same speed-up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peer_torch_pruning  # noqa: F401  (registers the pass)
import yaml

from compress.bench.measurement import Measurement
from compress.bench.statistics import Interval, PairedDifference, paired_difference
from compress.bench.timing_statistics import ratio_of_totals
from compress.pipeline.measuring import Measured, measure_run
from compress.pipeline.planning import make_plan, onnx_baseline
from compress.pipeline.running import RunState, run_steps
from compress.pipeline.summary import summarise
from compress.recipe import Recipe, parse_recipe
from compress.report.markdown import text
from compress.store import Store

DEFAULT = "obs"
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "obs": ("OBS (default)", "prune", {"importance": "obs"}),
    "fisher": ("Fisher", "prune", {"importance": "fisher"}),
    "taylor": ("Taylor", "prune", {"importance": "taylor"}),
    "magnitude": ("magnitude", "prune", {"importance": "magnitude"}),
    "uniform": ("uniform widths, OBS", "prune", {"importance": "obs", "uniform": True}),
    "torch-pruning": ("Torch-Pruning, Taylor", "torch-pruning", {"scores": "taylor"}),
    "torch-pruning-magnitude": ("Torch-Pruning, magnitude", "torch-pruning", {"scores": "magnitude"}),
    "torch-pruning-refit": ("Torch-Pruning, Taylor, our refit", "torch-pruning", {"reconstruct": True}),
    "obs-plain": ("OBS, no refit", "prune", {"importance": "obs", "reconstruct": False}),
    "fisher-plain": ("Fisher, no refit", "prune", {"importance": "fisher", "reconstruct": False}),
    "taylor-plain": ("Taylor, no refit", "prune", {"importance": "taylor", "reconstruct": False}),
    "magnitude-plain": ("magnitude, no refit", "prune", {"importance": "magnitude", "reconstruct": False}),
}
"""Name -> (as the table calls it, pass, its options). Those of ours refit what stays unless they say otherwise."""
USUAL = ("obs", "fisher", "taylor", "magnitude", "uniform", "torch-pruning")


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method at a speed-up, with or without recovery."""

    method: str
    speedup: float
    epochs: int

    @property
    def pruned(self) -> str:
        """Id of the step that prunes."""
        return f"{self.method}-{self.speedup:g}x"

    @property
    def distilled(self) -> str:
        return f"{self.pruned}-distilled"

    @property
    def exported(self) -> str:
        """Id of the step whose artifact is measured."""
        return f"{self.distilled if self.epochs else self.pruned}-onnx"


def entries(options: argparse.Namespace) -> list[Entry]:
    """Return what is compared, the default first at every speed-up, recovered models last."""
    methods = [DEFAULT, *(name for name in options.methods if name != DEFAULT)]
    plain = [Entry(name, speedup, 0) for speedup in options.speedup for name in methods]
    at = options.recover_at or max(options.speedup)
    return plain + [Entry(name, at, options.recover) for name in methods if options.recover]


def make_recipe(options: argparse.Namespace, wanted: Sequence[Entry]) -> Recipe:
    """Return the recipe that makes every entry; what only an alternative needs may fail."""
    steps: list[dict[str, Any]] = []
    for entry in wanted:
        optional = {"optional": True} if entry.method != DEFAULT else {}
        _, uses, config = METHODS[entry.method]
        if not any(step["id"] == entry.pruned for step in steps):
            config = config | {"speedup": entry.speedup, "target": options.target}
            config["samples"] = options.samples
            steps.append({uses: config, "id": entry.pruned, "from": "model", **optional})
        last = entry.pruned
        if entry.epochs:
            distill = {"teacher": "model", "epochs": entry.epochs}
            steps.append({"distill": distill, "id": entry.distilled, "from": last, **optional})
            last = entry.distilled
        steps.append({"export": {}, "id": entry.exported, "from": last, **optional})
    limit = {} if options.limit is None else {"limit": options.limit}
    files = {name: {"path": f"${{DATA}}/{name}.csv", **limit} for name in ("train", "validation", "test")}
    recipe = {
        "recipe": 1,
        "name": "pruning-methods",
        "description": f"Pruning methods at equal measured latency: {options.model.name}",
        "model": "${MODEL}",
        "data": {**files, "on_overlap": "drop_from_train", "calibration": {"samples": 0}},
        "run": {"device": "cpu", "threads": options.threads, "seed": options.seed},
        "gates": {},
        "steps": steps,
        "measure": {
            "targets": [options.target],
            "baselines": ["onnx"],
            "inputs": options.inputs,
            "rounds": options.rounds,
            "seconds": 900.0,
        },
    }
    dumped = yaml.safe_dump(recipe, sort_keys=False, width=100)
    return parse_recipe(dumped, (), [f"MODEL={options.model}", f"DATA={options.data}"], origin="pruning-methods")


@dataclass(frozen=True)
class Line:
    """What the table says of one entry; ``reason`` alone where there is no model.

    Attributes:
        heads, neurons: that every layer keeps.
        sought: what the search put on record: predicted and measured milliseconds and speed-up, attempts.
        ms: mean of one example in the common measurement.
        speedup: over the dense FP32 model, in the common measurement.
        beside_default: time of the default at this speed-up over its own: above 1 it is faster.
        right: test examples answered rightly.
        against_dense, against_default: accuracy minus that of the dense model, of the default.
        seconds: of the pruning step, and of its recovery.
        outcomes: one digit per test example: 1 is right.
    """

    entry: Entry
    reason: str = ""
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    sought: dict[str, Any] | None = None
    ms: float = 0.0
    speedup: Interval | None = None
    beside_default: Interval | None = None
    right: int = 0
    against_dense: PairedDifference | None = None
    against_default: PairedDifference | None = None
    seconds: float = 0.0
    outcomes: str = ""

    @property
    def beats_default(self) -> bool:
        """Whether it is significantly better: the whole paired interval lies above zero."""
        return self.against_default is not None and self.against_default.low > 0


def compare(state: RunState, measured: Measured, wanted: Sequence[Entry]) -> list[Line]:
    """Return one line per entry."""
    rows = {row.subject: row for row in measured.measurements if row.status == "ok"}
    dense = rows[str(onnx_baseline(state.plan))]
    lines: list[Line] = []
    defaults: dict[tuple[float, int], Measurement] = {}
    for entry in wanted:
        if entry.exported not in rows:
            lines.append(Line(entry, reason=_why(state, entry)))
            continue
        row = rows[entry.exported]
        default = defaults.setdefault((entry.speedup, entry.epochs), row) if entry.method == DEFAULT else None
        default = default or defaults[entry.speedup, entry.epochs]
        lines.append(_line(state, measured, entry, row, dense, default))
    return lines


def _line(
    state: RunState, measured: Measured, entry: Entry, row: Measurement, dense: Measurement, default: Measurement
) -> Line:
    own, base, usual = (_outcomes(state, measured, each) for each in (row, dense, default))
    made_by = [entry.pruned, entry.distilled] if entry.epochs else [entry.pruned]
    pruned = state.artifact(entry.pruned)
    notes = pruned.manifest.notes if pruned is not None else {}
    alternative = entry.method != DEFAULT
    return Line(
        entry,
        heads=tuple(notes["heads"]),
        neurons=tuple(notes["neurons"]),
        sought=notes["search"],
        ms=float(row.flat_ms.mean()),
        speedup=ratio_of_totals(dense.samples_ms, row.samples_ms),
        beside_default=ratio_of_totals(default.samples_ms, row.samples_ms) if alternative else None,
        right=int(own.sum()),
        against_dense=paired_difference(base, own),
        against_default=paired_difference(usual, own) if alternative else None,
        seconds=sum(state.outcomes[step].seconds for step in made_by),
        outcomes="".join(str(int(right)) for right in own),
    )


def _outcomes(state: RunState, measured: Measured, row: Measurement) -> np.ndarray:
    if row.outputs is None or measured.answers is None:
        raise SystemExit(f"{row.subject} has no test outcomes: the test file needs a column `label`.")
    return state.task.score(row.outputs, measured.answers).outcomes


def _why(state: RunState, entry: Entry) -> str:
    """Return the first reason on the way to an entry's model."""
    steps = (entry.pruned, entry.distilled, entry.exported)
    reasons = [state.outcomes[step].reason for step in steps if step in state.outcomes]
    return next((reason for reason in reasons if reason), "it could not be measured")


def markdown(lines: Sequence[Line], dense: Measurement, right: int, n: int, command: str) -> str:
    """Return the table with what a reader has to know."""
    return "\n".join([*_head(dense, right, n, command), *_sections(lines, n), *_foot(lines)]) + "\n"


def _head(dense: Measurement, right: int, n: int, command: str) -> Iterator[str]:
    yield "# Pruning methods at equal measured latency\n"
    yield f"    {command}\n"
    yield (
        f"Dense FP32: {float(dense.flat_ms.mean()):.2f} ms on {dense.target}, {right} of {n} test examples right "
        f"({right / n:.2%}). Every model met the same speed-up as measured while it was searched for; the columns "
        "are of one later measurement of all models, interleaved. Intervals are of 95 %: of speed-ups over rounds, "
        "of differences in points paired over test examples. All but Torch-Pruning and the rows that say so refit "
        "what stays by least squares."
    )


def _sections(lines: Sequence[Line], n: int) -> Iterator[str]:
    kinds = dict.fromkeys((line.entry.speedup, line.entry.epochs) for line in lines)
    for speedup, epochs in kinds:
        yield f"\n## {speedup:g} times as fast, {f'distilled for {epochs} epochs' if epochs else 'no training'}\n"
        yield "| method | heads | neurons | ms | speed-up | time of default / own | right | to dense | to default |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for line in lines:
            if (line.entry.speedup, line.entry.epochs) == (speedup, epochs):
                yield _row(line, n)


def _row(line: Line, n: int) -> str:
    name = METHODS[line.entry.method][0]
    if line.speedup is None:
        return f"| {name} | {text(line.reason)} |" + " |" * 7
    cells = [
        name,
        " ".join(map(str, line.heads)),
        " ".join(map(str, line.neurons)),
        f"{line.ms:.2f}",
        _ratio(line.speedup),
        _ratio(line.beside_default),
        f"{line.right} ({line.right / n:.2%})",
        _points(line.against_dense),
        _points(line.against_default),
    ]
    return f"| {' | '.join(cells)} |"


def _foot(lines: Sequence[Line]) -> Iterator[str]:
    better = [line for line in lines if line.beats_default]
    compared = [line for line in lines if line.against_default is not None]
    yield f"\nOf {len(compared)} comparisons with the default, {len(better)} are significantly in favour of the other:"
    named = (f"{METHODS[line.entry.method][0]} at {line.entry.speedup:g} times" for line in better)
    yield f"{', '.join(named) or 'none'} (paired interval above zero, not corrected for the number of comparisons)."


def _ratio(ratio: Interval | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _points(difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference.value:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _plain(line: Line) -> dict[str, Any]:
    """Return a line for table.json; intervals with their names."""
    record = asdict(line) | {"method": METHODS[line.entry.method][0]}
    for name in ("speedup", "beside_default"):
        ratio: Interval | None = getattr(line, name)
        record[name] = None if ratio is None else ratio._asdict()
    return record | {"beats_default": line.beats_default}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv, validation.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, table.json and recipe.yaml")
    parser.add_argument("--speedup", type=float, nargs="+", default=[2.0, 3.0], help="over dense FP32 (default: 2 3)")
    parser.add_argument("--recover", type=int, nargs="?", const=3, default=0, help="epochs of recovery (3 if bare)")
    parser.add_argument("--recover-at", type=float, help="its speed-up, one of --speedup (default: the largest)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(USUAL), help=f"default: {' '.join(USUAL)}"
    )
    parser.add_argument("--target", default="ort-cpu-1t")
    parser.add_argument("--samples", type=int, default=1024, help="training examples to prune by (default: 1024)")
    parser.add_argument("--limit", type=int, help="rows of each split, for a trial; default: all")
    parser.add_argument("--inputs", type=int, default=100, help="timed test examples (default: 100)")
    parser.add_argument("--rounds", type=int, default=9, help="passes over them (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.recover_at is not None and options.recover_at not in options.speedup:
        parser.error(f"--recover-at {options.recover_at:g} is not one of --speedup")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wanted = entries(options)
    store, begun = Store.default(), time.monotonic()
    with store.workspace() as work:
        state = run_steps(make_plan(make_recipe(options, wanted)), work / "run", store, _say)
        measured = measure_run(state, work, _quiet)
    lines = compare(state, measured, wanted)
    dense = next(row for row in measured.measurements if row.subject == onnx_baseline(state.plan))
    outcomes = _outcomes(state, measured, dense)
    given = sys.argv[1:] if arguments is None else arguments
    command = _without_folders(["python", "benchmarks/pruning_methods.py", *given], options)
    table = markdown(lines, dense, int(outcomes.sum()), len(outcomes), command)
    _write(options.out, state, measured, lines, table, command)
    print(f"\n{table}\n{time.monotonic() - begun:.0f} s; written to {options.out}")
    return int(any(line.beats_default for line in lines))


def _write(out: Path, state: RunState, measured: Measured, lines: Sequence[Line], table: str, command: str) -> None:
    report = summarise(state, measured, command).model_dump(mode="json")
    kept = ("created", "version", "command", "subject", "data", "environment", "limits")
    record = {name: value for name, value in (report | {"command": command}).items() if name in kept}
    record |= {"schema_version": 1, "lines": [_plain(line) for line in lines]}
    record["measurements"] = [row.model_dump(mode="json", exclude={"outputs"}) for row in measured.measurements]
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "table.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "recipe.yaml").write_text(state.recipe.to_yaml(), encoding="utf-8")


def _without_folders(words: Sequence[str], options: argparse.Namespace) -> str:
    """Return a command without this machine's folders: MODELS/name, DATA/name."""
    shown = {
        str(options.model): f"MODELS/{options.model.name}",
        str(options.data): f"DATA/{options.data.name}",
        str(options.out): f"reports/pruning-methods/{options.out.name}",
    }
    return " ".join(shown.get(word.rstrip("/"), word) for word in words)


def _say(message: str, done: int | None = None, total: int | None = None) -> None:
    if done is None:
        print(message, flush=True)


def _quiet(message: str, done: int | None = None, total: int | None = None) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
