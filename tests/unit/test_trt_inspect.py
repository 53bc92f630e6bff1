"""The inspector's JSON of both schemas, read into numbers.

No engine could be loaded where these samples were written. They follow the documented fields: TensorRT 10's developer
guide ("Engine Inspector"), and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; the names of layers are
of the kinds that public layer dumps of transformer engines have.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export import trt_inspect
from compress.export.trt_api import Trt, missing_trt, present_library
from compress.export.trt_build import Built, build
from compress.export.trt_inspect import inspect_engine, parse_listing, summarise
from compress.runtimes.cuda import why_no_cuda

OPERATORS = {
    "q": "MatMul",
    "scores": "MatMul",
    "softmax": "Softmax",
    "values": "MatMul",
    "cast_mask": "Cast",
    "quantize_x": "QuantizeLinear",
    "dequantize_x": "DequantizeLinear",
    "ffn": "MatMul",
    "gelu": "Gelu",
    "norm": "LayerNormalization",
    "softmax_2": "Softmax",
}


def tensor(name: str, type_: str, schema: int) -> dict[str, Any]:
    place = {"Name": name, "Location": "Device", "Dimensions": [8, 128, 384]}
    if schema == 10:
        return place | {"Format/Datatype": {"Half": "Row major linear FP16 format", "Int8": "Int8"}.get(type_, type_)}
    return place | {"Format": "Row major linear", "Datatype": type_}


def layer(
    name: str, kind: str, reads: str, writes: str, origins: tuple[str, ...], schema: int, **more: Any
) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor("in", reads, schema)] if reads else [],
        "Outputs": [tensor("out", writes, schema)],
        "TacticName": more.get("tactic", "0x0"),
        "Metadata": "\x1e".join(f"[ONNX Layer: {origin}]" for origin in origins),
    } | ({"Weights": more["weights"]} if "weights" in more else {})


def sample(schema: int) -> dict[str, Any]:
    """An INT8 block: one product in INT8, attention fused once of twice, conversions of each kind."""
    layers = [
        layer("Reformatting CopyNode for Input Tensor 0 to q", "Reformat", "Half", "Half", (), schema),
        layer("__myl_Cast_myl0_0", "kgen", "Int64", "Half", ("cast_mask",), schema),
        layer("__myl_MoveCast_myl0_1", "kgen", "Half", "Half", (), schema),
        layer("__myl_MoveReplConc_myl0_2", "kgen", "Half", "Half", ("scores",), schema),
        layer("__myl_MulMinMaxRounCastReshTran_myl0_2", "kgen", "Half", "Int8", ("ffn",), schema),
        layer("quantize_x_myl0_2", "kgen", "Half", "Int8", ("quantize_x",), schema),
        layer("x", "Dequantize", "Int8", "Half", ("dequantize_x",), schema),
        layer("q_myl0_3", "gemm", "Int8", "Half", ("q", "dequantize_x"), schema),
        layer("ffn", "CaskGemmConvolution", "Half", "Half", ("ffn",), schema, weights={"Type": "Int8", "Count": 9}),
        layer("_gemm_mha_v2_myl0_4", "kgen", "Half", "Half", ("scores", "softmax", "values"), schema),
        layer("__myl_MaxSubExpSumDiv_myl0_5", "kgen", "Float", "Float", ("softmax_2",), schema),
        layer("__myl_MulAddErf_myl0_6", "kgen", "Half", "Half", ("gelu", "norm"), schema),
        layer("shape_call", "shape_call", "Int64", "Int64", (), schema),
    ]
    if schema == 10:
        return {"Layers": layers, "Bindings": ["input_ids", "logits"]}
    io = {
        "Name": "logits",
        "IOMode": "Output",
        "DataType": "Float",
        "Dimensions": [-1, 3],
        "Location": "Device",
        "IsShapeInferenceIO": False,
        "ProfileInfo": [{"Format": "Row major linear FP32 format (kLINEAR)"}],
    }
    return {"Layers": layers, "I/O Tensors": [io]}


@pytest.mark.parametrize("schema", [10, 11])
def test_both_schemas_give_the_same_numbers(schema: int) -> None:
    found = summarise(sample(schema), OPERATORS)
    assert found.layers == 13
    assert found.detailed
    assert found.precisions == {"int8": 2, "fp16": 2, "fp32": 1}
    assert (found.reformats, found.casts, found.quantizers) == (2, 2, 3)
    assert (found.attention, found.fused_attention) == (2, 1)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Float16", "fp16"),
        ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Int64", None),
        ("Bool", None),
        ("N/A due to dynamic shapes", None),
    ],
)
def test_a_type_is_known_by_every_name_that_it_has(text: str, precision: str | None) -> None:
    for field in ("Format/Datatype", "Datatype", "DataType"):
        info = {"Layers": [{"Name": "x", "LayerType": "kgen", "Inputs": [{"Name": "in", field: text}]}]}
        assert summarise(info, {}).precisions == ({precision: 1} if precision else {})


def test_the_type_counts_and_not_the_format_beside_it() -> None:
    tensors = [{"Name": "in", "Format": "Row major linear FP32 format (kLINEAR)", "Datatype": "Half"}]
    assert summarise({"Layers": [{"Name": "x", "Inputs": tensors}]}, {}).precisions == {"fp16": 1}


def test_names_alone_tell_conversions_and_fused_attention() -> None:
    found = summarise({"Layers": ["Reformatting CopyNode for x", "_gemm_mha_v2_myl0_0", "q + gelu"]}, OPERATORS)
    assert not found.detailed
    assert (found.layers, found.reformats, found.fused_attention, found.precisions) == (3, 1, 1, {})


def test_attention_is_fused_where_one_layer_has_the_softmax_and_both_products() -> None:
    one = [layer("a", "kgen", "Half", "Half", ("scores", "softmax", "values"), 11)]
    apart = [
        layer("a", "gemm", "Half", "Half", ("scores",), 11),
        layer("b", "kgen", "Half", "Half", ("softmax", "values"), 11),
    ]
    assert summarise({"Layers": one}, OPERATORS).fused_attention == 1
    assert summarise({"Layers": apart}, OPERATORS).fused_attention == 0


def test_an_engine_without_layers_is_an_empty_summary() -> None:
    found = summarise({}, {})
    assert (found.layers, found.precisions, found.attention) == (0, {}, 0)


LISTED = """Layers:
Name: __mye310_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: q_myl0_3, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,16], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [16,16], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [-1,16], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: q]\x1f[ONNX Layer: dequantize_x]
Name: __myl_CastGath_myl0_1, LayerType: kgen, Inputs: [ { Name: ids, Dimensions: [-1], Datatype: Int64, Format: (Linear) Row major linear format }], Constants: [ { Name: table, Dimensions: [48,32], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ { Name: e, Dimensions: [-1,32], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: x, StreamId: 0, Metadata: [ONNX Layer: gather]

I/O Tensors:
 Name: ids, IOMode: Input, DataType: Int64, Dimensions: [-1], Location: Device, IsShapeInferenceIO: false, ProfileInfo: [ { MinShape: [1], OptShape: [1], MaxShape: [4], Format: Row major linear INT64 format (kLINEAR) }]
"""  # noqa: E501, W291
"""Lines of TensorRT-RTX 1.7.1, shortened."""


def test_a_builders_listing_is_read_like_the_inspectors_json() -> None:
    read = parse_listing(LISTED)
    assert [layer["LayerType"] for layer in read["Layers"]] == ["shape_call", "gemm", "kgen"]
    assert read["Layers"][1]["Inputs"] == [{"Datatype": "Int8"}]
    assert read["Layers"][1]["Constants"] == [{"Datatype": "Int8"}, {"Datatype": "Float"}]
    assert read["Layers"][1]["Metadata"] == "[ONNX Layer: q]\x1f[ONNX Layer: dequantize_x]"
    assert summarise(read, OPERATORS).precisions == {"int8": 1, "fp16": 1}


def attention(type_: int, head: int, folder: Path) -> Built:
    """Build softmax(q k / sqrt(head)) v of four heads, up to 8 x 128."""
    values = {name: helper.make_tensor_value_info(name, type_, ["b", 4, "s", head]) for name in "qkvy"}
    scale = numpy_helper.from_array(np.array(head**-0.5, helper.tensor_dtype_to_np_dtype(type_)), "scale")
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"], name="scaling"),
        helper.make_node("Transpose", ["k"], ["turned"], name="turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned"], ["scores"], name="qk"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="pv"),
    ]
    graph = helper.make_graph(nodes, "g", [values[name] for name in "qkv"], [values["y"]], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    shapes = tuple((batch, 4, length, head) for batch, length in ((1, 1), (1, 64), (8, 128)))
    return build(folder / "model.onnx", folder / "model.engine", dict.fromkeys("qkv", shapes))


@pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
@pytest.mark.parametrize(
    ("type_", "head", "precision", "fused"),
    [(TensorProto.FLOAT16, 32, "fp16", 1), (TensorProto.FLOAT16, 8, "fp16", 0), (TensorProto.FLOAT, 32, "fp32", 0)],
)
def test_the_real_builder_tells_which_attention_is_fused(
    type_: int, head: int, precision: str, fused: int, tmp_path: Path
) -> None:
    """FP16 with a head size of at least 16 has a kernel for the whole block, in the words of the developer guide."""
    if present_library() != "tensorrt-rtx" or not why_no_cuda():
        pytest.skip("these are the layers that TensorRT-RTX 1.7 lists on a machine without a GPU")
    built = attention(type_, head, tmp_path)
    found = inspect_engine(tmp_path / "model.engine", tmp_path / "model.onnx", built.listing)
    assert not isinstance(found, str)
    assert (found.source, found.attention, found.fused_attention) == ("builder", 1, fused)
    assert set(found.precisions) == {precision}
    assert found.activation_bytes is not None
    assert found.weights_bytes is not None


def test_without_a_gpu_and_a_listing_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_inspect, "why_no_cuda", lambda: "no driver")
    found = inspect_engine(Path("model.engine"), Path("model.onnx"), [])
    assert found == "no GPU, and the builder listed no layers"


@pytest.mark.parametrize(("loads", "tells"), [(True, True), (True, False), (False, True)])
def test_with_a_gpu_the_loaded_engine_is_asked(
    loads: bool, tells: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = SimpleNamespace(
        create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda form: json.dumps(sample(11))),
        get_engine_stat=lambda stat: 7_000,
        num_optimization_profiles=2,
        device_memory_size_v2=900,
        get_device_memory_size_for_profile_v2=lambda index: (400, 900)[index],
        streamable_weights_size=0,
    )
    stats = {"EngineStat": SimpleNamespace(TOTAL_WEIGHTS_SIZE=0)} if tells else {}
    fake: Any = SimpleNamespace(
        ILogger=object,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if loads else None),
        **stats,
    )
    fake = type("Fake", (), vars(fake))  # a module can be hashed, a namespace cannot
    monkeypatch.setattr(trt_inspect, "why_no_cuda", lambda: "")
    monkeypatch.setattr(trt_inspect, "load_trt", lambda: Trt(fake, "tensorrt", "11.4.0.106"))
    monkeypatch.setattr(trt_inspect, "operators_of", lambda path: OPERATORS)
    (tmp_path / "model.engine").write_bytes(b"plan")
    found = inspect_engine(tmp_path / "model.engine", tmp_path / "model.onnx", [])
    if not loads:
        assert str(found).startswith("tensorrt 11.4.0.106 could not load it")
        return
    assert not isinstance(found, str)
    assert (found.source, found.layers, found.fused_attention) == ("inspector", 13, 1)
    assert found.weights_bytes == (7_000 if tells else None)
    assert (found.activation_bytes, found.profile_activation_bytes, found.streamable_bytes) == (900, (400, 900), 0)
