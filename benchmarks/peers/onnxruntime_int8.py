"""ONNX Runtime's quantizers: with their defaults, and as its documentation advises for transformers on this CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from request import Request, serve


class Feeds:
    """Calibration examples in the form that ONNX Runtime asks for."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def dynamic(request: Request) -> dict[str, Any]:
    """``quantize_dynamic`` with nothing but a source and a destination."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(request.onnx, request.out / "model.onnx")
    return {"function": "quantize_dynamic"}


def dynamic_advised(request: Request) -> dict[str, Any]:
    """Pre-processing, one scale per channel, and 7-bit weights on x86 without VNNI."""
    return _dynamic_per_channel(_preprocessed(request), request) | {"pre_process": True}


def dynamic_fused(request: Request) -> dict[str, Any]:
    """The same after ONNX Runtime's transformer optimizer, which makes Attention that is quantized as a whole."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    config = request.config
    optimized = optimizer.optimize_model(
        str(request.onnx),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        optimization_options=FusionOptions("bert"),
        opt_level=0,
    )
    source = request.out / "fused.onnx"
    optimized.save_model_to_file(str(source))
    options = _dynamic_per_channel(source, request)
    fused = {name: count for name, count in optimized.get_fused_operator_statistics().items() if count}
    return options | {"transformers.optimizer": "bert", "fused": fused}


def static(request: Request) -> dict[str, Any]:
    """Calibrated QDQ: asymmetric uint8 activations, int8 weights with one scale per channel, MatMul and Gemm."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    source = _preprocessed(request)
    options = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True, "reduce_range": request.reduce_range}
    quantize_static(
        source,
        request.out / "model.onnx",
        Feeds(request.feeds()),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        **options,
    )
    source.unlink()
    named = {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QInt8", "calibrate_method": "MinMax"}
    return {"function": "quantize_static", "pre_process": True} | named | options


def _dynamic_per_channel(source: Path, request: Request) -> dict[str, Any]:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"per_channel": True, "reduce_range": request.reduce_range}
    quantize_dynamic(
        source,
        request.out / "model.onnx",
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
        **options,
    )
    source.unlink()
    return {"function": "quantize_dynamic", "weight_type": "QInt8"} | options


def _preprocessed(request: Request) -> Path:
    """Infer shapes and optimize the graph, as the documentation advises before any quantization.

    Symbolic shape inference, which this does first by default, does not get through graphs of PyTorch's exporter.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = request.out / "preprocessed.onnx"
    quant_pre_process(request.onnx, out, skip_symbolic_shape=True)
    return out


VARIANTS = {"dynamic": dynamic, "dynamic-advised": dynamic_advised, "dynamic-fused": dynamic_fused, "static": static}

if __name__ == "__main__":
    sys.exit(serve(VARIANTS, ("numpy", "onnx", "onnxruntime")))
