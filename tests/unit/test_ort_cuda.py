"""The CUDA session of ONNX Runtime, its buffers and its profile, run on the CPU provider where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError, ModelError, RunError
from compress.export.golden import open_session
from compress.quantization.int8 import _library
from compress.quantization.variants import Variants
from compress.runtimes import onnxruntime_package, ort_cuda
from compress.runtimes.base import Availability
from compress.runtimes.onnx_placement import nodes_by_provider
from compress.runtimes.onnxruntime import OnnxRuntime
from compress.runtimes.target import Target, find_target

CPU = "CPUExecutionProvider"


class OnCpu(ort_cuda.OrtCudaSession):
    """The same session, its buffers in host memory and on the CPU provider."""

    device = "cpu"

    def _providers(self, target: Target) -> list[Any]:
        return [CPU]


def test_bound_buffers_give_what_a_plain_run_gives(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> None:
    artifact = tiny_onnx()
    batches = [tiny_encoded.batch(part) for part in ([0, 1, 2], [3], [4, 5, 6], [3], [0, 1, 2])]
    plain = OnnxRuntime().open(artifact, find_target("ort-cpu-1t"))
    with OnCpu(artifact, find_target("ort-cuda-graph")) as session:
        for batch in batches:
            got = session.run(batch | {"unknown": np.zeros(1)})
            assert got["logits"].dtype == np.float32
            np.testing.assert_allclose(got["logits"], plain.run(batch)["logits"], rtol=1e-6, atol=1e-6)
        assert len(session._bound) == len({batch["input_ids"].shape for batch in batches})
        assert session.device_ms(batches[0]) is None
        with pytest.raises(ModelError, match="needs an input"):
            session.run({"input_ids": batches[0]["input_ids"]})
    with pytest.raises(KeyError):
        session.run(batches[0])


def test_an_output_stays_what_it_was_when_the_next_batch_runs(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded
) -> None:
    with OnCpu(tiny_onnx(), find_target("ort-cuda")) as session:
        same_length = [i for i in range(24) if tiny_encoded.lengths[i] == tiny_encoded.lengths[0]][:2]
        first = session.run(tiny_encoded.batch(same_length[:1]))["logits"]
        before = first.copy()
        session.run(tiny_encoded.batch(same_length[1:]))
        np.testing.assert_array_equal(first, before)


def test_placement_counts_the_nodes_of_each_provider(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded) -> None:
    with OnCpu(tiny_onnx(), find_target("ort-cuda")) as session:
        assert "nodes" not in session.placement(), "nothing was run that could be profiled"
        session.run(tiny_encoded.batch([0]))
        found = session.placement()
    assert found["providers"] == [CPU]
    assert (found["cpu_node_share"], found["cpu_time_share"]) == (1.0, 1.0)
    assert found["cpu_operators"] == found["operators"]
    assert found["nodes"] == {CPU: sum(found["operators"].values())}


def test_nodes_are_counted_once_however_often_they_ran() -> None:
    def event(name: str, operator: str, provider: str, us: int) -> dict[str, Any]:
        return {"cat": "Node", "name": name, "dur": us, "args": {"op_name": operator, "provider": provider}}

    cuda = "CUDAExecutionProvider"
    events = [event("a", "MatMul", cuda, 30), event("b", "Shape", CPU, 5), event("c", "Gather", CPU, 5)] * 2
    events += [{"cat": "Session", "name": "run", "dur": 99}, {"cat": "Node", "name": "a_fence", "dur": 1, "args": {}}]
    assert nodes_by_provider(events) == {
        "nodes": {CPU: 2, cuda: 1},
        "cpu_node_share": 2 / 3,
        "cpu_time_share": 0.25,
        "cpu_operators": {"Gather": 1, "Shape": 1},
    }
    assert nodes_by_provider([]) == {}


def test_another_provider_than_cuda_is_an_error_never_a_fallback() -> None:
    cuda = (ort_cuda.CUDA, {})
    ort_cuda.require_first([ort_cuda.CUDA, CPU], cuda)
    with pytest.raises(RunError, match="did not load CUDAExecutionProvider") as caught:
        ort_cuda.require_first([CPU], cuda)
    assert caught.value.value == "it would run on CPUExecutionProvider"


@pytest.mark.parametrize(
    ("name", "tf32", "graph"), [("ort-cuda", "0", "0"), ("ort-cuda-tf32", "1", "0"), ("ort-cuda-graph", "0", "1")]
)
def test_options_of_the_provider_are_explicit(name: str, tf32: str, graph: str) -> None:
    options = ort_cuda.provider_options(find_target(name))
    assert options == {"device_id": "0", "use_tf32": tf32, "enable_cuda_graph": graph}


def test_int8_is_refused_on_the_cuda_provider(
    tiny_onnx: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_onnx()
    int8 = Artifact(made.path, made.manifest.model_copy(update={"traits": ("int8",)}))
    monkeypatch.setattr(OnnxRuntime, "available", lambda self, target: Availability(True))
    with pytest.raises(MissingCapabilityError) as caught:
        OnnxRuntime().open(int8, find_target("ort-cuda"))
    assert caught.value.value == ort_cuda.NO_INT8


@pytest.mark.parametrize("who", ["runtime", "golden", "variants", "quantizer", "calibration", "saturation"])
def test_two_distributions_are_an_error_wherever_onnxruntime_is_opened(
    who: str, tiny_onnx: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from compress.quantization import calibration, saturation

    file = tiny_onnx().file()
    openers: dict[str, Callable[[], Any]] = {
        "runtime": lambda: OnnxRuntime().preload(find_target("ort-cpu-1t")),
        "golden": lambda: open_session(file),
        "variants": lambda: Variants(onnx.load(file)),
        "quantizer": _library,
        "calibration": lambda: calibration._observe(str(file), "", "", "1", "1"),
        "saturation": lambda: saturation._session(file.read_bytes(), precise=True),
    }
    monkeypatch.setattr(onnxruntime_package, "is_installed", {"onnxruntime", "onnxruntime-gpu"}.__contains__)
    with pytest.raises(MissingCapabilityError) as caught:
        openers[who]()
    assert "pip uninstall onnxruntime onnxruntime-gpu" in caught.value.value
    assert caught.value.exit_code == 3
