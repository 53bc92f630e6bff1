"""The table of ``int8_peers.py``: rows, the two claims, and both as Markdown and as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from int8_peers_making import Candidate

from compress.bench.measurement import Measurement
from compress.bench.statistics import Interval, PairedDifference, paired_difference
from compress.bench.timing_statistics import percentile, ratio_of_totals
from compress.report.markdown import text
from compress.tasks.base import Task

TOLERANCE = 0.01
"""Accuracy that a peer may lose and still be a rival in speed: one point."""
AS_FAST = 0.97
"""Share of the fastest rival's speed that ours must reach."""
POINT = 100.0


@dataclass(frozen=True)
class Line:
    """One row; ``reason`` alone where nothing could be measured.

    Attributes:
        bytes: of the graph and its weights.
        right, n: test examples answered rightly, and all of them.
        difference: accuracy minus that of ONNX Runtime FP32, paired.
        p50_ms, mean_ms: of one example.
        speedup: total time of ONNX Runtime FP32 over its own.
        outcomes: one digit per test example: 1 is right.
        measurement: with the raw samples.
    """

    candidate: Candidate
    reason: str = ""
    bytes: int = 0
    right: int = 0
    n: int = 0
    difference: PairedDifference | None = None
    p50_ms: float = 0.0
    mean_ms: float = 0.0
    speedup: Interval | None = None
    outcomes: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    measurement: Measurement | None = None

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def samples(self) -> list[list[list[float]]]:
        return [] if self.measurement is None else self.measurement.samples_ms


@dataclass(frozen=True)
class Claims:
    """What one of ours is measured by.

    Attributes:
        ours: its name.
        fastest: the fastest peer within one point of FP32; ``ratio``: total time of that peer over ours.
        best: the most accurate peer that is faster than FP32; ``difference``: accuracy of ours minus its.
    """

    ours: str
    fastest: str
    ratio: Interval | None
    best: str
    difference: PairedDifference | None

    @property
    def as_fast(self) -> bool:
        """Whether the interval reaches the share of the fastest rival's speed."""
        return self.ratio is not None and self.ratio.high >= AS_FAST

    @property
    def as_accurate(self) -> bool:
        """Whether the interval is not wholly below zero."""
        return self.difference is not None and self.difference.high >= 0

    @property
    def hold(self) -> bool:
        return self.as_fast and self.as_accurate


def lines(candidates: Sequence[Candidate], rows: Sequence[Measurement], task: Task, answers: np.ndarray) -> list[Line]:
    """Return one line per candidate, in their order; the first of ``rows`` is ONNX Runtime FP32."""
    by_name = {row.subject: row for row in rows}
    base = by_name[candidates[0].name]
    return [_line(candidate, by_name.get(candidate.name), base, task, answers) for candidate in candidates]


def _line(candidate: Candidate, row: Measurement | None, base: Measurement, task: Task, answers: np.ndarray) -> Line:
    if row is None or row.status != "ok" or row.outputs is None or base.outputs is None:
        return Line(candidate, reason=candidate.reason or (row.reason if row else "not measured"))
    outcomes = task.score(row.outputs, answers).outcomes
    first = row is base
    return Line(
        candidate,
        bytes=row.size_bytes,
        right=int(outcomes.sum()),
        n=len(outcomes),
        difference=None if first else paired_difference(task.score(base.outputs, answers).outcomes, outcomes),
        p50_ms=percentile(row.flat_ms, 50),
        mean_ms=float(row.flat_ms.mean()),
        speedup=None if first else ratio_of_totals(base.samples_ms, row.samples_ms),
        outcomes=outcomes,
        measurement=row,
    )


def claims(table: Sequence[Line]) -> list[Claims]:
    """Compare each of ours with the fastest and with the most accurate rival."""
    peers = [line for line in table if line.candidate.role == "peer" and line.speedup is not None]
    near = [line for line in peers if _change(line) >= -TOLERANCE]
    fast = [line for line in peers if _speedup(line) > 1]
    fastest = max(near, key=_speedup, default=None)
    best = max(fast, key=lambda line: (line.right, _speedup(line)), default=None)
    return [_claims(line, fastest, best) for line in table if line.candidate.role == "ours" and not line.reason]


def _claims(ours: Line, fastest: Line | None, best: Line | None) -> Claims:
    return Claims(
        ours.name,
        fastest.name if fastest else "",
        ratio_of_totals(fastest.samples, ours.samples) if fastest else None,
        best.name if best else "",
        paired_difference(best.outcomes, ours.outcomes) if best else None,
    )


def _speedup(line: Line) -> float:
    return 0.0 if line.speedup is None else line.speedup.value


def _change(line: Line) -> float:
    return 0.0 if line.difference is None else line.difference.value


def markdown(table: Sequence[Line], found: Sequence[Claims], environment: dict[str, Any], command: str) -> str:
    """Return the report."""
    parts = [*_head(table[0], environment, command), *_rows(table), *_verdict(found), *_graphs(table), *_made(table)]
    return "\n".join(parts) + "\n"


