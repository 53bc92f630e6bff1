"""How a server runs a model: batches, streams and threads, as a run measured them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.report.model import Report, Row, TargetRecord, ThroughputPoint
from compress.shipping.shipment import Shipment

_FROM_THE_BATCH = "DynamicQuantize"
"""How the operators begin that take the scale of activations from all that is in a batch."""
_LONGEST_NAME = 40
"""Characters, so that names made from it stay within the 63 of Kubernetes."""


@dataclass(frozen=True)
class Sizing:
    """What is known of a model under load.

    Attributes:
        batch: examples that run together, the fastest that was measured.
        largest: examples of the largest batch that was measured.
        streams: batches at once.
        threads: of the processor; None = every core, or not measured.
        per_s: examples a second at this batch; None = not measured.
        batch_source: where the batch comes from, in a sentence.
    """

    batch: int
    largest: int
    streams: int
    threads: int | None
    per_s: float | None
    batch_source: str

    @property
    def batch_us(self) -> int | None:
        """Microseconds that one batch takes."""
        return round(1e6 * self.batch * self.streams / self.per_s) if self.per_s else None


def find_sizing(shipment: Shipment, runtimes: Iterable[str], device: str, *, alone: bool) -> Sizing:
    """Look into the report for the batch that was fastest.

    Args:
        shipment: with its report, if there is one.
        runtimes: names of runtimes whose measurements count.
        device: where the server runs the model, cpu or cuda.
        alone: whether examples must run one by one.
    """
    why_alone = "examples run one by one, since the scales of dynamic INT8 depend on all that is in a batch"
    found = next(_rows(shipment, set(runtimes), device), None)
    if found is None:
        nothing = f"no report with a measurement on a {'CPU' if device == 'cpu' else 'GPU'}"
        return Sizing(1, 1, 1, None, None, why_alone if alone else nothing)
    row, target, report = found
    place = " ".join(f"{row.step} on {row.target}".split())  # it goes into comments of configurations
    cores = (target.environment or report.environment).cores
    point = _best(row, alone)
    source = why_alone if alone else "no throughput was measured"
    if point is not None:
        rate = f"{point.per_s:,.0f} inputs/s in the report"
        source = f"{why_alone}; {place}: {rate}" if alone else f"{place}: the fastest of the sweep, {rate}"
    return Sizing(
        point.batch if point else 1,
        1 if alone else max((each.batch for each in row.throughputs), default=point.batch if point else 1),
        point.streams if point else 1,
        target.threads or cores,
        point.per_s if point else None,
        source,
    )


def batch_matters(file: Path) -> bool:
    """Say whether what else is in a batch changes an example's outputs: true of INT8 scales found at run time."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    graphs = [model.graph.node, *(function.node for function in model.functions)]
    return any(node.op_type.startswith(_FROM_THE_BATCH) for nodes in graphs for node in nodes)


def served_name(shipment: Shipment) -> str:
    """Return a name from run and step that a path, a label of Kubernetes and a folder can bear."""
    words = f"{shipment.name}-{shipment.step}" if shipment.step else shipment.name
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"m-{name}".strip("-")


def _rows(shipment: Shipment, runtimes: set[str], device: str) -> Iterator[tuple[Row, TargetRecord, Report]]:
    """Yield the measured rows of the step on such targets, that of the verdict's target first."""
    report = shipment.report
    if report is None:
        return
    targets = {target.name: target for target in report.targets}
    rows = [row for row in report.rows if row.step == shipment.step and row.status == "ok"]
    for row in sorted(rows, key=lambda row: row.target != report.verdict.target):
        target = targets.get(row.target)
        if target and target.runtime in runtimes and target.device == device and row.latency is not None:
            yield row, target, report


def _best(row: Row, alone: bool) -> ThroughputPoint | None:
    points = [point for point in row.throughputs if point.batch == 1 or not alone]
    if points:
        return next((point for point in points if point.best), max(points, key=lambda point: point.per_s))
    if row.throughput_per_s and row.throughput_batch and not alone:
        return ThroughputPoint(batch=row.throughput_batch, per_s=row.throughput_per_s)
    return None
