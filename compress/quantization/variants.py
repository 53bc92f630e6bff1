"""Sessions of models that differ in a few nodes, over one copy of the weights.

A candidate repeats most of the float model's weights. Here they are loaded once and every session refers to them, so
that writing and opening a candidate takes milliseconds instead of copying the whole model several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.data.encoded import Encoded
from compress.errors import RunError
from compress.runtimes.onnxruntime_package import import_onnxruntime

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_SHARED_BYTES = 4096
"""From this size on a constant is shared; smaller ones (shapes, axes, biases) stay in the model."""


class Variants:
    """The weights of a float32 model, and a way to run models that use them.

    Args:
        model: left as it was.
        threads: of every session.
        as_written: compute QuantizeLinear/DequantizeLinear pairs and the products between them in float, one by one,
            instead of in this CPU's integer kernels: what another runtime makes of the graph, without saturation.
    """

    def __init__(self, model: onnx.ModelProto, threads: int = 1, *, as_written: bool = False) -> None:
        import onnx
        from onnx import numpy_helper

        ort = import_onnxruntime()
        self._threads, self._as_written = threads, as_written
        self._stored: dict[str, onnx.TensorProto] = {}
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._skeleton = onnx.ModelProto()
        self._skeleton.CopyFrom(model)
        for tensor in self._skeleton.graph.initializer:
            values = np.ascontiguousarray(numpy_helper.to_array(tensor))
            if values.nbytes >= _SHARED_BYTES:
                self._values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(values)
        for tensor in self._skeleton.graph.initializer:
            if tensor.name in self._values:
                self._stored[tensor.name] = onnx.TensorProto.FromString(tensor.SerializeToString())
                _refer(tensor)

    def skeleton(self, values_of: Iterable[str] = ()) -> onnx.ModelProto:
        """Return the model without its large constants, but for those named in ``values_of``.

        The others have their name, type and shape; whoever rewrites the graph may use but not read them.
        """
        import onnx

        copy, wanted = onnx.ModelProto(), set(values_of)
        copy.CopyFrom(self._skeleton)
        for tensor in copy.graph.initializer:
            if tensor.name in wanted and tensor.name in self._stored:
                tensor.CopyFrom(self._stored[tensor.name])
        return copy

    def run(self, model: onnx.ModelProto, encoded: Encoded) -> np.ndarray:
        """Run a model made from ``skeleton`` on examples one by one, at their real lengths, in this process.

        Returns:
            (n, ...) float64, its first output.

        Raises:
            RunError: ONNX Runtime does not open or run it.
        """
        rows = [outputs[0] for outputs in self._outputs(model, encoded)]
        return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])

    def observe(self, names: Sequence[str], encoded: Encoded) -> dict[str, np.ndarray]:
        """Return name -> values of float tensors inside the float model, for the first example.

        Raises:
            RunError: ONNX Runtime does not run the model.
        """
        import onnx

        model = self.skeleton()
        del model.graph.output[:]
        kind = onnx.TensorProto.FLOAT
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
        return dict(zip(names, next(self._outputs(model, encoded)), strict=True))

    def _outputs(self, model: onnx.ModelProto, encoded: Encoded) -> Iterator[list[np.ndarray]]:
        """Yield the outputs of one example after another."""
        try:
            session = self._open(model)
            names = {value.name for value in session.get_inputs()}
            for i in range(len(encoded)):
                feed = {name: array for name, array in encoded.batch([i]).items() if name in names}
                yield session.run(None, feed)
        except Exception as error:  # what ONNX Runtime raises shares no base but this one
            raise RunError(
                "A variant of the model could not be run in ONNX Runtime.",
                value=(str(error).strip().splitlines() or [type(error).__name__])[0],
                fix="Check that the float model runs in ONNX Runtime on these examples.",
            ) from error

    def _open(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        import onnx

        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1" if self._as_written else "0")
        external = onnx.TensorProto.EXTERNAL
        names = [tensor.name for tensor in model.graph.initializer if tensor.data_location == external]
        options.add_external_initializers(names, [self._values[name] for name in names])
        providers = ["CPUExecutionProvider"]
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)


def _refer(tensor: onnx.TensorProto) -> None:
    """Replace the values of a constant by a reference that only ``Variants`` can resolve."""
    import onnx

    name, kind, shape = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
    tensor.dims.extend(shape)
    tensor.external_data.add(key="location", value="shared")
