"""INT8 through ONNX Runtime's quantizers: dynamic (activations at run time) and static QDQ (calibrated).

Both are pure functions of a graph; they never touch the model that they are given.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.data.encoded import Encoded
from compress.errors import RecipeError, RunError
from compress.runtimes.onnxruntime_package import import_onnxruntime

if TYPE_CHECKING:
    import numpy as np
    import onnx

Activation = Literal["uint8", "int8"]
MATRIX_OPERATORS = ("MatMul", "Gemm")
BETWEEN_CONVOLUTIONS = ("Add", "GlobalAveragePool", "MaxPool", "Relu")
"""What stands between convolutions: kept in 8 bits too, so that values are not converted there and back."""
_SPLIT = "_MatMul"
"""What ONNX Runtime appends to the name of a Gemm when it splits it into MatMul and Add."""
_PREPROCESSED = ("onnx.quant.pre_process", "onnxruntime.quant")


def quantize_dynamic(
    model: onnx.ModelProto,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    embeddings: bool = True,
    exclude: Sequence[str] = (),
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantize weights to signed 8 bits and let activations be quantized at run time.

    Args:
        model: float32 graph; weights inside.
        per_channel: one scale for each output column instead of one for each weight.
        reduce_range: use 7 of the 8 bits, see ``compress.quantization.isa``.
        embeddings: store embedding tables in 8 bits too (most of a small encoder's bytes).
        exclude: globs of node names that stay in float32.

    Returns:
        The quantized model, and notes: nodes quantized and left, by operator.

    Raises:
        MissingCapabilityError: onnxruntime is not installed.
        RecipeError: a glob matches no node that could be quantized.
        RunError: the quantizer failed.
    """
    library = _library()
    operators = [*MATRIX_OPERATORS, *(["Gather"] if embeddings else [])]
    kept = excluded_nodes(model, operators, exclude)

    def convert(source: onnx.ModelProto, out_file: Path) -> None:
        library.quantize_dynamic(
            source,
            out_file,
            op_types_to_quantize=operators,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=library.QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"MatMulConstBOnly": True},
        )

    quantized = _run(model, convert)
    return quantized, {"method": "dynamic", **_count(model, quantized, operators)}


