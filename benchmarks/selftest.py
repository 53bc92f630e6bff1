"""The harness measures what is known: two equal artifacts, a slow-down that was built in, memory that was asked for.

    python benchmarks/selftest.py --model MODELS/minilm-l6-sst2 --data DATA/sst2/test.csv

1. A/A: one artifact against itself, pair after pair, each a full measurement with fresh processes. With intervals of
   95 % about one pair in twenty is called different by chance.
2. A slow-down of 3 %, known by construction: an encoder of 33 layers, the model's own over and over, and one of 34.
3. Memory: graphs with tables of 16, 64 and 256 MB beside one with none.

Launches of one artifact differ from one another, so a small slow-down takes many of them to find.

Writes selftest.json and README.md to --out; exits with 1 when one of the three does not hold. Run it on an idle
machine. --pairs 3 --planted 1 --planted-launches 3 --rounds 5 makes a trial run;
--part repeats one of the three and keeps what --out holds of the others.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binom
from selftest_artifacts import holding, stacked

from compress.artifact import Artifact
from compress.bench.environment import environment
from compress.bench.protocol import Measurement, MeasureSettings, Subject, measure
from compress.bench.statistics import wilson_interval
from compress.bench.timing_statistics import ratio_of_totals, ratio_verdict
from compress.data.encoded import Encoded
from compress.models.loading import load_torch
from compress.runtimes.target import Target, find_target
from compress.search.deploy import deploy, spread_over_lengths
from compress.tasks.text_classification import TextClassification

RATE = 0.95
LAYERS = 33
"""One layer more is 3 % more work."""
PARTS = ("equal", "planted", "memory")
SIZES_MB = (16, 64, 256)
MEMORY_TOLERANCE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--deploy", choices=("fp32", "int8"), default="int8", help="precision (default: int8)")
    parser.add_argument("--target", default="ort-cpu-1t")
    parser.add_argument("--pairs", type=int, default=30, help="A/A measurements (default: 30)")
    parser.add_argument("--launches", type=int, default=3, help="of an A/A pair (default: 3)")
    parser.add_argument("--planted", type=int, default=3, help="measurements of the slow-down (default: 3)")
    parser.add_argument("--planted-launches", type=int, default=8, help="of each of them (default: 20)")
    parser.add_argument("--part", choices=PARTS, action="append", help="repeat this part only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inputs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("reports/selftest"))
    options = parser.parse_args(arguments)

    begun = time.monotonic()
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    task = TextClassification(tuple(name for _, name in sorted(config["id2label"].items(), key=lambda it: int(it[0]))))
    with options.data.open(encoding="utf-8", newline="") as file:
        encoded = task.encode(options.model, [{"text": row["text"]} for row in csv.DictReader(file)])
    encoded = encoded.select(spread_over_lengths(encoded.lengths, options.inputs))
    target = find_target(options.target)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(encoded, target, Path(name), options.rounds)
        artifact = deploy(load_torch(options.model, task), options.model, task, options.deploy, bench.work / "model")

        def stack(layers: int) -> Artifact:
            return stacked(options.model, task, options.deploy, layers, bench.work / f"layers-{layers}")

        file = options.out / "selftest.json"
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if options.part else {"schema_version": 1}
        record["created"] = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
        record["setting"] = {
            "model": options.model.name,
            "precision": options.deploy,
            "target": target.name,
            "inputs": len(encoded),
            "launches": options.launches,
            "rounds": options.rounds,
        }
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "equal": lambda: equal_pairs(bench, artifact, options.pairs, options.launches),
            "planted": lambda: planted(bench, stack, options.planted, options.planted_launches),
            "memory": lambda: memory(bench),
        }
        for part in options.part or PARTS:
            record[part] = runs[part]()
    record["environment"] = environment()
    record["minutes"] = round(record.get("minutes", 0.0) + (time.monotonic() - begun) / 60, 1)
    record["holds"] = all(record[part]["holds"] for part in PARTS)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "selftest.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = markdown(record)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not record["holds"])


class Bench:
    """One protocol for all parts: the same inputs, target and number of rounds."""

    def __init__(self, encoded: Encoded, target: Target, work: Path, rounds: int) -> None:
        self.encoded, self.target, self.work, self.rounds = encoded, target, work, rounds

    def pair(self, first: Artifact, second: Artifact, launches: int, seed: int) -> tuple[Measurement, Measurement]:
        """Measure two artifacts side by side; the order of the inputs is another one for each seed."""
        rows = self.measure({"a": first, "b": second}, launches, seed, latency_only=True)
        return rows[0], rows[1]

    def measure(
        self, artifacts: dict[str, Artifact], launches: int, seed: int, *, latency_only: bool
    ) -> list[Measurement]:
        subjects = [Subject(label, artifact, self.encoded, self.target) for label, artifact in artifacts.items()]
        settings = MeasureSettings(
            inputs=len(self.encoded),
            rounds=self.rounds,
            launches=launches,
            seconds=600.0,
            precision=None,
            end_to_end=False,
        )
        rows = measure(subjects, settings=settings, work=self.work, seed=seed, latency_only=latency_only)
        for row in rows:
            if row.status != "ok":
                sys.exit(f"{row.subject}: {row.status}: {row.reason}")
        return rows


def equal_pairs(bench: Bench, artifact: Artifact, pairs: int, launches: int) -> dict[str, Any]:
    """Measure an artifact against itself; holds unless more pairs differ than chance explains in 39 of 40 tests."""
    found = []
    for seed in range(pairs):
        ratio = ratio_of_totals(*(row.samples_ms for row in bench.pair(artifact, artifact, launches, seed)))
        found.append({**ratio._asdict(), "verdict": ratio_verdict(ratio)})
        say(f"A/A pair {seed + 1}/{pairs}: {show(found[-1])}")
    same = sum(it["verdict"] == "no difference" for it in found)
    allowed = int(binom.ppf(0.975, pairs, 1 - RATE))
    return {
        "pairs": found,
        "same": same,
        "rate": wilson_interval(same, pairs)._asdict(),
        "stated": RATE,
        "allowed_different": allowed,
        "half_width": median((it["high"] - it["low"]) / 2 for it in found),
        "holds": pairs - same <= allowed,
    }


def planted(bench: Bench, stack: Callable[[int], Artifact], times: int, launches: int) -> dict[str, Any]:
    """Measure a model with one layer more against one of ``LAYERS``; holds if every measurement calls it slower."""
    plain, slow = stack(LAYERS), stack(LAYERS + 1)
    found = []
    for seed in range(times):
        ratio = ratio_of_totals(*(row.samples_ms for row in bench.pair(plain, slow, launches, seed)))
        found.append({**ratio._asdict(), "verdict": ratio_verdict(ratio)})
        say(f"slow-down {seed + 1}/{times}: {show(found[-1])}")
    return {
        "layers": LAYERS,
        "slower": 1 / LAYERS,
        "launches": launches,
        "measurements": found,
        "found": sum(it["verdict"] == "slower" for it in found),
        "holds": all(it["verdict"] == "slower" for it in found),
    }


def memory(bench: Bench) -> dict[str, Any]:
    """Measure graphs that hold a known table; holds if what they need beyond the empty one is within 5 % of it."""
    artifacts = {"0": holding(0, bench.work / "holding-0")}
    artifacts |= {str(size): holding(size, bench.work / f"holding-{size}") for size in SIZES_MB}
    ids = Encoded({"input_ids": bench.encoded.inputs["input_ids"]}, {"input_ids": 0})
    small = Bench(ids, bench.target, bench.work, 3)
    readings: dict[str, list[dict[str, int]]] = {label: [] for label in artifacts}
    for seed in range(3):
        for label, row in zip(artifacts, small.measure(artifacts, 1, seed, latency_only=False), strict=True):
            readings[label].append(figures(row))
    rows = []
    for size in SIZES_MB:
        for figure in readings["0"][0]:
            empty, full = (median(reading[figure] for reading in readings[label]) for label in ("0", str(size)))
            read = (full - empty) / 1e6
            rows.append({"asked_mb": size, "figure": figure, "read_mb": read, "error": read / size - 1})
            say(f"memory {size} MB, {figure}: {read:.1f} MB")
    judged = [row for row in rows if row["figure"] != "peak over import"]
    return {"rows": rows, "holds": all(abs(row["error"]) <= MEMORY_TOLERANCE for row in judged)}


def figures(row: Measurement) -> dict[str, int]:
    """Return the memory figures of a row over what was resident after the imports."""
    phases = {phase["name"]: phase["rss_bytes"] for phase in row.memory_phases}
    return {f"{name} over import": phases[name] - phases["import"] for name in ("load", "steady", "peak")}


def markdown(record: dict[str, Any]) -> str:
    """Return the page: three claims, each with what was found."""
    setting, equal, slow, memory_part = (record[part] for part in ("setting", "equal", "planted", "memory"))
    system, pairs = record["environment"], len(equal["pairs"])
    lines = [
        "# Self-test of the harness",
        "",
        f"`{setting['model']}` in {setting['precision']} on `{setting['target']}`: {setting['inputs']} inputs, "
        f"{setting['rounds']} rounds in each launch. {system['cpu']['model']}, {record['created']}, "
        f"{record['minutes']} minutes. Every number is in [selftest.json](selftest.json).",
        "",
        f"## Equal artifacts: {holds(equal)}",
        "",
        f"{equal['same']} of {pairs} pairs of one artifact with itself, {setting['launches']} launches each, are "
        f"called *no difference*: {100 * equal['rate']['value']:.0f} % [{100 * equal['rate']['low']:.0f}, "
        f"{100 * equal['rate']['high']:.0f}], stated: at least {100 * equal['stated']:.0f} %. By chance up to "
        f"{equal['allowed_different']} of {pairs} may differ. Intervals reach ±{100 * equal['half_width']:.1f} % "
        "(median).",
        "",
        f"## A slow-down of {100 * slow['slower']:.1f} %: {holds(slow)}",
        "",
        f"The encoder's own layers over and over, {slow['layers']} of them and {slow['layers'] + 1}: by construction "
        f"{100 * slow['slower']:.2f} % more of the encoder's time. {slow['launches']} launches each:",
        "",
        "| measurement | time over the plain model's | verdict |",
        "|---|---|---|",
        *(
            f"| {i} | {1 / it['value']:.3f} [{1 / it['high']:.3f}, {1 / it['low']:.3f}] | {it['verdict']} |"
            for i, it in enumerate(slow["measurements"], 1)
        ),
        "",
        f"## Known memory, within {100 * MEMORY_TOLERANCE:.0f} %: {holds(memory_part)}",
        "",
        "Beyond a graph without a table, median of three processes. The peak contains the file while it is read and is "
        "not judged.",
        "",
        "| table, MB | figure | read, MB | error |",
        "|---|---|---|---|",
        *(
            f"| {row['asked_mb']} | {row['figure']} | {row['read_mb']:.1f} | {100 * row['error']:+.1f} % |"
            for row in memory_part["rows"]
        ),
    ]
    return "\n".join(lines) + "\n"


def holds(part: dict[str, Any]) -> str:
    return "holds" if part["holds"] else "does not hold"


def show(it: dict[str, Any]) -> str:
    return f"{it['value']:.3f} [{it['low']:.3f}, {it['high']:.3f}] {it['verdict']}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
