"""Measure the models of this folder on this device: ``python run.py``; it writes result.json.

Needs numpy and one of onnxruntime, openvino, tensorrt or tensorrt_rtx (for ONNX models), or torch with
transformers (for torch models); Python 3.9 or newer. Reads nothing outside this folder but what the system says of
its processor, memory, temperature and GPU; sends nothing anywhere. Made by mcompress, Apache-2.0.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports to its makers otherwise
HERE = Path(__file__).resolve().parent
BACKENDS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "torch": ("torch",),
}
"""Runtime -> the modules that provide it, most capable first."""
WINDOW = 10


class DeviceError(Exception):
    """This device cannot do what was asked; the message goes into the result."""


# The child: one opened model.


def child() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    opened: dict[str, Any] = {}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": globals()[f"do_{job.pop('op')}"](opened, **job)}
        except Exception as error:
            said = " ".join(str(error).split())
            answer = {"error": said if isinstance(error, DeviceError) else f"{type(error).__name__}: {said}"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def do_open(opened: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-settings["threads"] :])
    import numpy as np

    with np.load(str(HERE / model["evaluation"]), allow_pickle=False) as file:
        opened["arrays"] = {name: file[name] for name in file.files}
    opened.update(model=model, feeds={})
    module = load_module(settings["backend"])
    before = resident("VmRSS")
    start = time.perf_counter_ns()
    opened["run"] = OPENERS[settings["backend"]](module, opened, settings)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    return {"import_rss_bytes": before, "load_ms": load_ms, "version": str(getattr(module, "__version__", ""))}


def load_module(backend: str) -> Any:
    names = [name for name in BACKENDS[backend] if importlib.util.find_spec(name)]
    module = importlib.import_module(names[0])
    if backend == "torch":
        importlib.import_module("transformers")
    return module


def do_warmup(opened: dict[str, Any], sequence: list[int]) -> dict[str, Any]:
    first_ms = timed(opened, sequence[0])
    for index in sequence:
        timed(opened, index)
    start, medians = time.monotonic(), []
    while True:
        medians.append(statistics.median(timed(opened, index) for index in sequence[:WINDOW]))
        passed, last = time.monotonic() - start, medians[-3:]
        if len(last) == 3 and passed >= 0.5 and max(last) <= 1.05 * min(last):
            return {"first_ms": first_ms, "settled": True}
        if len(last) == 3 and passed >= 5:
            return {"first_ms": first_ms, "settled": False}


def do_round(opened: dict[str, Any], sequence: list[int]) -> dict[str, Any]:
    timed(opened, sequence[0])  # brings the model back into the caches after the others' turns
    return {"ms": [timed(opened, index) for index in sequence]}


def do_memory(opened: dict[str, Any]) -> dict[str, Any]:
    return {"peak_rss_bytes": resident("VmHWM")}


def do_golden(opened: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    if not opened["model"]["golden"]:
        return {"golden_max_abs": None}
    with np.load(str(HERE / opened["model"]["golden"]), allow_pickle=False) as file:
        rows = {name[3:]: file[name] for name in file.files if name.startswith("in/")}
        wanted = file["out/" + opened["model"]["output"]]
    feeds = {name: rows[name] for name in opened["model"]["inputs"]}
    return {"golden_max_abs": float(np.abs(finite(opened["run"](feeds)) - wanted).max())}


def do_predict(opened: dict[str, Any]) -> dict[str, Any]:
    arrays = opened["arrays"]
    count = len(arrays["offsets"]) - 1 if "offsets" in arrays else len(arrays["fixed/" + opened["model"]["inputs"][0]])
    rows = [finite(opened["run"](feed(opened, index)))[0] for index in range(count)]
    return {"outputs": [[float(f"{value:.9g}") for value in row.ravel().tolist()] for row in rows]}


def finite(outputs: Any) -> Any:
    import numpy as np

    if not np.isfinite(outputs).all():
        raise DeviceError("an output is infinite or not a number")
    return outputs


def feed(opened: dict[str, Any], index: int) -> dict[str, Any]:
    """Return one example at its real length: input name -> (1, ...) array."""
    arrays, out = opened["arrays"], {}
    for name in opened["model"]["inputs"]:
        if "offsets" in arrays:
            begin, end = arrays["offsets"][index : index + 2]
            out[name] = arrays["ids/" + name][None, begin:end].astype("int64")
        else:
            out[name] = arrays["fixed/" + name][None, index]
    return out


def timed(opened: dict[str, Any], index: int) -> float:
    feeds, run = opened["feeds"], opened["run"]
    if index not in feeds:
        feeds[index] = feed(opened, index)
    inputs = feeds[index]
    start = time.perf_counter_ns()
    run(inputs)
    return (time.perf_counter_ns() - start) / 1e6


def resident(field: str) -> int | None:
    for line in read("/proc/self/status").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


# The runtimes: each returns a function from input arrays to the output, float32 on the host.


def open_onnxruntime(ort: Any, opened: dict[str, Any], settings: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    provider = settings["provider"] or "CPUExecutionProvider"
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    session = ort.InferenceSession(str(HERE / opened["model"]["file"]), options, providers=providers)
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{provider} is not there; this onnxruntime has {', '.join(ort.get_available_providers())}")
    output = opened["model"]["output"]
    return lambda feeds: session.run([output], feeds)[0].astype("float32", copy=False)


def open_openvino(openvino: Any, opened: dict[str, Any], settings: dict[str, Any]) -> Any:
    device = settings["provider"] or "CPU"
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    if device == "CPU":
        config.update(INFERENCE_NUM_THREADS=settings["threads"], ENABLE_CPU_PINNING=False)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(HERE / opened["model"]["file"])), device, config)
    request, output = compiled.create_infer_request(), compiled.output(opened["model"]["output"])
    return lambda feeds: request.infer(feeds, share_inputs=True)[output].astype("float32")


def open_torch(torch: Any, opened: dict[str, Any], settings: dict[str, Any]) -> Any:
    import transformers

    torch.set_num_threads(settings["threads"])
    device, output = settings["provider"] or "cpu", opened["model"]["output"]
    loader = getattr(transformers, opened["model"]["auto_class"])
    folder = str(HERE / opened["model"]["file"])
    model = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval().to(device)

    def run(feeds: dict[str, Any]) -> Any:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}
            return getattr(model(**tensors), output).float().cpu().numpy()

    return run


def open_tensorrt(trt: Any, opened: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Build an engine on this GPU for one input of any length that the kit has, and run it on a stream of its own."""
    import numpy as np

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    flag = getattr(flags, "STRONGLY_TYPED", None) or flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(HERE / opened["model"]["file"])):
        raise DeviceError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    arrays = opened["arrays"]
    lengths = np.diff(arrays["offsets"]) if "offsets" in arrays else np.array([1])
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if "offsets" in arrays:
            profile.set_shape(name, (1, 1), (1, int(np.median(lengths))), (8, max(128, int(lengths.max()))))
        else:
            rest = arrays["fixed/" + name].shape[1:]
            profile.set_shape(name, (1, *rest), (1, *rest), (8, *rest))
    config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan) if plan is not None else None
    if engine is None:
        raise DeviceError("TensorRT could not build the engine; its messages stand above")
    return Engine(trt, engine, opened["model"]["output"]).run


