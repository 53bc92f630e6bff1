"""An INT8 model that is planted to be slow: the verdict is to keep FP32, and the report says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import onnx
import pytest
from onnx import helper, numpy_helper

from compress.artifact import Artifact, Kind, create_artifact
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan, passes
from compress.quantization.writing import quantize_weight

pytestmark = pytest.mark.usefixtures("one_thread")


class Stored(Pass):
    """Stores weights in 8 bits and turns them back to float at every run, as weight-only QDQ files do."""

    name: ClassVar[str] = "stored-int8"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx",)
    Config: ClassVar[type[PassConfig]] = PassConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    produces: ClassVar[Kind] = "onnx"
    adds: ClassVar[frozenset[str]] = frozenset({"int8"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"

    def plan(self, inputs: Mapping[str, ModelInfo], config: PassConfig) -> Plan:
        info = inputs["model"]
        return Plan("weights in 8 bits, products in float", replace(info, traits=info.traits | self.adds))

    def apply(self, inputs: Mapping[str, Artifact], config: PassConfig, context: Context) -> Artifact:
        from compress.export.companions import copy_companions
        from compress.export.signature import read_graph

        source = inputs["model"]
        model = store_in_8_bits(onnx.load(source.file()))
        (context.out / "model.onnx").write_bytes(model.SerializeToString())
        copy_companions(source.path, context.out)
        return create_artifact(
            context.out,
            kind="onnx",
            traits=sorted(source.traits | self.adds),
            graphs={"model": read_graph(context.out / "model.onnx")},
            parameters=source.manifest.parameters,
            **self.provenance(inputs, config, context),
        )


def store_in_8_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """One scale for each weight: with one for each column ONNX Runtime 1.31 finds a kernel (MatMulNBits)."""
    graph = model.graph
    read = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read and len(tensor.dims) == 2]
    for tensor in weights:
        integers, scale = quantize_weight(numpy_helper.to_array(tensor), 8, per_channel=False)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(integers, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        inputs = [f"{name}.int8", f"{name}.scale"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/turn"))
    return model


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes._targets, "stored-int8", Stored)


@pytest.mark.usefixtures("registered")
def test_a_file_that_folds_back_to_float_is_not_recommended(
    labeller: Artifact, labelled_run: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    gates = {"accuracy": {"max_drop_points": 50}}
    record, text = labelled_run(labeller, [{"export": {}}, {"stored-int8": {}, "id": "slow"}], gates=gates)
    verdict = record["verdict"]
    assert verdict["step"] is None
    assert verdict["headline"].startswith("Keep FP32: no deliverable is faster than ONNX Runtime FP32 on ort-cpu-1t")
    assert verdict["reasons"][0].startswith("slow: It folds back to FP32: 12 products are stored in 8 bits")
    row = next(row for row in record["rows"] if row["step"] == "slow")
    assert row["integers"]["folded"] == 12
    assert row["integers"]["integer_products"] == 0
    assert row["integers"]["mac_share"] == 0.0
    assert row["isa"]
    assert "Why slow is not faster on ort-cpu-1t" in text
    assert "folds back to FP32" in text
