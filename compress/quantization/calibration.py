"""Run real inputs through a model in a child process and keep streaming statistics of the tensors that matter.

``python -m compress.quantization.calibration MODEL ENCODED OUT THREADS HISTOGRAMS`` is the child: it opens a graph
whose wanted tensors are outputs, and writes what it saw. Its peak memory is the price of calibration.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.bench.memory import peak_resident_bytes
from compress.children import die_with_parent
from compress.data.encoded import Encoded
from compress.errors import RunError
from compress.quantization.ranges import Histogram, Observer, Range, Statistics, choose_range, vanishing_share
from compress.runtimes.onnxruntime_package import import_onnxruntime

if TYPE_CHECKING:
    import onnx

_NUMBERS = ("low", "high", "low_sum", "high_sum", "examples")


@dataclass(frozen=True)
class Calibration:
    """What calibration saw.

    Attributes:
        statistics: tensor name -> statistics.
        examples: how many were run, one by one, at their real lengths.
        peak_rss_bytes: largest resident memory of the process that ran them.
    """

    statistics: Mapping[str, Statistics]
    examples: int
    peak_rss_bytes: int

    def ranges(self, observer: Observer) -> dict[str, Range]:
        """Return tensor name -> its 8-bit range by one way to choose it."""
        return {name: choose_range(statistics, observer) for name, statistics in self.statistics.items()}

    def vanishing(self) -> dict[str, float]:
        """Return tensor name -> share of its values that 8 bits over its whole range round to 0, where counted."""
        seen = {name: it for name, it in self.statistics.items() if it.histogram is not None}
        return {name: vanishing_share(statistics) for name, statistics in seen.items()}

    def channel_peaks(self) -> dict[str, np.ndarray]:
        """Return tensor name -> (width,) largest absolute values along its last axis, where that has one length."""
        seen = {name: statistics.channels for name, statistics in self.statistics.items()}
        return {name: peaks for name, peaks in seen.items() if peaks is not None and peaks.size}


def calibrate(
    model: onnx.ModelProto, encoded: Encoded, tensors: Sequence[str], *, histograms: bool = True, threads: int = 1
) -> Calibration:
    """Observe tensors of a model over examples; memory does not grow with their number.

    Every example runs alone, at its real length, so that padding never enters a range.

    Args:
        model: float32 graph.
        encoded: the examples.
        tensors: names of float tensors inside the graph, or of its inputs.
        histograms: whether to keep histograms besides the extremes.
        threads: of the runtime.

    Raises:
        RunError: there is no example, or the model does not run on one.
    """
    if not len(encoded):
        raise RunError("There is no example to calibrate on.", fix="Give `data.calibration.samples` of at least 1.")
    names = sorted(set(tensors))
    with tempfile.TemporaryDirectory(prefix="mcompress-") as folder:
        graph_file, inputs, out = (Path(folder) / name for name in ("model.onnx", "encoded.npz", "seen.npz"))
        graph_file.write_bytes(_observed(model, names).SerializeToString())
        encoded.save(inputs)
        arguments = [str(graph_file), str(inputs), str(out), str(threads), str(int(histograms))]
        done = subprocess.run(
            [sys.executable, "-m", "compress.quantization.calibration", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(
                "The model could not be run on the calibration examples.",
                value=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1],
                fix="Check that the model runs in ONNX Runtime, and that the memory suffices.",
            )
        return _load(out, names, len(encoded))


def _observed(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose only outputs are the tensors to observe, and what they depend on."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:], copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy


def _load(file: Path, names: Sequence[str], examples: int) -> Calibration:
    statistics = {}
    with np.load(file, allow_pickle=False) as seen:
        for i, name in enumerate(names):
            numbers = dict(zip(_NUMBERS, seen[f"{i}"].tolist(), strict=True))
            histogram = None
            if f"{i}/counts" in seen.files:
                histogram = Histogram(len(seen[f"{i}/counts"]))
                histogram.counts = seen[f"{i}/counts"]
                start, histogram.width = seen[f"{i}/bins"].tolist()
                histogram.start = int(start)
            numbers["examples"] = int(numbers["examples"])
            statistics[name] = Statistics(**numbers, histogram=histogram, channels=seen[f"{i}/channels"])
        peak = int(seen["peak"])
    return Calibration(statistics, examples, peak)


def _observe(graph_file: str, inputs: str, out: str, threads: str, histograms: str) -> None:
    """Do the child's work; outputs of the graph are observed in the order of their sorted names."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph_file, options, providers=["CPUExecutionProvider"])
    encoded = Encoded.load(Path(inputs))
    wanted = {value.name for value in session.get_inputs()}
    names = sorted(value.name for value in session.get_outputs())
    seen = {name: Statistics(histogram=Histogram() if int(histograms) else None) for name in names}
    for i in range(len(encoded)):
        feed = {name: array for name, array in encoded.batch([i]).items() if name in wanted}
        for name, values in zip(names, session.run(names, feed), strict=True):
            seen[name].update(np.asarray(values))
    arrays = _arrays(list(seen.values())) | {"peak": np.array(peak_resident_bytes())}
    np.savez(out, **arrays)  # type: ignore[arg-type]


def _arrays(statistics: Sequence[Statistics]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for i, it in enumerate(statistics):
        arrays[f"{i}"] = np.array([getattr(it, name) for name in _NUMBERS], dtype=np.float64)
        if it.channels is not None:
            arrays[f"{i}/channels"] = it.channels
        if it.histogram is not None:
            arrays[f"{i}/counts"] = it.histogram.counts
            arrays[f"{i}/bins"] = np.array([it.histogram.start, it.histogram.width], dtype=np.float64)
    return arrays


if __name__ == "__main__":
    die_with_parent()
    _observe(*sys.argv[1:])