class Engine:
    """An engine with its buffers, by the CUDA runtime library alone: neither torch nor cuda-python is needed."""

    def __init__(self, trt: Any, engine: Any, output: str) -> None:
        names = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "cudart64_12.dll")
        self.cuda = next((found for name in names if (found := _library(name))), None)
        if self.cuda is None:
            raise DeviceError(f"the CUDA runtime library is not found: {', '.join(names)}")
        self.trt, self.engine, self.output = trt, engine, output
        self.context, self.stream = engine.create_execution_context(), ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(self.stream))
        self.buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}

    def run(self, feeds: dict[str, Any]) -> Any:
        import numpy as np

        types = {name: self.trt.nptype(self.engine.get_tensor_dtype(name)) for name in feeds}
        hosts = {name: np.ascontiguousarray(array, dtype=types[name]) for name, array in feeds.items()}
        for name, host in hosts.items():
            self.context.set_input_shape(name, host.shape)
            self.context.set_tensor_address(name, self.buffer(name, host.nbytes).value)
            self.copy(self.buffer(name, host.nbytes), host.ctypes.data_as(ctypes.c_void_p), host.nbytes, 1)
        shape = tuple(self.context.get_tensor_shape(self.output))
        out = np.empty(shape, dtype=self.trt.nptype(self.engine.get_tensor_dtype(self.output)))
        self.context.set_tensor_address(self.output, self.buffer(self.output, out.nbytes).value)
        if not self.context.execute_async_v3(self.stream.value):
            raise DeviceError("TensorRT refused to run the engine")
        self.copy(out.ctypes.data_as(ctypes.c_void_p), self.buffer(self.output, out.nbytes), out.nbytes, 2)
        self.call("cudaStreamSynchronize", self.stream)
        return out.astype("float32", copy=False)

    def buffer(self, name: str, size: int) -> ctypes.c_void_p:
        """Return device memory of at least ``size`` bytes; a larger need takes new memory."""
        if name not in self.buffers or self.buffers[name][1] < size:
            pointer = ctypes.c_void_p()
            self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1 << 16)))
            self.buffers[name] = (pointer, max(size, 1 << 16))
        return self.buffers[name][0]

    def copy(self, to: Any, source: Any, size: int, kind: int) -> None:
        self.call("cudaMemcpyAsync", to, source, ctypes.c_size_t(size), ctypes.c_int(kind), self.stream)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            raise DeviceError(f"{name} returned the CUDA error {code}")


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


OPENERS = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "torch": open_torch,
    "tensorrt": open_tensorrt,
}


def read(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
