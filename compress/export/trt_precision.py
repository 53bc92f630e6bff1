"""What a strongly typed engine computes in: its ONNX file says it, whatever the builder is told."""

from __future__ import annotations

from pathlib import Path

_QUANTIZING = frozenset({"DequantizeLinear", "QuantizeLinear"})


def precision_of(onnx_file: Path, *, tf32: bool) -> tuple[str, str]:
    """Return (precision, float precision) of the engine of an ONNX file.

    Args:
        onnx_file: the file; weights in external files are not loaded.
        tf32: whether float32 products may round their inputs to TF32.

    Returns:
        First int8, fp8, fp16, bf16, tf32 or fp32-strict. Then what the layers that are not quantized compute in:
        fp16, bf16, tf32 or fp32-strict. A file with float16 weights is fp16, also where some nodes stay in float32.
    """
    import onnx

    kinds = onnx.TensorProto
    graph = onnx.load(onnx_file, load_external_data=False).graph
    stored = {tensor.data_type for tensor in graph.initializer}
    floats = "tf32" if tf32 else "fp32-strict"
    for kind, name in ((kinds.BFLOAT16, "bf16"), (kinds.FLOAT16, "fp16")):
        floats = name if kind in stored else floats
    if not any(node.op_type in _QUANTIZING for node in graph.node):
        return floats, floats
    quantized = "fp8" if kinds.FLOAT8E4M3FN in stored else "int8"
    return quantized, floats
