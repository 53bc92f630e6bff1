"""``palette``: the weights of a matrix share a few values, and the file keeps one byte for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.export.companions import copy_companions
from compress.export.golden import golden_onnx, missing_onnxruntime
from compress.export.signature import read_graph
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

if TYPE_CHECKING:
    import onnx

ITERATIONS = 50


class PaletteConfig(PassConfig):
    """How many values, and for which matrices."""

    entries: int = Field(256, ge=2, le=256, description="values that the weights of one matrix share")
    smallest: int = Field(1024, ge=1, description="matrices with fewer numbers stay as they are")


class Palette(Pass):
    """Replaces each float32 weight matrix by 8-bit indices into a table of values, chosen by k-means.

    The file gets nearly four times as small. Speed stays that of float32, and loading takes more memory than before: a
    runtime looks the values up once, when it opens the model. To be the last step: what looks for float32 weights
    finds indices.
    """

    name: ClassVar[str] = "palette"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnxruntime")
    Config: ClassVar[type[PassConfig]] = PaletteConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "onnx"
    forbids: ClassVar[frozenset[str]] = frozenset({"palette", "int4", "int8", "fp16", "bf16"})
    adds: ClassVar[frozenset[str]] = frozenset({"palette"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"

    def plan(self, inputs: Mapping[str, ModelInfo], config: PaletteConfig) -> Plan:
        model = inputs["model"]
        after = ModelInfo("onnx", model.traits | self.adds, model.config, model.parameters, model.macs)
        return Plan(f"weights from palettes of {config.entries} values", after, missing_onnxruntime())

    def apply(self, inputs: Mapping[str, Artifact], config: PaletteConfig, context: Context) -> Artifact:
        import onnx

        source = inputs["model"]
        model = onnx.load(source.file())
        notes = use_palettes(model, config.entries, config.smallest)
        onnx.checker.check_model(model)
        onnx.save(model, context.out / "model.onnx")
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.adds),
            graphs={"model": read_graph(context.out / "model.onnx")},
            parameters=source.manifest.parameters,
            macs=source.manifest.macs,
            golden=golden_onnx(context.out, context.task),
            notes=notes,
            **self.provenance(inputs, config, context),
        )


def use_palettes(model: onnx.ModelProto, entries: int, smallest: int) -> dict[str, Any]:
    """Rewrite a model in place; return how many matrices have a palette, and how far their weights moved."""
    from onnx import TensorProto, helper, numpy_helper

    inputs = {value.name for value in model.graph.input}
    nodes, errors, squares = [], 0.0, 0.0
    for tensor in [*model.graph.initializer]:
        large = len(tensor.dims) > 1 and np.prod(tensor.dims) >= smallest
        if tensor.data_type != TensorProto.FLOAT or not large or tensor.name in inputs:
            continue
        weights = numpy_helper.to_array(tensor)
        values, indices = palette_of(weights, entries)
        errors += float(np.square(values[indices] - weights, dtype=np.float64).sum())
        squares += float(np.square(weights, dtype=np.float64).sum())
        name = tensor.name
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(indices, f"{name}.indices"))
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.values"))
        nodes += [
            helper.make_node("Cast", [f"{name}.indices"], [f"{name}.places"], f"{name}.cast", to=TensorProto.INT32),
            helper.make_node("Gather", [f"{name}.values", f"{name}.places"], [name], f"{name}.look_up"),
        ]
    for number, node in enumerate(nodes):
        model.graph.node.insert(number, node)
    relative = (errors / squares) ** 0.5 if squares else 0.0
    return {"matrices": len(nodes) // 2, "relative_error": float(f"{relative:.4g}")}


def palette_of(weights: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the values of one matrix by k-means (Lloyd 1982), from evenly spaced ones.

    That start keeps the few large weights, which matter most (Han et al. 2016, arXiv:1510.00149, section 3.2).

    Args:
        weights: float32 of any shape, all finite.
        entries: at most this many values, 2 to 256.

    Returns:
        Values, (entries,) float32, ascending; and the index of the nearest for each weight, uint8 in its shape.
    """
    ordered = np.sort(weights, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = np.linspace(ordered[0], ordered[-1], entries)
    for _ in range(ITERATIONS):
        bounds = np.concatenate([[0], np.searchsorted(ordered, _middles(values)), [len(ordered)]])
        counts = np.diff(bounds)
        moved = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), values)
        if np.array_equal(moved, values):
            break
        values = moved
    table = np.unique(values.astype(np.float32))
    return table, np.searchsorted(_middles(table), weights).astype(np.uint8)


def _middles(values: np.ndarray) -> np.ndarray:
    return np.asarray((values[1:] + values[:-1]) / 2)
