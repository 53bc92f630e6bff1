"""What a kit says to the person who runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def readme(kit: Mapping[str, Any]) -> str:
    """Return README.md of a kit, from its kit.json without files and digest."""
    kinds = sorted({model["kind"] for model in kit["models"]})
    models = "\n".join(
        f"| `{model['name']}` | {model['kind']} | {model['size_bytes'] / 1e6:.1f} |" for model in kit["models"]
    )
    torch = "\nTorch models need `pip install torch transformers` instead of onnxruntime.\n" if "torch" in kinds else ""
    return f"""# Measure these models on your device

| model | kind | MB |
| --- | --- | --- |
{models}

`run.py` needs Python 3.9 or newer, numpy and a runtime; it reads this folder only and sends nothing anywhere.
The inputs are token ids or pixels of {kit["examples"]:,} examples ({kit["split"]}) with the ids of their labels:
no text.
{torch}
## Raspberry Pi or another small board

```sh
python3 -m venv venv && venv/bin/pip install numpy onnxruntime
venv/bin/python run.py --name raspberry-pi-5
venv/bin/python run.py --name raspberry-pi-5-4t --threads 4 --out result-4t.json
```

## Jetson

TensorRT comes with JetPack; an engine is built on the device. The TensorRT part of `run.py` has been built against
the interface but not run on a Jetson by its authors: the golden outputs in its table tell whether it is right.

```sh
python3 -m pip install "numpy<2"
python3 run.py --runtime tensorrt --name jetson-orin-nano
python3 run.py --runtime onnxruntime --name jetson-orin-nano-cpu --out result-cpu.json
```

## GPU server

```sh
python3 -m venv venv && venv/bin/pip install numpy onnxruntime-gpu
venv/bin/python run.py --provider CUDAExecutionProvider --name my-gpu
venv/bin/python run.py --provider CPUExecutionProvider --name my-server --out result-cpu.json
```

Times are of one input after another, from host arrays to host arrays. Close other programs first; the result holds
the load, temperature and clock before and after. Then bring `result.json` back to the machine with the run:

```sh
mcompress ingest result.json --into RUN
```

`sha256sum -c SHA256SUMS` checks the copy; `run.py` does so itself.
"""
