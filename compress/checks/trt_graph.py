"""The file and the numbers in it: weights that are elsewhere, numbers that FP16 cannot hold, operator sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View


def external_data(view: View, table: Table) -> Iterator[Finding]:
    """Weights in another file must be there, and long enough."""
    for name, tensor in view.initializers.items():
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location != tensor.EXTERNAL:
            continue
        file = (view.folder / entries.get("location", "")) if view.folder is not None else None
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if file is None or not file.is_file() or file.stat().st_size < end:
            yield Finding(
                "external-data",
                "error",
                name,
                f"its numbers should be in {entries.get('location', 'another file')}, "
                f"which is {'too short' if file is not None and file.is_file() else 'not there'}",
                "Put the file of weights beside the model, or save the model as one file.",
            )


def half_range(view: View, table: Table) -> Iterator[Finding]:
    """A weight that did not fit into FP16 became infinite."""
    for name, tensor in view.initializers.items():
        if tensor.data_type != tensor.FLOAT16:
            continue
        values = view.constant(name)
        bad = 0 if values is None else int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            yield Finding(
                "half-range",
                "warning",
                name,
                f"{bad} of {values.size if values is not None else 0} FP16 numbers are infinite or no numbers",
                "Keep this weight, or what reads it, in FP32 (`cast: {keep_float32: [...]}`).",
            )


def old_opset(view: View, table: Table) -> Iterator[Finding]:
    """Models of old operator sets may parse, without any promise."""
    if view.opset < 7:
        yield Finding(
            "old-opset",
            "warning",
            view.model.graph.name or "model",
            f"operator set {view.opset}: TensorRT promises nothing below 7",
            "Convert the model to operator set 13 or later (onnx.version_converter).",
        )
