"""Olive's ``auto-opt``: its own export, graph fusions and dynamic INT8.

``auto-opt`` is deprecated in favour of ``optimize``, which for INT8 calibrates on a language-modelling set of the hub
with the CUDA provider: nothing for a classifier on a CPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from request import Request, serve


def auto_opt(request: Request) -> dict[str, Any]:
    options = ["--precision", "int8", "--task", "text-classification"]
    command = [str(Path(sys.executable).with_name("olive")), "auto-opt", *options, "--disable_telemetry"]
    command += ["--model_name_or_path", str(request.model), "--output_path", "result"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True)
        for file in sorted((Path(folder) / "result").glob("model.onnx*")):
            shutil.copyfile(file, request.out / file.name)
    return {"command": " ".join(["olive auto-opt", *options]), "exporter": "its own"}


VARIANTS = {"auto-opt": auto_opt}

if __name__ == "__main__":
    sys.exit(serve(VARIANTS, ("numpy", "olive-ai", "onnx", "onnxruntime", "torch", "transformers")))