def _head(base: Line, environment: dict[str, Any], command: str) -> Iterator[str]:
    cpu = environment["cpu"]
    packages = ", ".join(f"{name} {environment['packages'].get(name)}" for name in ("onnxruntime", "openvino"))
    yield "# INT8 beside its peers\n"
    yield f"    {command}\n"
    yield (
        f"{cpu['model']} ({', '.join(cpu['flags'])}), one thread; {packages}. One example at a time at its real "
        "length, all artifacts interleaved in one session. Every peer quantized the same float32 ONNX export, or "
        f"the same model folder where it exports itself, and calibrated on the same training texts. ONNX Runtime "
        f"FP32: {base.mean_ms:.2f} ms. Intervals are of 95 %: of speed-ups over rounds, of differences in points "
        "paired over test examples."
    )
    warnings = dict.fromkeys(base.measurement.warnings if base.measurement else ())
    yield from (f"\nThe session was disturbed: {text(warning)}." for warning in warnings)


def _rows(table: Sequence[Line]) -> Iterator[str]:
    yield f"\n| artifact | on | MB | right of {table[0].n} | points to FP32 | mean ms | speed-up over FP32 |"
    yield "|---|---|---:|---:|---|---:|---|"
    for line in table:
        if line.reason:
            yield f"| {text(line.name)} | none: {text(line.reason)} | | | | | |"
            continue
        cells = [
            text(line.name),
            line.measurement.target if line.measurement else "",
            f"{line.bytes / 1e6:.1f}",
            str(line.right),
            _points(line.difference),
            f"{line.mean_ms:.2f}",
            _ratio(line.speedup) or "1",
        ]
        yield f"| {' | '.join(cells)} |"


def _verdict(found: Sequence[Claims]) -> Iterator[str]:
    yield (
        f"\nClaim: ours reaches at least {AS_FAST:g} of the speed of the fastest peer within {TOLERANCE * POINT:g} "
        "point of FP32 (the interval's high end does), and is not significantly less accurate than the most accurate "
        "peer that is faster than FP32 (the interval is not wholly below zero).\n"
    )
    yield "| ours | fastest peer | its time / ours | | most accurate peer | points to it | |"
    yield "|---|---|---|---|---|---|---|"
    for claim in found:
        cells = [
            text(claim.ours),
            text(claim.fastest) or "none",
            _ratio(claim.ratio),
            _says(claim.as_fast),
            text(claim.best) or "none",
            _points(claim.difference),
            _says(claim.as_accurate),
        ]
        yield f"| {' | '.join(cells)} |"
    verdict = "holds" if any(claim.hold for claim in found) else "does not hold for any of ours"
    yield f"\nThe claim {verdict}."


def _graphs(table: Sequence[Line]) -> Iterator[str]:
    yield "\n## What runs\n\nOperators after the runtime's own graph optimizations.\n"
    yield "| artifact | operators |\n|---|---|"
    for line in table:
        if line.measurement is not None and "operators" in line.measurement.placement:
            operators = line.measurement.placement["operators"].items()
            yield f"| {text(line.name)} | {text(', '.join(f'{count} {name}' for name, count in operators))} |"


def _made(table: Sequence[Line]) -> Iterator[str]:
    yield "\n## How the peers were made\n\n| artifact | options | packages | s | peak MB |\n|---|---|---|---:|---:|"
    for line in table:
        record = line.candidate.record
        if record:
            options = ", ".join(f"{name}: {value}" for name, value in record["options"].items())
            packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
            peak = record["peak_rss_bytes"]
            size = "" if peak is None else f"{peak / 1e6:.0f}"
            yield f"| {text(line.name)} | {text(options)} | {text(packages)} | {record['seconds']:.0f} | {size} |"


def _says(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _ratio(ratio: Interval | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _points(difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    low, high = POINT * difference.low, POINT * difference.high
    return f"{POINT * difference.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def plain(line: Line) -> dict[str, Any]:
    """Return a line for report.json."""
    return {
        "artifact": line.name,
        "role": line.candidate.role,
        "reason": line.reason,
        "digest": line.candidate.artifact.digest if line.candidate.artifact else None,
        "bytes": line.bytes,
        "right": line.right,
        "n": line.n,
        "difference": asdict(line.difference) if line.difference else None,
        "p50_ms": line.p50_ms,
        "mean_ms": line.mean_ms,
        "speedup": line.speedup._asdict() if line.speedup else None,
        "outcomes": "".join(str(int(right)) for right in line.outcomes),
        "made": line.candidate.record,
    }


def plain_claims(claim: Claims) -> dict[str, Any]:
    """Return claims for report.json."""
    ratio, difference = claim.ratio, claim.difference
    return {
        "ours": claim.ours,
        "fastest": claim.fastest,
        "ratio": ratio._asdict() if ratio else None,
        "as_fast": claim.as_fast,
        "best": claim.best,
        "difference": asdict(difference) if difference else None,
        "as_accurate": claim.as_accurate,
    }
