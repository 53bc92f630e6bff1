"""What a model takes at its peak as a server runs it: the largest batch, of the longest inputs, in every stream.

A run measures memory with one input at a time at the lengths of its texts; a server may get more of both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.artifact import TensorSpec

_SECONDS = 600
_CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import onnxruntime

def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM:")).split()[1])

job = json.loads(sys.argv[1])
arrays = {name: np.full(shape, "mask" in name, dtype=kind) for name, (shape, kind) in job["inputs"].items()}
before = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = job["threads"], 1, 3
session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
with ThreadPoolExecutor(job["streams"]) as pool:
    list(pool.map(lambda _: session.run(None, arrays) and None, range(2 * job["streams"])))
print(peak() - before)
"""


def peak_bytes(
    file: Path, inputs: Sequence[TensorSpec], sizes: Mapping[str, int], *, streams: int, threads: int
) -> int | None:
    """Run a model in a process of its own and return what it added to the peak of its resident memory.

    Args:
        file: ONNX.
        inputs: of its graph.
        sizes: ``batch`` and ``sequence`` -> how many.
        streams: batches at once.
        threads: of the processor, for each.

    Returns:
        Bytes; None where ONNX Runtime is not installed, the system does not tell, or the model cannot be run so.
    """
    if find_spec("onnxruntime") is None or not Path("/proc/self/status").exists():
        return None
    shapes = {
        spec.name: ([size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape], spec.dtype)
        for spec in inputs
    }
    job: dict[str, Any] = {"file": str(file), "inputs": shapes, "streams": streams, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD, json.dumps(job)],
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 else None
