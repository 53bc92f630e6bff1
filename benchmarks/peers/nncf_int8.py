"""NNCF's post-training quantization for transformers, on the ONNX model and on the OpenVINO model."""

from __future__ import annotations

import sys
from typing import Any

from request import Request, serve


def on_onnx(request: Request) -> dict[str, Any]:
    import nncf
    import onnx

    feeds = list(request.feeds())
    quantized = nncf.quantize(
        onnx.load(request.onnx), nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds)
    )
    onnx.save(quantized, request.out / "model.onnx")
    return {"function": "nncf.quantize", "model_type": "TRANSFORMER", "subset_size": len(feeds), "backend": "ONNX"}


def on_openvino(request: Request) -> dict[str, Any]:
    import nncf
    import openvino

    feeds = list(request.feeds())
    model = openvino.Core().read_model(request.onnx)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    openvino.save_model(quantized, request.out / "model.xml", compress_to_fp16=False)
    return {"function": "nncf.quantize", "model_type": "TRANSFORMER", "subset_size": len(feeds), "backend": "OpenVINO"}


VARIANTS = {"onnx": on_onnx, "openvino": on_openvino}

if __name__ == "__main__":
    sys.exit(serve(VARIANTS, ("nncf", "numpy", "onnx", "onnxruntime", "openvino")))
