"""Triton's own server on an exported folder: it reads every config, tokenizes, runs the ensemble and loses nothing.

The wheel of nvidia-pytriton carries a real ``tritonserver`` with the Python backend and without the ONNX Runtime
backend. So the folder is started twice in an environment of its own:

1. as it was exported, to see that nothing is missing but that backend;
2. with ``backend: "python"`` in the one model's config and a stand-in that runs the same model.onnx, to ask the
   tokenizer and the ensemble over HTTP: texts, pairs, labels, a bad request, 200 at once.

Exits with 1 unless every answer is there and equals that of ``compress.load`` within 1e-4.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import compress
from compress.artifact import open_artifact
from compress.shipping.serving.triton import TritonLayout
from compress.shipping.shipment import open_shipment
from compress.shipping.writing import ship
from compress.store import Store

PACKAGES = ("nvidia-pytriton==0.7.0", "tokenizers==0.23.3", "onnxruntime==1.23.2")
"""PyTriton wants NumPy 1, which the newest ONNX Runtime does not take; only the stand-in needs it."""
STAND_IN = """
from pathlib import Path
import onnxruntime
import triton_python_backend_utils as triton
class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        arrays = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.names}
        return triton.InferenceResponse([triton.Tensor("logits", self.session.run(["logits"], arrays)[0])])
"""
PARSE = """
import pathlib, sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
for path in sorted(pathlib.Path(sys.argv[1]).glob("*/config.pbtxt")):
    found = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    print(f"{path.parent.name}: {found.backend or found.platform}, max_batch_size {found.max_batch_size}")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="RUN:STEP or an artifact folder, kind onnx, of a text model")
    parser.add_argument("--data", type=Path, required=True, help="CSV with a column `text`")
    parser.add_argument("--venv", type=Path, help="where the environment is made, or was made by an earlier call")
    options = parser.parse_args()
    with options.data.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:200]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = ship(open_shipment(options.source, Store.default()), TritonLayout(), work / "folder").path
        name = open_artifact(folder).file().parent.parent.name
        triton = Triton(work, options.venv or work / "venv")
        print(triton.parse(folder / "models"), end="")
        with triton.start(folder, wait=False) as (process, log):
            process.wait(60)
        reasons = re.findall(r'"(failed to load [^"]*)"', log.read_text(encoding="utf-8"))
        print("as exported:", "; ".join(reasons))
        whole = all("backend 'onnxruntime'" in reason or reason.endswith(f"'{name}'") for reason in reasons)
        config = folder / "models" / name / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace('"onnxruntime"', '"python"'), encoding="utf-8")
        (config.parent / "1" / "model.py").write_text(STAND_IN, encoding="utf-8")
        with triton.start(folder) as (process, log):
            fine = ask_all(triton, folder, f"{name}_text", texts, process)
        return 0 if whole and fine else 1


class Triton:
    """A Triton server from PyPI in an environment of its own."""

    def __init__(self, work: Path, venv: Path) -> None:
        self._work, self.port = work, free_port()
        self._python = str(venv / "bin" / "python")
        if not venv.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run([self._python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (self._packages,) = (venv / "lib").glob("python3.*/site-packages")
        server = self._packages / "pytriton" / "tritonserver"
        self._backends = shutil.copytree(server / "backends", work / "backends")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", self._backends / "python")
        (work / "bin").mkdir()
        (work / "bin" / "tritonserver").symlink_to(server / "bin" / "tritonserver")

    def parse(self, models: Path) -> str:
        """Parse the configs with Triton's own protocol buffers."""
        done = subprocess.run([self._python, "-c", PARSE, str(models)], capture_output=True, text=True, check=True)
        return done.stdout

    @contextmanager
    def start(self, folder: Path, *, wait: bool = True) -> Iterator[tuple[subprocess.Popen[Any], Path]]:
        """Start the folder's own serve.sh."""
        libraries = f"{self._packages / 'nvidia_pytriton.libs'}:{Path(sys.base_prefix) / 'lib'}"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCOMPRESS"))
        }
        environment |= {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(self._packages)}
        environment["PATH"] = f"{self._work / 'bin'}:{Path(self._python).parent}:{os.environ['PATH']}"
        ports = [f"--http-port={self.port}", f"--grpc-port={free_port()}", f"--metrics-port={free_port()}"]
        line = [str(folder / "serve.sh"), f"--backend-directory={self._backends}", *ports]
        log = self._work / "log"
        with log.open("w") as out, subprocess.Popen(line, env=environment, stdout=out, stderr=out) as process:
            try:
                while wait and self.call("GET", "/v2/health/ready")[0] != 200:
                    if process.poll() is not None:
                        sys.exit(log.read_text(encoding="utf-8")[-3000:])
                    time.sleep(0.1)
                yield process, log
            finally:
                process.kill()

    def call(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(verb, path, json.dumps(body) if body else None)
            answer = connection.getresponse()
            found = answer.read()
            return answer.status, json.loads(found) if found else None
        except OSError:
            return 0, None
        finally:
            connection.close()


def ask_all(triton: Triton, folder: Path, name: str, texts: list[str], process: subprocess.Popen[Any]) -> bool:
    """Ask the ensemble and print what came; return whether all is well."""

    def infer(inputs: dict[str, list[str]], **output: Any) -> tuple[int, Any]:
        parts = [{"name": k, "datatype": "BYTES", "shape": [len(v), 1], "data": v} for k, v in inputs.items()]
        asked = {"outputs": [{"name": "logits", **output}]} if output else {}
        return triton.call("POST", f"/v2/models/{name}/infer", {"inputs": parts, **asked})

    with compress.load(folder, threads=1) as predictor:
        wanted, pair = predictor.logits(texts), predictor.logits([(texts[0], texts[1])])
        best = predictor(texts[0])["label"]
    found: list[Any] = [None] * len(texts)

    def one(i: int) -> None:
        status, answer = infer({"text": [texts[i]]})
        found[i] = answer["outputs"][0]["data"] if status == 200 else None

    def at_once() -> tuple[int, float]:
        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        there = [i for i, answer in enumerate(found) if answer is not None]
        return len(texts) - len(there), max(float(np.abs(np.array(found[i]) - wanted[i]).max()) for i in there)

    lost, gap = at_once()
    print(f"{len(texts)} requests at once: {lost} lost, largest difference {gap:.1e}")
    status, answer = infer({"text": texts[:1], "text_pair": texts[1:2]})
    pair_gap = float(np.abs(np.array(answer["outputs"][0]["data"]) - pair[0]).max())
    print(f"a pair: {status}, difference {pair_gap:.1e}")
    status, answer = infer({"text": texts[:1]}, parameters={"classification": 1})
    label = answer["outputs"][0]["data"][0]
    print(f"with `classification`: {label}")
    status, answer = infer({"text": [" "]})
    print(f"an empty text: {status} {answer['error']}")
    process.send_signal(signal.SIGTERM)
    return not lost and max(gap, pair_gap) <= 1e-4 and status == 400 and label.endswith(f":{best}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
