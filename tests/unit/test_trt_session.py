"""Running an engine: buffers, CUDA graphs, layer times, against a stand-in for TensorRT that works on host memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compress.errors import ModelError, RunError
from compress.runtimes import trt_session
from compress.runtimes.trt_session import TensorrtSession, layer_clock, new_context

LONGEST = 6


class Clock:
    def __init__(self) -> None:
        self.recording: list[Callable[[], None]] | None = None


class Context:
    """Computes logits = (sum of ids, number of ids) of each row, at whatever addresses it was told."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.addresses, self.shape = clock, dict[str, int](), (0, 0)
        self.runs: list[tuple[str, tuple[int, ...]]] = []
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[1] <= LONGEST

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 2)

    def execute_async_v3(self, stream: int) -> bool:
        shape, source, target = self.shape, self.addresses["input_ids"], self.addresses["logits"]

        def compute() -> None:
            self.runs.append(("run", shape))
            ids = np.ctypeslib.as_array((ctypes.c_int64 * math.prod(shape)).from_address(source)).reshape(shape)
            out = np.ctypeslib.as_array((ctypes.c_float * (shape[0] * 2)).from_address(target)).reshape(-1, 2)
            out[:, 0], out[:, 1] = ids.sum(1), shape[1]
            if self.profiler is not None:
                for layer, ms in (("gemm", 0.3), ("softmax", 0.1)):
                    self.profiler.report_layer_time(layer, ms)

        if self.clock.recording is None:
            compute()
        else:
            self.runs.append(("recorded", shape))
            self.clock.recording.append(compute)
        return True


class Engine:
    num_layers, num_io_tensors = 2, 2

    def __init__(self, clock: Clock) -> None:
        self.clock, self.contexts = clock, list[Context]()
        self.configs: list[Any] = []

    def get_tensor_name(self, index: int) -> str:
        return ("input_ids", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"input_ids": "in", "logits": "out"}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return {"input_ids": "i64", "logits": "f32"}[name]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config: Any = None) -> Context:
        self.configs.append(config)
        self.contexts.append(Context(self.clock))
        return self.contexts[-1]


class Profiler:
    def __init__(self) -> None: ...


TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in"),
    DataType=SimpleNamespace(FLOAT="f32", HALF="f16", BF16="bf16", INT32="i32", INT64="i64", BOOL="b"),
    IProfiler=Profiler,
)


class OnHost(TensorrtSession):
    device = "cpu"

    def _to_device(self, name: str, array: np.ndarray) -> Any:
        return super()._to_device(name, array).clone()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    clock = Clock()

    class Graph:
        def __init__(self) -> None:
            self.steps: list[Callable[[], None]] = []

        def replay(self) -> None:
            for step in self.steps:
                step()

    @contextlib.contextmanager
    def graph(recorded: Graph, stream: Any) -> Iterator[None]:
        clock.recording = recorded.steps
        yield
        clock.recording = None

    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=7, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(trt_session, "event_ms", lambda run: run() or 1.5)
    return Engine(clock)


def batch(*rows: list[int]) -> dict[str, np.ndarray]:
    return {"input_ids": np.array(rows, dtype=np.int64)}


FIRST, SECOND, OTHER = batch([1, 2, 3]), batch([7, 8, 9]), batch([1, 1], [2, 2])


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_outputs_are_right_whatever_shape_came_before(engine: Engine, cuda_graph: bool) -> None:
    session = OnHost(TRT, None, engine, cuda_graph=cuda_graph)
    for feeds, wanted in ((FIRST, [[6, 3]]), (OTHER, [[2, 2], [4, 2]]), (SECOND, [[24, 3]]), (FIRST, [[6, 3]])):
        np.testing.assert_array_equal(session.run(feeds)["logits"], wanted)
    assert session.device_ms(SECOND) == 1.5
    assert session.placement()["cuda_graphs"] == (2 if cuda_graph else 0)


def test_a_shape_is_run_plainly_once_then_recorded_then_replayed(engine: Engine) -> None:
    session = OnHost(TRT, None, engine, cuda_graph=True)
    session.run(FIRST)
    session.run(SECOND)
    session.run(OTHER)
    three, two = (1, 3), (2, 2)
    told = [("run", three), ("recorded", three), ("run", three), ("run", three)]
    assert engine.contexts[0].runs == [*told, ("run", two), ("recorded", two), ("run", two)]


def test_tensorrt_rtx_records_by_itself_and_is_only_told_to(engine: Engine) -> None:
    strategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    rtx = SimpleNamespace(**vars(TRT), CudaGraphStrategy=strategy)
    session = OnHost(rtx, None, engine, cuda_graph=True)
    assert engine.configs[0].cuda_graph_strategy == "whole"
    np.testing.assert_array_equal(session.run(FIRST)["logits"], [[6, 3]])
    assert [what for what, _ in engine.contexts[0].runs] == ["run"]
    new_context(rtx, engine, cuda_graph=False)
    assert engine.configs[1] is None


def test_layer_times_come_from_a_context_of_their_own(engine: Engine) -> None:
    session = OnHost(TRT, None, engine)
    assert session.placement() == {"device": "cuda", "layers": 2, "cuda_graphs": 0}
    session.run(FIRST)
    found = session.placement()
    assert found["layer_ms"] == pytest.approx({"gemm": 0.3, "softmax": 0.1})
    assert list(found["layer_ms"]) == ["gemm", "softmax"], "the slowest first"
    assert found["layers_ms_total"] == pytest.approx(0.4)
    assert engine.contexts[0].profiler is None, "the timed context is never watched"


def test_a_shape_outside_the_profile_and_a_refused_run_are_said(engine: Engine) -> None:
    session = OnHost(TRT, None, engine)
    with pytest.raises(ModelError, match="outside the engine's optimization profile"):
        session.run(batch([0] * (LONGEST + 1)))
    engine.contexts[0].execute_async_v3 = lambda stream: False  # type: ignore[method-assign]
    with pytest.raises(RunError, match="refused to run"):
        session.run(FIRST)
    engine.create_execution_context = lambda config=None: None  # type: ignore[assignment, return-value, method-assign]
    with pytest.raises(RunError, match="execution context"):
        new_context(TRT, engine, cuda_graph=False)


def test_names_that_are_used_exist_in_the_real_bindings() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    totals: dict[str, float] = {}
    clock = layer_clock(trt, totals)
    assert isinstance(clock, trt.IProfiler)
    clock.report_layer_time("gemm", 0.25)
    clock.report_layer_time("gemm", 0.25)
    assert totals == {"gemm": 0.5}
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    engine = ("create_runtime_config", "create_execution_context", "num_layers", "num_io_tensors", "get_tensor_name")
    assert all(hasattr(trt.ICudaEngine, name) for name in (*engine, "get_tensor_mode", "get_tensor_dtype"))
    context = ("set_input_shape", "set_tensor_address", "infer_shapes", "get_tensor_shape", "execute_async_v3")
    assert all(hasattr(trt.IExecutionContext, name) for name in (*context, "profiler"))