def quantize_static(
    model: onnx.ModelProto,
    calibration: Encoded,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    embeddings: bool = True,
    activation: Activation = "uint8",
    exclude: Sequence[str] = (),
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantize matrix products with ranges measured on real inputs, as QuantizeLinear/DequantizeLinear pairs.

    In a network that consists of convolutions these are quantized, with their biases unless activations are
    ``int8`` (TensorRT takes no 32-bit ones), and so is what stands between them: ONNX Runtime has 8-bit convolutions
    only where the output is quantized too.

    Every example runs alone, at its real length, so that padding never enters a range; ONNX Runtime reduces
    each tensor to its minimum and maximum inside the graph, so memory does not grow with the sample.

    Args:
        model: float32 graph; weights inside.
        calibration: examples to measure; order does not matter.
        per_channel: one scale for each output column instead of one for each weight.
        reduce_range: use 7 of the 8 bits of a weight, see ``compress.quantization.isa``.
        embeddings: store embedding tables in 8 bits too; they get a zero point, so never with ``int8``.
        activation: ``uint8`` with a zero point (CPU), or symmetric ``int8`` without one, which is all that
            TensorRT takes and what x86 multiplies slowly.
        exclude: globs of node names that stay in float32.

    Returns:
        The quantized model, and notes: nodes quantized and left by operator, examples used.

    Raises:
        MissingCapabilityError: onnxruntime is not installed.
        RecipeError: a glob matches no node that could be quantized.
        RunError: the quantizer failed, or there is nothing to calibrate on.
    """
    if not len(calibration):
        raise RunError("There is no example to calibrate on.", fix="Give `data.calibration.samples` of at least 1.")
    library = _library()
    convolutional = is_convolutional(model)
    products = [*MATRIX_OPERATORS, *(["Conv"] if convolutional else [])]
    kept = excluded_nodes(model, [*products, *(["Gather"] if embeddings else [])], exclude)
    inputs = [value.name for value in model.graph.input]
    symmetric = activation == "int8"

    def convert(source: onnx.ModelProto, out_file: Path) -> None:
        library.quantize_static(
            source,
            out_file,
            CalibrationReader(calibration, inputs),
            quant_format=library.QuantFormat.QDQ,
            op_types_to_quantize=[*products, *(BETWEEN_CONVOLUTIONS if convolutional else ())],
            per_channel=per_channel,
            reduce_range=reduce_range,
            activation_type=library.QuantType.QInt8 if symmetric else library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=library.CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": convolutional and not symmetric,
                "OpTypesToExcludeOutputQuantization": list(MATRIX_OPERATORS),
            },
        )

    def convert_tables(source: onnx.ModelProto, out_file: Path) -> None:
        library.quantize_dynamic(
            source,
            out_file,
            op_types_to_quantize=["Gather"],
            reduce_range=reduce_range,
            weight_type=library.QuantType.QInt8,
            nodes_to_exclude=kept,
        )

    quantized = _run(_run(model, convert_tables) if embeddings and not symmetric else model, convert)
    notes = {"method": "static", "activation": activation, "calibration_used": len(calibration)}
    return quantized, notes | _count(model, quantized, [*products, "Gather"])


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Say whether a graph has more convolutions than other products (a vision transformer has one)."""
    kinds = Counter(node.op_type for node in model.graph.node)
    return kinds["Conv"] > sum(kinds[name] for name in MATRIX_OPERATORS)


def excluded_nodes(model: onnx.ModelProto, operators: Sequence[str], globs: Sequence[str]) -> list[str]:
    """Return the names of the nodes of the given operator types that any glob matches, and of what a Gemm splits into.

    Raises:
        RecipeError: a glob matches none of them.
    """
    names = [node.name for node in model.graph.node if node.op_type in operators]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise RecipeError(
                "`exclude` names no node that could be quantized.",
                value=glob,
                fix=f"Node names look like: {', '.join(names[:3])}.",
            )
    kept = [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]
    return [*kept, *(name + _SPLIT for name in kept)]


class CalibrationReader:
    """Feed examples to ONNX Runtime's calibrator one by one, unpadded.

    Args:
        encoded: the examples.
        inputs: names that the graph takes; others are left out.
    """

    def __init__(self, encoded: Encoded, inputs: Sequence[str]) -> None:
        self._feeds = (_only(encoded.batch([i]), inputs) for i in range(len(encoded)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed, name -> (1, length) int64 or (1, *shape) float32, or None at the end."""
        return next(self._feeds, None)


def _only(feed: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in feed.items() if name in names}


def _run(model: onnx.ModelProto, convert: Callable[[onnx.ModelProto, Path], None]) -> onnx.ModelProto:
    """Call a quantizer on a copy without ``value_info`` (it infers its own) and return what it wrote.

    Metadata and producer fields are those of the model that came in.
    """
    import onnx

    source = onnx.ModelProto()
    source.CopyFrom(model)
    del source.graph.value_info[:]
    source.metadata_props.add(key=_PREPROCESSED[0], value=_PREPROCESSED[1])
    with tempfile.TemporaryDirectory(prefix="mcompress-") as folder:
        out_file = Path(folder) / "model.onnx"
        try:
            with _quiet():
                convert(source, out_file)
        except Exception as error:  # the quantizers raise whatever their helpers raise
            lines = str(error).strip().splitlines() or [""]
            raise RunError(
                "ONNX Runtime could not quantize the model.",
                value=f"{type(error).__name__}: {lines[0]}",
                fix="Exclude the node it names with `exclude`, or use the other `method`.",
            ) from error
        quantized = onnx.load(out_file)
    del quantized.metadata_props[:], quantized.graph.value_info[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized


def _count(before: onnx.ModelProto, after: onnx.ModelProto, operators: Sequence[str]) -> dict[str, Any]:
    """Count, by operator, the nodes that now compute on 8-bit tensors and those that still do not."""
    wanted = {node.name: node.op_type for node in _float_nodes(before, operators)}
    still = {node.name for node in _float_nodes(after, operators)}
    left = {name for name in wanted if name in still or name + _SPLIT in still}
    return {
        "nodes_quantized": dict(sorted(Counter(kind for name, kind in wanted.items() if name not in left).items())),
        "nodes_left": dict(sorted(Counter(wanted[name] for name in left).items())),
    }


def _float_nodes(model: onnx.ModelProto, operators: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes of the given types that compute on float tensors; a Gather only if it reads a table."""
    import onnx

    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node
        for node in model.graph.node
        if node.op_type in operators
        and (node.input[0] in floats if node.op_type == "Gather" else not set(node.input[:2]) <= dequantized)
    ]


def _library() -> Any:
    return import_onnxruntime("onnxruntime.quantization")


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow the quantizer's advice, which it logs for every model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
