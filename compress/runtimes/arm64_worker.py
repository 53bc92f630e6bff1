"""The program inside the emulator: runs one ONNX file under arm64 Python; needs numpy and onnxruntime only.

Called as ``python -I arm64_worker.py SITE MODEL THREADS``. Reads and answers frames on its standard streams: eight
bytes, the length, then a ``.npz`` without pickles. The first answer says what it runs on.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from typing import Any, BinaryIO

_HWCAP, _HWCAP2 = 16, 26
_FEATURES = {
    "asimd": (_HWCAP, 1),
    "asimdhp": (_HWCAP, 10),
    "asimddp": (_HWCAP, 20),
    "sve": (_HWCAP, 22),
    "i8mm": (_HWCAP2, 13),
    "bf16": (_HWCAP2, 14),
}
"""Instruction set -> auxiliary vector and bit, from Linux' ``arch/arm64/include/uapi/asm/hwcap.h``."""


def main() -> int:
    site, model, threads = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path.insert(0, site)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        _send(answers, {"error": np.array(f"{type(error).__name__}: {error}")})
        return 1
    facts = {
        "architecture": platform.machine(),
        "flags": _flags(),
        "python": platform.python_version(),
        "packages": {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__},
    }
    _send(answers, {"facts": np.array(json.dumps(facts))})
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    while True:
        head = sys.stdin.buffer.read(8)
        if len(head) < 8:
            return 0
        with np.load(io.BytesIO(sys.stdin.buffer.read(int.from_bytes(head, "big"))), allow_pickle=False) as file:
            feeds = {name: file[name] for name in file.files}
        try:
            arrays = session.run(None, {name: feeds[name] for name in names})
            _send(answers, dict(zip(outputs, arrays, strict=True)))
        except Exception as error:
            _send(answers, {"error": np.array(f"{type(error).__name__}: {error}")})


def _flags() -> list[str]:
    import ctypes

    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return [name for name, (vector, bit) in _FEATURES.items() if getauxval(vector) >> bit & 1]


def _send(file: BinaryIO, arrays: dict[str, Any]) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    file.write(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
    file.flush()


if __name__ == "__main__":
    sys.exit(main())
