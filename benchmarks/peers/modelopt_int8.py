"""NVIDIA ModelOpt's INT8 quantization of ONNX models, calibrated on the CPU.

Its extra ``onnx`` wants a GPU build of ONNX Runtime and CuPy. Without the extra it runs on the CPU build; what else the
extra brings is in the requirements.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from request import Request, serve


def int8(request: Request, calibration_method: str | None = None) -> dict[str, Any]:
    """INT8 with the rest in float32: its default, float16, is for GPUs.

    Args:
        request: what to make.
        calibration_method: ``max`` or ``entropy``; None = its default, ``entropy``.
    """
    import numpy as np
    from modelopt.onnx.quantization import quantize

    feeds = list(request.feeds())
    longest = max(feed["input_ids"].shape[1] for feed in feeds)
    batch = {
        name: np.concatenate([np.pad(feed[name], ((0, 0), (0, longest - feed[name].shape[1]))) for feed in feeds])
        for name in feeds[0]
    }
    options: dict[str, Any] = {"quantize_mode": "int8", "high_precision_dtype": "fp32"}
    if calibration_method is not None:
        options["calibration_method"] = calibration_method
    quantize(
        str(request.onnx),
        calibration_data=batch,
        calibration_eps=["cpu"],
        output_path=str(request.out / "model.onnx"),
        **options,
    )
    return {"function": "modelopt.onnx.quantization.quantize", "calibration_eps": "cpu"} | options


VARIANTS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "int8": int8,
    "int8-max": partial(int8, calibration_method="max"),
}

if __name__ == "__main__":
    sys.exit(serve(VARIANTS, ("numpy", "nvidia-modelopt", "onnx", "onnxruntime", "torch")))
