"""Our INT8 artifacts beside those of the peers: ONNX Runtime, NNCF, Transformers, Olive, ModelOpt.

Each peer works in a virtual environment of its own, from the same float32 ONNX file (or, where it exports itself, the
same model folder) and the same calibration texts. Then everything is measured on test in one interleaved session, one
example at a time, one thread: ONNX files on ONNX Runtime, OpenVINO IR on OpenVINO, both beside FP32.

    python benchmarks/int8_peers.py --model MODELS/minilm-l6-sst2 --data DATA/sst2 --work DIR \
        --out reports/int8-peers/sst2
    python benchmarks/int8_peers.py ... --ours best=DIR/artifact --peers olive onnxruntime

Writes report.md and report.json (with every raw sample and outcome). Environments and artifacts lie in the folder
--work: running again only measures, which wants an idle machine. A peer that fails is a row with the reason. Exits with
1 when the claim holds for none of ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from int8_peers_making import PEERS, Candidate, Place, given, make_ours, make_peer, take_in_model, write_texts
from int8_peers_table import Claims, Line, claims, lines, markdown, plain, plain_claims

from compress.artifact import Artifact
from compress.bench.environment import environment
from compress.bench.measurement import Measurement
from compress.bench.protocol import MeasureSettings, Subject, measure
from compress.data.calibration import calibration_rows
from compress.data.sources import read_rows
from compress.data.splits import Row
from compress.runtimes.target import find_target
from compress.tasks.base import task_from

ORT, OPENVINO = "ort-cpu-1t", "openvino-cpu-1t"
FP32 = "ONNX Runtime FP32"


def prepare(options: argparse.Namespace) -> Place:
    """Export the model and write the calibration texts."""
    root = (options.work / options.data.name).resolve()
    root.mkdir(parents=True, exist_ok=True)
    _say("exporting the float32 model")
    model, fp32 = take_in_model(options.model, root)
    calibration = root / "calibration.csv"
    write_texts(calibration_rows(read_rows(options.data / "train.csv"), options.samples, options.seed), calibration)
    venvs = options.work.resolve() / "venvs"
    return Place(venvs, root, model, fp32, calibration, options.peer_seconds, options.retry)


def make_all(options: argparse.Namespace, place: Place) -> list[Candidate]:
    """Return every row of the table: FP32 on both runtimes, ours, the peers."""
    base = [Candidate(FP32, "baseline", place.fp32), Candidate("OpenVINO FP32", "baseline", place.fp32)]
    found = [*base, *(given(options.ours) or make_ours(options.model, options.data, place))]
    for peer in options.peers:
        for variant in PEERS[peer]:
            _say(f"{peer} {variant}")
            found.append(make_peer(peer, variant, place))
            if found[-1].reason:
                _say(f"  {found[-1].reason}")
    return found


def measure_all(
    candidates: Sequence[Candidate], place: Place, rows: Sequence[Row], options: argparse.Namespace
) -> list[Measurement]:
    """Measure all that was made in one interleaved session."""
    shared = place.task.encode(place.model, rows)
    subjects = []
    for candidate in candidates:
        artifact = candidate.artifact
        if artifact is None:
            continue
        own = candidate.role == "ours"
        encoded = task_from(artifact.manifest.task).encode(artifact.path, rows) if own else shared
        subjects.append(Subject(candidate.name, artifact, encoded, find_target(_target(candidate, artifact))))
    settings = MeasureSettings(
        inputs=options.inputs, rounds=options.rounds, launches=options.launches, precision=None, seconds=7200.0
    )
    with tempfile.TemporaryDirectory(dir=place.root) as work:
        return measure(subjects, settings=settings, work=Path(work), seed=options.seed, emit=_progress)


def _target(candidate: Candidate, artifact: Artifact) -> str:
    return OPENVINO if artifact.kind == "openvino" or candidate.name == "OpenVINO FP32" else ORT


def write(
    out: Path, options: argparse.Namespace, place: Place, table: Sequence[Line], found: Sequence[Claims], command: str
) -> str:
    """Write report.md and report.json; return the former."""
    facts = environment()
    report = markdown(table, found, facts, command)
    record: dict[str, Any] = {
        "schema_version": 1,
        "command": command,
        "environment": facts,
        "model": {"name": options.model.name, "fp32_digest": place.fp32.digest},
        "test_sha256": _sha256(options.data / "test.csv"),
        "calibration": {"texts": options.samples, "seed": options.seed, "sha256": _sha256(place.calibration)},
        "lines": [plain(line) for line in table],
        "claims": [plain_claims(claim) for claim in found],
        "measurements": [line.measurement.model_dump(mode="json") for line in table if line.measurement],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(report, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a text classifier")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and report.json")
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and artifacts, kept")
    parser.add_argument(
        "--ours", nargs="+", action="extend", default=[], metavar="LABEL=DIR", help="artifact folders of ours"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--samples", type=int, default=300, help="calibration texts (default: 300)")
    parser.add_argument("--inputs", type=int, default=100, help="timed test examples (default: 100)")
    parser.add_argument("--rounds", type=int, default=15, help="passes over them, per launch (default: 15)")
    parser.add_argument("--launches", type=int, default=1, help="fresh sets of processes (default: 1)")
    parser.add_argument("--peer-seconds", type=float, default=1800.0, help="time for one artifact (default: 1800)")
    parser.add_argument("--limit", type=int, help="rows of test, for a trial; default: all")
    parser.add_argument("--make-only", action="store_true", help="make everything, measure nothing")
    parser.add_argument("--retry", action="store_true", help="try again what failed in an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if wrong := [word for word in options.ours if not all(word.partition("="))]:
        parser.error(f"--ours wants LABEL=DIR, got {wrong[0]!r}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, begun = parse(arguments), time.monotonic()
    place = prepare(options)
    candidates = make_all(options, place)
    if options.make_only:
        return 0
    rows = read_rows(options.data / "test.csv")[: options.limit]
    measured = measure_all(candidates, place, rows, options)
    answers = place.task.encode(place.model, rows).targets
    if answers is None or measured[0].status != "ok":
        raise SystemExit(f"FP32 could not be measured, or test has no labels: {measured[0].reason}")
    table = lines(candidates, measured, place.task, answers)
    found = claims(table)
    words = ["python", "benchmarks/int8_peers.py", *(sys.argv[1:] if arguments is None else arguments)]
    report = write(options.out, options, place, table, found, _without_folders(words, options))
    print(f"\n{report}\n{time.monotonic() - begun:.0f} s; written to {options.out}")
    return int(not any(claim.hold for claim in found))


def _without_folders(words: Sequence[str], options: argparse.Namespace) -> str:
    """Return a command without this machine's folders: MODELS/name, DATA/name, DIR."""
    shown = {
        str(options.model): f"MODELS/{options.model.name}",
        str(options.data): f"DATA/{options.data.name}",
        str(options.out): f"reports/int8-peers/{options.out.name}",
        str(options.work): "DIR",
    }
    for word in options.ours:
        label, _, folder = word.partition("=")
        shown[word.rstrip("/")] = f"{label}=DIR/{Path(folder).name}"
    return " ".join(shown.get(word.rstrip("/"), word) for word in words)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(message: str) -> None:
    print(message, flush=True)


def _progress(message: str, done: int | None = None, total: int | None = None) -> None:
    if sys.stdout.isatty() or os.environ.get("VERBOSE"):
        print(f"{message} {done}/{total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
