"""How much each product loses when it alone runs on 8-bit integers, and which of its two inputs loses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compress.bench.protocol import Emit, silent
from compress.data.encoded import Encoded
from compress.errors import RunError
from compress.quantization.products import Product
from compress.quantization.ranges import Range
from compress.quantization.rules import Placement
from compress.quantization.variants import Variants
from compress.quantization.writing import Half, Int8Format, write_half, write_int8
from compress.tasks.base import Task

if TYPE_CHECKING:
    import onnx

EXACT_DB = 200.0
"""What stands for equal outputs; float32 rounding alone gives at most about 150 dB."""


@dataclass(frozen=True)
class Sensitivity:
    """What one product loses when everything else stays in float32.

    Attributes:
        node, operator: which.
        sqnr_db: ratio of signal to quantization noise of the model's outputs, dB; less is worse; ``EXACT_DB`` =
            equal outputs, ``-EXACT_DB`` = outputs that are not finite.
        kl: mean Kullback-Leibler divergence of the softmax of the outputs, nats; None for a single output.
        drop_points: loss of the metric on the examples, points (in the metric's own unit where lower is better),
            positive = worse; None without targets.
        macs_share: its part of the multiply-accumulates of all linear layers, 0 to 1; 0 for tables.
        activation_sqnr_db, weight_sqnr_db: the same ratio where only that input is rounded; None if not asked for.
    """

    node: str
    operator: str
    sqnr_db: float
    kl: float | None
    drop_points: float | None
    macs_share: float
    activation_sqnr_db: float | None = None
    weight_sqnr_db: float | None = None


class Effect(NamedTuple):
    """What some products in 8 bits change in the outputs; as in ``Sensitivity``."""

    sqnr_db: float
    kl: float | None
    drop_points: float | None


class Probe:
    """A float32 model beside forms of it with some products in 8 bits, on a few examples.

    The forms share the weights of the float model, so each costs little more than its runs.

    Args:
        model: float32 graph; left as it was.
        encoded: the examples, run one by one at their real lengths.
        ranges: activation tensor -> range; None = taken at run time (integer form only).
        how: the format; None = integers with ranges taken at run time, or QDQ pairs where ranges are given.
        task: scores outputs; None = no metric.
        threads: of the runtime.

    Raises:
        RunError: there is no example, or the model does not run on one, or its outputs are not finite.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        encoded: Encoded,
        *,
        ranges: Mapping[str, Range] | None = None,
        how: Int8Format | None = None,
        task: Task | None = None,
        threads: int = 1,
    ) -> None:
        if not len(encoded):
            raise RunError("There is no example to measure sensitivity on.", fix="Give at least one example.")
        how = how or Int8Format("integer" if ranges is None else "qdq")
        self._how = replace(how, fused=False)
        self._encoded, self._ranges, self._task = encoded, ranges, task
        self._variants = Variants(model, threads, as_written=how.activation == "int8")
        self.reference = self._variants.run(self._variants.skeleton(), encoded)
        """(n, ...) float64, outputs of the float model."""
        if not np.isfinite(self.reference).all():
            raise RunError("The outputs of the float model are not finite.", fix="Check the model on these examples.")

    def effect(self, placements: Sequence[Placement]) -> Effect:
        """Run with these products together in 8 bits, and nothing else.

        Args:
            placements: those in int8 count.
        """
        products = [it.product for it in placements if it.precision == "int8" and it.product is not None]
        skeleton = self._variants.skeleton(product.weight for product in products)
        outputs = self._variants.run(write_int8(skeleton, placements, self._ranges, self._how), self._encoded)
        return Effect(sqnr_db(self.reference, outputs), divergence(self.reference, outputs), self._drop(outputs))

    def half(self, product: Product, half: Half) -> float:
        """Return the SQNR in dB with one input of a linear layer rounded to 8 bits and the product in float."""
        skeleton = self._variants.skeleton([product.weight])
        written = write_half(skeleton, product, half, self._ranges, self._how)
        return sqnr_db(self.reference, self._variants.run(written, self._encoded))

    def macs(self, products: Sequence[Product]) -> dict[str, int]:
        """Return node -> multiply-accumulates of a linear layer on the example of median length."""
        linear = [product for product in products if product.family == "linear"]
        if not linear:
            return {}
        middle = int(np.argsort(self._encoded.lengths, kind="stable")[len(self._encoded) // 2])
        names = sorted({product.input for product in linear})
        inputs = self._variants.observe(names, self._encoded.select([middle]))
        rows = {name: values.size // values.shape[-1] for name, values in inputs.items()}
        return {product.node: rows[product.input] * product.macs for product in linear}

    def _drop(self, outputs: np.ndarray) -> float | None:
        targets = self._encoded.targets
        if self._task is None or targets is None:
            return None
        before, after = (self._task.score(values.astype(np.float32), targets) for values in (self.reference, outputs))
        return 100.0 * (before.value - after.value) if before.direction == "higher" else after.value - before.value


def measure_sensitivity(
    probe: Probe, placements: Sequence[Placement], *, tensors: bool = False, emit: Emit = silent
) -> list[Sensitivity]:
    """Quantize each product alone and compare the outputs with the float model's.

    Args:
        probe: of the model and the examples.
        placements: what ``place`` returned for the model; the products in int8 are measured.
        tensors: whether to round the activation and the weight of each linear layer one at a time as well.
        emit: progress sink.

    Returns:
        One row per product, worst first: by SQNR, ties in the graph's order.
    """
    known = [it.product for it in placements if it.product is not None]
    macs = probe.macs(known)
    total = sum(macs.values())
    alone = [(it, it.product) for it in placements if it.precision == "int8" and it.product is not None]
    rows = []
    for done, (placement, product) in enumerate(alone):
        emit("measuring sensitivity", done, len(alone))
        share = macs.get(placement.node, 0) / total if total else 0.0
        row = Sensitivity(placement.node, placement.operator, *probe.effect([placement]), share)
        rows.append(_with_tensors(row, probe, product) if tensors else row)
    emit("measuring sensitivity", len(alone), len(alone))
    return sorted(rows, key=lambda row: row.sqnr_db)


def _with_tensors(row: Sensitivity, probe: Probe, product: Product) -> Sensitivity:
    """Add both halves; a table has only its weight."""
    if product.family == "table":
        return replace(row, weight_sqnr_db=row.sqnr_db)
    activation, weight = probe.half(product, "activation"), probe.half(product, "weight")
    return replace(row, activation_sqnr_db=activation, weight_sqnr_db=weight)


def sqnr_db(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Return ``10 log10(sum ref^2 / sum (ref - out)^2)`` over two arrays of one shape, within +-``EXACT_DB``."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference - outputs, dtype=np.float64).sum())
    if noise == 0.0:
        return EXACT_DB
    if signal == 0.0 or not np.isfinite(noise):
        return -EXACT_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -EXACT_DB, EXACT_DB))


def divergence(reference: np.ndarray, outputs: np.ndarray) -> float | None:
    """Return the mean of ``KL(softmax(ref) || softmax(out))`` over examples, nats; None for a single output.

    Args:
        reference, outputs: (n, ..., classes) logits.
    """
    if reference.shape[-1] == 1 or not np.isfinite(outputs).all():
        return None
    p, q = _log_softmax(reference), _log_softmax(outputs)
    return float(np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def noise_shares(rows: Sequence[Sensitivity]) -> list[float]:
    """Return each row's part of the noise of all, 0 to 1, as if their noises were independent and added up."""
    noise = np.array([0.0 if row.sqnr_db >= EXACT_DB else 10.0 ** (-row.sqnr_db / 10.0) for row in rows])
    return [float(value) for value in noise / (noise.sum() or 1.0)]


def sensitivity_notes(rows: Sequence[Sensitivity], excluded: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return rows as a manifest's ``notes["sensitivity"]`` holds them.

    Args:
        rows: worst first.
        excluded: node -> why it stays in float32.
    """
    excluded = excluded or {}
    return [asdict(row) | {"excluded": excluded.get(row.node, "")} for row in rows]
