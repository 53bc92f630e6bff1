"""The inspector's JSON of both schemas, read into numbers.

No engine could be loaded where these samples were written. They follow the documented fields: TensorRT 10's developer
guide ("Engine Inspector"), and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; the names of layers are
of the kinds that public layer dumps of transformer engines have.
"""

from __future__ import annotations

from typing import Any

import pytest

from compress.export.trt_inspect import summarise

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
    assert found.layers == 11
    assert found.detailed
    assert found.precisions == {"int8": 2, "fp16": 2, "fp32": 1}
    assert (found.reformats, found.casts, found.quantizers) == (1, 2, 2)
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
