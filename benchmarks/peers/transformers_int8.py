"""The export quantizers of Transformers 5: its own export, quantized on the way by ONNX Runtime, NNCF or torchao."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from request import Request, serve

Make = Callable[[Request], tuple[Any, dict[str, Any]]]


def onnxruntime_dynamic(request: Request) -> tuple[Any, dict[str, Any]]:
    """Its defaults."""
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    return OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig()), {"quantizer": "OnnxRuntimeQuantizer, dynamic"}


def onnxruntime_per_channel(request: Request) -> tuple[Any, dict[str, Any]]:
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    options = {"per_channel": True, "reduce_range": request.reduce_range}
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(**options))
    return quantizer, {"quantizer": "OnnxRuntimeQuantizer, dynamic"} | options


def onnxruntime_static(request: Request) -> tuple[Any, dict[str, Any]]:
    from transformers.exporters import OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    options = {
        "per_channel": True,
        "reduce_range": request.reduce_range,
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "calibration_providers": ["CPUExecutionProvider"],
    }
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(**options), _samples(request))
    return quantizer, {"quantizer": "OnnxRuntimeQuantizer, static"} | options


def nncf(name: str, request: Request) -> tuple[Any, dict[str, Any]]:
    """One of its three NNCF quantizers, with their defaults (``ModelType.TRANSFORMER``)."""
    from transformers import exporters

    return getattr(exporters, name)(calibration_dataset=_samples(request)), {"quantizer": name}


def torchao(request: Request) -> tuple[Any, dict[str, Any]]:
    """PyTorch's PT2E quantization with torchao's settings for x86; its histograms take minutes unless batched."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from transformers.exporters import PT2EQuantizer

    settings = x86.get_default_x86_inductor_quantization_config(reduce_range=request.reduce_range)
    quantizer = x86.X86InductorQuantizer().set_global(settings)
    named = {"quantizer": "PT2EQuantizer, X86InductorQuantizer", "reduce_range": request.reduce_range}
    return PT2EQuantizer(quantizer, _batches(request, 32)), named


def _samples(request: Request) -> list[dict[str, Any]]:
    import torch

    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in request.feeds()]


def _batches(request: Request, size: int) -> list[dict[str, Any]]:
    """Return the samples in padded batches."""
    import torch

    samples, batches = _samples(request), []
    for start in range(0, len(samples), size):
        rows = samples[start : start + size]
        columns = {name: [row[name][0] for row in rows] for name in rows[0]}
        pad = torch.nn.utils.rnn.pad_sequence
        batches.append({name: pad(column, batch_first=True) for name, column in columns.items()})
    return batches


def to_onnx(quantizer: Make, request: Request, fusions: str | None = None) -> dict[str, Any]:
    from transformers.exporters import OnnxConfig, OnnxExporter

    made, options = quantizer(request)
    config = OnnxConfig(dynamic=True, ort_fusions=fusions, quantizer=made)
    _export(OnnxExporter(), config, request, "model.onnx")
    return {"exporter": "its own", "ort_fusions": fusions} | options


def to_openvino(quantizer: Make, request: Request) -> dict[str, Any]:
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    made, options = quantizer(request)
    _export(OpenVINOExporter(), OpenVINOConfig(dynamic=True, quantizer=made), request, "model.xml")
    return {"exporter": "its own"} | options


def _export(exporter: Any, config: Any, request: Request, name: str) -> None:
    """Trace a batch of two texts of different lengths, so that no size is taken for a constant."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(request.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    inputs = tokenizer(request.texts()[:2], padding=True, return_tensors="pt")
    feeds = {key: inputs[key] for key in next(request.feeds()) if key in inputs}
    exported = exporter.export(model, feeds, config=config)
    exporter.save_program(exported.program, request.out / name)


VARIANTS = {
    "onnxruntime-dynamic": partial(to_onnx, onnxruntime_dynamic),
    "onnxruntime-dynamic-fused": partial(to_onnx, onnxruntime_per_channel, fusions="cpu"),
    "onnxruntime-static": partial(to_onnx, onnxruntime_static),
    "nncf-onnx": partial(to_onnx, partial(nncf, "NNCFOnnxQuantizer")),
    "nncf-fx": partial(to_onnx, partial(nncf, "NNCFTorchFXQuantizer")),
    "nncf-openvino": partial(to_openvino, partial(nncf, "NNCFOpenVINOQuantizer")),
    "torchao": partial(to_onnx, torchao),
}

if __name__ == "__main__":
    packages = ("nncf", "numpy", "onnx", "onnxruntime", "openvino", "torch", "torchao", "transformers")
    sys.exit(serve(VARIANTS, packages))
