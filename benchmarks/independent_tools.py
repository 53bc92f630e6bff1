"""Our latency and memory beside those of tools that are not ours, on the same artifact and the same input.

    python benchmarks/independent_tools.py --model MODELS/minilm-l6-sst2 --data DATA/sst2/test.csv

- ONNX Runtime: `plain_loop.py`, a separate process without any of our code, timed from outside by hyperfine as the
  difference of two commands, with and without the loop (--hyperfine, or on the PATH); without hyperfine by the loop's
  own clock. The performance test of ONNX Runtime itself is not in its wheel.
- OpenVINO: its own benchmark_app, one request, one stream, one thread, the same input.
- Memory: `/usr/bin/time -v`, the largest resident set of our measuring child as the kernel tells its parent; and that
  of the plain loop over one that only imports, beside our peak over the imports.

The tools take turns with our harness, repeat after repeat, pinned to the same core. Writes independent-tools.json and
README.md to --out; exits with 1 when a tool is more than 5 % off. Run it on an idle machine; --repeats 2 --runs 100
makes a trial run.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from compress.artifact import Artifact
from compress.bench.environment import environment
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.data.encoded import Encoded
from compress.models.loading import load_torch
from compress.runtimes.cores import pinned_cores
from compress.runtimes.target import Target, find_target
from compress.search.deploy import deploy
from compress.tasks.text_classification import TextClassification

LOOP = Path(__file__).with_name("plain_loop.py")
TIME = Path("/usr/bin/time")
TOLERANCE = 0.05
PER_ROUND = 50
"""Times that the input is run in a round of our harness."""


class Trial:
    """One artifact, one input, one core."""

    def __init__(self, artifact: Artifact, encoded: Encoded, work: Path, runs: int, hyperfine: str | None) -> None:
        self.artifact, self.encoded, self.work, self.runs, self.hyperfine = artifact, encoded, work, runs, hyperfine
        self.ort, self.openvino = find_target("ort-cpu-1t"), find_target("openvino-cpu-1t")
        self.cores = pinned_cores(self.ort)
        self.inputs = work / "inputs.npz"
        feed = encoded.batch([0])
        np.savez(self.inputs, **feed)
        for name, array in feed.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        self.feed = feed

    def ours(self, target: Target) -> float:
        """Return our mean time in ms: a fresh child, as in every report."""
        rounds = max(3, self.runs // PER_ROUND)
        settings = MeasureSettings(
            inputs=len(self.encoded), rounds=rounds, launches=1, seconds=600.0, precision=None, end_to_end=False
        )
        subject = Subject("ours", self.artifact, self.encoded, target)
        row = measure([subject], settings=settings, work=self.work, latency_only=True)[0]
        if row.status != "ok":
            sys.exit(f"{target.name}: {row.status}: {row.reason}")
        return float(row.flat_ms.mean())

    def loop(self) -> float:
        """Return the plain loop's mean time in ms, by hyperfine if there is one, else by its own clock."""
        commands = [f"{sys.executable} {LOOP} {self.artifact.file()} {self.inputs} {count}" for count in (0, self.runs)]
        if self.hyperfine is None:
            return float(self.run(commands[1].split()).split()[1])
        out = self.work / "hyperfine.json"
        self.run([self.hyperfine, "--shell=none", "--runs", "3", "--export-json", str(out), *commands])
        without, with_loop = (it["mean"] for it in json.loads(out.read_text(encoding="utf-8"))["results"])
        return 1000 * (with_loop - without) / self.runs

    def benchmark_app(self) -> float:
        """Return the mean time in ms that OpenVINO's benchmark_app prints."""
        app = Path(sys.executable).with_name("benchmark_app")
        names = ",".join(f"{name}:{self.work / name}.npy" for name in self.feed)
        shapes = ",".join(f"{name}[{','.join(map(str, array.shape))}]" for name, array in self.feed.items())
        options = ["-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1", "-nireq", "1"]
        options += ["-infer_precision", "f32", "-niter", str(self.runs), "-i", names, "-data_shape", shapes]
        said = self.run([str(app), "-m", str(self.artifact.file()), *options])
        found = re.search(r"Average:\s+([\d.]+) ms", said)
        if found is None:
            sys.exit(f"benchmark_app printed no average:\n{said[-1000:]}")
        return float(found[1])

    def child_memory(self) -> tuple[float, float]:
        """Return the peak of one measuring child in MB as it answers, and as ``time -v`` tells of that process."""
        source = self.work / "encoded.npz"
        self.encoded.save(source)
        place = self.ort.model_dump(mode="json")
        jobs: list[dict[str, Any]] = [
            {"op": "open", "cores": self.cores, "artifact": str(self.artifact.path), "target": place},
            {"op": "warmup", "indices": list(range(len(self.encoded))), "seconds": 1.0},
            {"op": "memory"},
        ]
        jobs[0]["encoded"] = str(source)
        text = "".join(json.dumps(job) + "\n" for job in jobs)
        command = [str(TIME), "-v", sys.executable, "-P", "-m", "compress.bench.worker"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])["ok"]
        return answer["peak_rss_bytes"] / 1e6, resident(done.stderr)

    def growth(self) -> tuple[float, float]:
        """Return the peak over the imports in MB: ours, and the plain loop's over one that only imports."""
        settings = MeasureSettings(inputs=len(self.encoded), rounds=3, launches=1)
        subject = Subject("ours", self.artifact, self.encoded, self.ort)
        row = measure([subject], settings=settings, work=self.work)[0]
        peaks = []
        for count in (-1, self.runs):
            command = [str(TIME), "-v", sys.executable, str(LOOP), str(self.artifact.file()), str(self.inputs)]
            done = subprocess.run([*command, str(count)], capture_output=True, text=True, check=True)
            peaks.append(resident(done.stderr))
        return ((row.peak_rss_bytes or 0) - (row.import_rss_bytes or 0)) / 1e6, peaks[1] - peaks[0]

    def run(self, command: Sequence[str]) -> str:
        """Run a tool on our core and return what it prints."""

        def pin() -> None:
            if self.cores:
                os.sched_setaffinity(0, self.cores)

        variables = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=pin, env=variables)
        if done.returncode:
            sys.exit(f"{Path(command[0]).name} failed:\n{done.stdout[-500:]}\n{done.stderr[-1000:]}")
        return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--deploy", choices=("fp32", "int8"), default="fp32", help="precision (default: fp32)")
    parser.add_argument("--tokens", type=int, default=24, help="length of the input (default: 24)")
    parser.add_argument("--runs", type=int, default=500, help="runs of the input per repeat (default: 500)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hyperfine", default=shutil.which("hyperfine"), help="path of hyperfine")
    parser.add_argument("--out", type=Path, default=Path("reports/independent-tools"))
    options = parser.parse_args(arguments)
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    task = TextClassification(tuple(name for _, name in sorted(config["id2label"].items(), key=lambda it: int(it[0]))))
    with options.data.open(encoding="utf-8", newline="") as file:
        encoded = task.encode(options.model, [{"text": row["text"]} for row in csv.DictReader(file)])
    nearest = int(np.argmin(np.abs(encoded.lengths - options.tokens)))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        artifact = deploy(load_torch(options.model, task), options.model, task, options.deploy, work / "model")
        trial = Trial(artifact, encoded.select([nearest] * PER_ROUND), work, options.runs, options.hyperfine)
        rows = latencies(trial, options.repeats) + memories(trial, options.repeats)
    record = {
        "schema_version": 1,
        "created": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "model": options.model.name,
        "precision": options.deploy,
        "tokens": int(encoded.lengths[nearest]),
        "runs": options.runs,
        "rows": rows,
        "environment": environment(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "independent-tools.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = markdown(record)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not all(row["agrees"] for row in rows))


def latencies(trial: Trial, repeats: int) -> list[dict[str, Any]]:
    """Let the tools and our harness take turns; who goes first rotates."""
    clock = f"hyperfine {version(trial.hyperfine)}" if trial.hyperfine else "its own clock"
    pairs: list[tuple[str, Callable[[], float], Target]] = [
        (f"ONNX Runtime in a plain loop, by {clock}", trial.loop, trial.ort),
        ("OpenVINO's benchmark_app", trial.benchmark_app, trial.openvino),
    ]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in pairs}
    for number in range(repeats):
        for name, tool, target in pairs[number % 2 :] + pairs[: number % 2]:
            if number % 4 < 2:
                own, theirs = trial.ours(target), tool()
            else:
                theirs, own = tool(), trial.ours(target)
            found[name].append((own, theirs))
            print(f"{number + 1}/{repeats} {name}: ours {own:.3f} ms, theirs {theirs:.3f} ms", file=sys.stderr)
    return [judged(name, "mean of one run, ms", values) for name, values in found.items()]


def memories(trial: Trial, repeats: int) -> list[dict[str, Any]]:
    if not TIME.is_file():
        print(f"{TIME} is not installed: memory is not compared", file=sys.stderr)
        return []
    times = min(repeats, 3)
    return [
        judged("/usr/bin/time -v, our own child", "peak, MB", [trial.child_memory() for _ in range(times)]),
        judged("/usr/bin/time -v, the plain loop", "peak over imports, MB", [trial.growth() for _ in range(times)]),
    ]


def judged(tool: str, what: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return medians of both and the geometric mean of their ratios, with a t interval over the repeats."""
    logs = [math.log(theirs / own) for own, theirs in pairs]
    half = float(student.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else None
    ratio = math.exp(mean(logs))
    return {
        "tool": tool,
        "what": what,
        "ours": median(own for own, _ in pairs),
        "theirs": median(theirs for _, theirs in pairs),
        "ratio": ratio,
        "low": None if half is None else ratio * math.exp(-half),
        "high": None if half is None else ratio * math.exp(half),
        "pairs": pairs,
        "agrees": abs(ratio - 1) <= TOLERANCE,
    }


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Independent tools",
        "",
        f"`{record['model']}` in {record['precision']}, one input of {record['tokens']} tokens, {record['runs']} runs "
        f"in each repeat, one thread, one core. {record['environment']['cpu']['model']}, {record['created']}. All "
        "pairs are in [independent-tools.json](independent-tools.json).",
        "",
        "| tool | figure | ours | theirs | theirs over ours | within 5 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        agrees = "yes" if row["agrees"] else "no"
        numbers = f"{row['ours']:.3f} | {row['theirs']:.3f} | {row['ratio']:.3f}{ends}"
        lines.append(f"| {row['tool']} | {row['what']} | {numbers} | {agrees} |")
    return "\n".join(lines) + "\n"


def resident(said: str) -> float:
    """Return the largest resident set in MB that ``time -v`` reports; its kbytes are units of 1,024 bytes."""
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", said)
    return int(found[1]) * 1024 / 1e6 if found else math.nan


def version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
