"""An INT8 model that is planted to be slow: the verdict is to keep FP32, and the report says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compress.artifact import Artifact, Kind, create_artifact
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan, passes
from compress.quantization.writing import quantize_weight

pytestmark = pytest.mark.usefixtures("one_thread")


class Stored(Pass):
    """Stores weights in 8 bits that are float again when the file is loaded, and adds conversions that gain nothing."""

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
    """Store weights in 8 bits that a Cast and a Mul turn back, and round what the other operators give."""
    graph = model.graph
    read = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    nodes = []
    for tensor in [tensor for tensor in graph.initializer if tensor.name in read and len(tensor.dims) == 2]:
        integers, scale = quantize_weight(numpy_helper.to_array(tensor), 8)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(integers, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], name=f"{name}/cast", to=1))
        nodes.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], name=f"{name}/mul"))
    graph.initializer.append(numpy_helper.from_array(np.array(0.05, dtype=np.float32), "pair.scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(128, dtype=np.uint8), "pair.zero"))
    for node in graph.node:
        nodes.append(node)
        if node.op_type in ("LayerNormalization", "Gelu", "Softmax"):
            name = node.output[0]
            node.output[0] = f"{name}.exact"
            for kind, first, second in (
                ("QuantizeLinear", f"{name}.exact", f"{name}.codes"),
                ("DequantizeLinear", f"{name}.codes", name),
            ):
                nodes.append(
                    helper.make_node(kind, [first, "pair.scale", "pair.zero"], [second], name=f"{name}/{kind}")
                )
    nodes += detour(graph)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model


def detour(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return work that takes ten times as long as the tiny model and adds 0 to its logits: slow on any machine."""
    for node in graph.node:
        if node.output[0] == "logits":
            node.output[0] = "logits.exact"
    values = np.full((512, 512), 1e-3, dtype=np.float32)
    graph.initializer.append(numpy_helper.from_array(values, "detour.values"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.float32), "detour.nothing"))
    steps = (
        ("Cast", ["input_ids"], {"to": 1}),
        ("ReduceMean", ["detour.0"], {"keepdims": 0}),
        ("Mul", ["detour.values", "detour.1"], {}),
        ("MatMul", ["detour.2", "detour.2"], {}),
        ("MatMul", ["detour.3", "detour.2"], {}),
        ("ReduceMean", ["detour.4"], {"keepdims": 0}),
        ("Mul", ["detour.5", "detour.nothing"], {}),
    )
    made = [
        helper.make_node(kind, inputs, [f"detour.{i}"], name=f"detour/{i}", **options)
        for i, (kind, inputs, options) in enumerate(steps)
    ]
    return [*made, helper.make_node("Add", ["logits.exact", "detour.6"], ["logits"], name="detour/end")]


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
    folds = "slow: It folds back to FP32: 12 products are stored in 8 bits"
    assert any(reason.startswith(folds) for reason in verdict["reasons"])
    assert any("nodes only convert between types, for 0 integer products" in reason for reason in verdict["reasons"])
    row = next(row for row in record["rows"] if row["step"] == "slow")
    assert row["integers"]["folded"] == 12
    assert row["integers"]["integer_products"] == 0
    assert row["integers"]["mac_share"] == 0.0
    assert row["isa"]
    assert "Why slow is not faster on ort-cpu-1t" in text
    assert "folds back to FP32" in text
